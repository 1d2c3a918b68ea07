"""Products with Toeplitz, symmetric Toeplitz and Hankel matrices, and with grids of them."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import product
from surm_kernels.ops._primitive import Primitive


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
    return _diagonals_linear(_matrices.toeplitz, x, "t", t, base, scale)


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
    return product(_matrices.symmetric_toeplitz, x, {"t": t}, base, scale, wide="repeated")


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
    return _diagonals_linear(_matrices.hankel, x, "h", h, base, scale)


def _diagonals_linear(
    make: Callable[..., Primitive], x: Tensor, name: str, t: Tensor, base: Tensor | None, scale: float
) -> Tensor:
    """The product whose numbers of rows and columns follow from x and the number of diagonals."""
    _checks.require_strided("x", x)
    _checks.require_tokens(x)
    _checks.require_floating(name, t)
    _checks.require_dimensions(name, t, (1, 3), "(m + n - 1,) or (M, K, m + n - 1)")
    columns = x.shape[-1]
    if t.dim() == 3:
        _checks.require_block_columns(x, name, t)
        columns //= t.shape[1]
    _checks.require_diagonals(name, t, columns)
    return product(partial(make, n=columns), x, {name: t}, base, scale)
