"""Products with a parameter of its own for every row of tokens, chosen by an index from a bank: many adapters in one
batch.

Rows x are (R, T, n), of T tokens each, and index is (R,). Where a kernel serves and nobody asks for a derivative there
is an operator, for tokens (R, n); otherwise differentiable operations are composed, with the rows of the bank gathered
in float32, so that the sums over the tokens of an adapter are rounded once.
"""

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.ops import _mode, _problems
from surm_kernels.ops._differentiable import _requires_grad
from surm_kernels.ops._library import define, without_autocast
from surm_kernels.ops.grid import grid
from surm_kernels.reference.ops import bank as reference

CIRCULANT = (
    "circulant_bank(Tensor x, Tensor c, Tensor index, Tensor? base, int kind, float scale, bool transposed) -> Tensor"
)
DIAGONAL = "diagonal_bank(Tensor x, Tensor u, Tensor s, Tensor v, Tensor index, Tensor? base, float scale) -> Tensor"


# The circulant kernel multiplies n^2 entries a token. So many take it about as long as the transforms of gathered rows
# take to launch: counted for 10^13 a second, not measured.
MOST_ENTRIES = 1 << 28


def _circulant_bank_fake(
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, kind: int, scale: float, transposed: bool
) -> Tensor:
    torch._check(x.shape[1] == c.shape[1])
    return x.new_empty(x.shape)


def _diagonal_bank_fake(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Tensor:
    torch._check(x.shape[1] == v.shape[0])
    return x.new_empty(x.shape[0], u.shape[0])


_circulant_bank = define(CIRCULANT, _circulant_bank_fake, reference.circulant_bank, cuda=_problems.circulant_bank)
_diagonal_bank = define(DIAGONAL, _diagonal_bank_fake, reference.diagonal_bank, cuda=_problems.diagonal_bank)


def circulant_bank(
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, kind: int, scale: float, transposed: bool
) -> Tensor:
    """`base[r] + scale * x[r] @ W(c[index[r]]).T`, W (skew-)circulant; c is (adapters, n), base (R, T, n) or None."""
    if _has_kernel(x, c, base) and x.numel() * x.shape[-1] <= MOST_ENTRIES:
        start = None if base is None else base.flatten(0, 1)
        own = _by_token(index, x.shape[1])
        return _circulant_bank(x.flatten(0, 1), c, own, start, kind, scale, transposed).view(x.shape)
    with without_autocast(x):
        own = reference.gathered(widened(c), index)[:, None, None]
        start = None if base is None else widened(base)
        return grid(widened(x), own, start, kind, c.shape[1], scale, transposed).to(x.dtype)


def diagonal_bank(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Tensor:
    """`base + scale * ((x @ v) * s[index]) @ u.T`; u is (m, k), s (adapters, k), v (n, k), base (R, T, m) or None."""
    if _has_kernel(x, u, s, v, base):
        start = None if base is None else base.flatten(0, 1)
        own = _by_token(index, x.shape[1])
        return _diagonal_bank(x.flatten(0, 1), u, s, v, own, start, scale).view(*x.shape[:2], u.shape[0])
    with without_autocast(x):
        between = ((x @ v) * reference.gathered(widened(s), index).unsqueeze(1)).to(x.dtype)
        product = scale * widened(between @ u.mT)
        return (product if base is None else base + product).to(x.dtype)


def _by_token(index: Tensor, tokens: int) -> Tensor:
    """The index of rows as that of their tokens."""
    return index if tokens == 1 else index.repeat_interleave(tokens)


def _has_kernel(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the operator serves: on CUDA, where nobody asks for a derivative."""
    if not x.is_cuda or _mode.transforms_active():
        return False
    if not _mode.is_compiling() and _mode.in_forward_mode():
        return False
    return not (torch.is_grad_enabled() and _requires_grad((x, *others)))
