"""The diagonal operators by matrix products; signatures and values as docs/architecture.md has them.

16-bit tensors are computed in float32 and rounded once.
"""

from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.reference.ops._rows import rounded


def diagonal(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
    return rounded((_times(x, v) * widened(s).unsqueeze(1)) @ widened(u).mT, scale, base, x.dtype)


def diagonal_pullback(g: Tensor, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Tensor:
    return (scale * (_times(g, u) * _times(x, v)).sum(1)).to(x.dtype)


def diagonal_backward(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return diagonal(g, v, s, u, None, scale), diagonal_pullback(g, x, u, v, scale)


def factor_gradient(g: Tensor, x: Tensor, s: Tensor, v: Tensor, scale: float) -> Tensor:
    """The gradient with respect to u; with g and x exchanged and u for v, that with respect to v."""
    return (scale * widened(g).mT @ (_times(x, v) * widened(s).unsqueeze(1))).to(x.dtype)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    return widened(rows) @ widened(matrix)
