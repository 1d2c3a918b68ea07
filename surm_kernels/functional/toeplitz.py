"""Products with Toeplitz, symmetric Toeplitz and Hankel matrices, and with grids of them."""

from functools import partial

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import Wide, product
from surm_kernels.ops import toeplitz as _ops


def toeplitz_linear(x: Tensor, t: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the m x n Toeplitz matrix `W[i, j] = t[i - j + n - 1]`, or with an M x K grid of such blocks.

    n is the number of features of x, divided by K for a grid; then m follows from the length of t, m + n - 1. The
    matrix is embedded in a circulant one (Golub and Van Loan, Matrix Computations, section 4.8). From a first column
    and row as in scipy.linalg.toeplitz(col, row), `t = torch.cat([row[1:].flip(0), col])`.

    Args:
        x: tokens, (..., n), or (..., K n) for a grid.
        t: the diagonals from the top right to the bottom left, (m + n - 1,), or (M, K, m + n - 1) for a grid.
        base: added to the product, broadcastable to (..., m) or (..., M m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m) or (..., M m).

    Equivalent to `F.linear(x, scale * dense.toeplitz(t, n), bias=base)`.
    """
    return _toeplitz(x, "t", t, base, scale, reflected=False)


def symmetric_toeplitz_linear(x: Tensor, t: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the symmetric n x n Toeplitz matrix `W[i, j] = t[|i - j|]`, a factor of SURM (arXiv 2406.17740).

    16-bit t is widened, so that the two diagonals that meet in its gradient are rounded once.

    Args:
        x: tokens, (..., n).
        t: first column, (n,).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to `F.linear(x, scale * dense.symmetric_toeplitz(t), bias=base)`.
    """
    _checks.require_vector("t", t, "(n,)")
    size = t.shape[0]

    def operator(rows: Tensor, t: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return _operator(rows, both_sides(t), base, scale, columns=size, reflected=False)

    return product(operator, x, {"t": t}, size, size, base, scale, wide=wide_for(x, t))


def hankel_linear(x: Tensor, h: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the m x n Hankel matrix `W[i, j] = h[i + j]`, or with an M x K grid of such blocks.

    n is the number of features of x, divided by K for a grid; then m follows from the length of h, m + n - 1. A
    Hankel matrix is a Toeplitz matrix with its columns in reverse order (Golub and Van Loan, Matrix Computations,
    section 4.8). From scipy.linalg.hankel(col, row), `h = torch.cat([col, row[1:]])`.

    Args:
        x: tokens, (..., n), or (..., K n) for a grid.
        h: the antidiagonals from the top left to the bottom right, (m + n - 1,), or (M, K, m + n - 1) for a grid.
        base: added to the product, broadcastable to (..., m) or (..., M m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m) or (..., M m).

    Equivalent to `F.linear(x, scale * dense.hankel(h, n), bias=base)`.
    """
    return _toeplitz(x, "h", h, base, scale, reflected=True)


def wide_for(x: Tensor, t: Tensor) -> Wide:
    """What is widened where values of t fill several diagonals, so that t's gradient is rounded once.

    The operators sum into float32 for a float32 t, but for the pullback alone, which knows only the type of x.
    """
    alone = isinstance(x, Tensor) and not x.requires_grad and t.requires_grad
    return "everything" if alone else "parameters"


def both_sides(t: Tensor) -> Tensor:
    """The 2 n - 1 diagonals of the symmetric Toeplitz matrix with first column t."""
    return torch.cat([t.flip(0), t[1:]])


def _toeplitz(x: Tensor, name: str, t: Tensor, base: Tensor | None, scale: float, reflected: bool) -> Tensor:
    _checks.require_floating("x", x)
    _checks.require_tokens(x)
    _checks.require_floating(name, t)
    _checks.require_dimensions(name, t, (1, 3), "(m + n - 1,) or (M, K, m + n - 1)")
    block_rows, block_columns = (1, 1) if t.dim() == 1 else t.shape[:2]
    if t.dim() == 3:
        _checks.require_block_columns(x, name, t)
    columns = x.shape[-1] // block_columns
    _checks.require_diagonals(name, t, columns)
    outputs = block_rows * (t.shape[-1] - columns + 1)
    operator = partial(_operator, columns=columns, reflected=reflected)
    return product(operator, x, {name: t}, block_columns * columns, outputs, base, scale)


def _operator(rows: Tensor, t: Tensor, base: Tensor | None, scale: float, *, columns: int, reflected: bool) -> Tensor:
    blocks = t.view(1, 1, 1, -1) if t.dim() == 1 else t.unsqueeze(0)
    return _ops.toeplitz(rows, blocks, base, columns, scale, False, reflected)
