"""The Kronecker operators by two matrix products; signatures and values as docs/architecture.md has them.

A token x is a q x s matrix X, row by row, and (a ⊗ b) x is a X b^T: of the two orders the cheaper one is taken. 16-bit
tensors are computed in float32 and rounded once.
"""

from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.reference.ops._rows import blocks, rounded


def kronecker(x: Tensor, a: Tensor, b: Tensor, base: Tensor | None, scale: float, transposed: bool) -> Tensor:
    a_wide, b_wide = (widened(t.mT if transposed else t) for t in (a, b))
    (p, q), (r, s) = a_wide.shape[1:], b_wide.shape[1:]
    tokens = widened(x).unflatten(-1, (q, s))
    if q * r * (s + p) <= p * s * (q + r):
        product = _times(_times(tokens, b_wide).mT, a_wide).mT
    else:
        product = _times(_times(tokens.mT, a_wide).mT, b_wide)
    return rounded(product.flatten(-2), scale, base, x.dtype)


def kronecker_pullback_left(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Tensor:
    r, s = b.shape[1:]
    return _pullback(blocks(widened(g), r), blocks(widened(x), s), b, scale)


def kronecker_pullback_right(g: Tensor, x: Tensor, a: Tensor, scale: float) -> Tensor:
    p, q = a.shape[1:]
    g_tokens, x_tokens = (
        widened(g).unflatten(-1, (p, g.shape[-1] // p)),
        widened(x).unflatten(-1, (q, x.shape[-1] // q)),
    )
    return _pullback(g_tokens.mT, x_tokens.mT, a, scale)


def kronecker_backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return (
        kronecker(g, a, b, None, scale, True),
        kronecker_pullback_left(g, x, b, scale),
        kronecker_pullback_right(g, x, a, scale),
    )


def _pullback(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Tensor:
    """(G, p, q), the sum over tokens of g (X b^T)^T, for g (G, T, p, r), x (G, T, q, s) and b (G, r, s)."""
    (p, r), (q, s) = g.shape[2:], x.shape[2:]
    if q * r * (s + p) <= p * s * (q + r):
        x = _times(x, widened(b))
    else:
        g = _times(g, widened(b.mT))
    sums = _rows(g) @ _rows(x).mT
    return (scale * sums).to(b.dtype)


def _rows(tokens: Tensor) -> Tensor:
    """(G, q, T s) for matrices (G, T, q, s)."""
    return tokens.transpose(1, 2).flatten(2).contiguous()


def _times(tokens: Tensor, matrix: Tensor) -> Tensor:
    """Every matrix of `tokens`, (G, T, q, s), times the transpose of `matrix`, (G, r, s)."""
    rows = tokens.contiguous().flatten(1, 2)  # the rounding of a matrix product depends on the strides
    return (rows @ matrix.contiguous().mT).unflatten(1, tokens.shape[1:3])
