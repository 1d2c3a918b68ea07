"""Products with f-circulant matrices and grids of them: circulant, skew-circulant, block circulant, any real f."""

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional._product import chosen, composed, product
from surm_kernels.ops import bank as _bank


def circulant_linear(
    x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0, index: Tensor | None = None
) -> Tensor:
    """Product with the circulant matrix whose first column is c, `W[i, j] = c[(i - j) % n]`, or with a grid of them.

    One transform each way: W x = irfft(rfft(c) * rfft(x)) (SURM, arXiv 2406.17740). With an index every token, or every
    row of tokens, has a matrix of its own, as in serving many adapters in one batch; a first column is transformed once
    a row. An index out of range is refused on the CPU and gives its tokens NaN on other devices, which are not waited
    for, and under torch.compile.

    Args:
        x: tokens, (..., n), or (..., K b) for a grid.
        c: first column, (n,), or (M, K, b) for a grid of M x K blocks, or with an index the first columns of all
            adapters, (adapters, n).
        base: added to the product, broadcastable to (..., n), or (..., M b) for a grid.
        scale: factor of the product.
        index: the adapter of every token, integers (...), or of every row of tokens, integers of a shape that (...)
            starts with.

    Returns:
        `base + scale * x @ W.T`, (..., n), or (..., M b) for a grid.

    Equivalent to `F.linear(x, scale * dense.circulant(c), bias=base)`; with an index for each token t to
    `F.linear(x[t], scale * dense.circulant(c[index[t]]), bias=base[t])`.
    """
    if index is not None:
        return _circulant_by_row(x, c, base, scale, index)
    _require_columns("c", c)
    return product(_matrices.circulant, x, {"c": c}, base, scale)


def _circulant_by_row(x: Tensor, c: Tensor, base: Tensor | None, scale: float, index: Tensor) -> Tensor:
    _checks.require_strided("x", x)
    _checks.require_matrix("c", c, "(adapters, n) to go with index")
    rows = chosen(x, index, c.shape[0])

    def operator(x: Tensor, c: Tensor, base: Tensor | None, scale: float) -> Tensor:
        start = None if base is None else rows.of(base)
        y = _bank.circulant_bank(rows.of(x), c, rows.adapters, start, CIRCULANT, scale, False)
        return y.view(x.shape)

    return composed(operator, x, {"c": c}, (c.shape[1], c.shape[1]), base, scale, wide="nothing")


def skew_circulant_linear(x: Tensor, s: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the skew-circulant matrix whose first column is s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j.

    The f-circulant matrix with f = -1 (Pan, Structured Matrices and Polynomials, section 2.6), or a grid of them.

    Args:
        x: tokens, (..., n), or (..., K b) for a grid.
        s: first column, (n,), or (M, K, b) for a grid of M x K blocks.
        base: added to the product, broadcastable to (..., n) or (..., M b).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n) or (..., M b).

    Equivalent to `F.linear(x, scale * dense.skew_circulant(s), bias=base)`.
    """
    _require_columns("s", s)
    return product(_matrices.skew_circulant, x, {"s": s}, base, scale)


def block_circulant_linear(x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the M b x K b matrix whose block (p, q) is circulant with first column c[p, q].

    C3A (arXiv 2407.19342) adapts weights with it. Transforms are shared: one a block of x, one a block of the output.

    Args:
        x: tokens, (..., K b).
        c: first columns, (M, K, b).
        base: added to the product, broadcastable to (..., M b).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., M b).

    Equivalent to `F.linear(x, scale * dense.block_circulant(c), bias=base)`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (3,), "(M, K, b)")
    return product(_matrices.circulant, x, {"c": c}, base, scale)


def krylov_linear(x: Tensor, v: Tensor, f: float, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the f-circulant matrix Z_f(v), `W[i, j] = v[i - j]`, `f * v[n + i - j]` if i < j, for any real f.

    f = 1 is circulant, -1 skew-circulant, 0 lower triangular Toeplitz (Pan, Structured Matrices and Polynomials,
    section 2.6). Other f take two products: Z_f(v) = (1 + f)/2 Z_1(v) + (1 - f)/2 Z_-1(v).

    Args:
        x: tokens, (..., n), or (..., K b) for blocks.
        v: first column, (n,), or (M, K, b): first columns of M x K blocks.
        f: a finite constant.
        base: added to the product, broadcastable to (..., n) or (..., M b).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n) or (..., M b).

    Equivalent to `F.linear(x, scale * dense.krylov(v, f), bias=base)`.
    """
    _require_columns("v", v)
    _checks.require_finite("f", f)
    if f == 1:
        return product(_matrices.circulant, x, {"v": v}, base, scale)
    if f == -1:
        return product(_matrices.skew_circulant, x, {"v": v}, base, scale)

    def operator(rows: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
        y = _matrices.circulant(v).product(rows, base, scale * (1 + f) / 2)
        return _matrices.skew_circulant(v).product(rows, y, scale * (1 - f) / 2)

    return composed(operator, x, {"v": v}, _matrices.circulant(v).sizes, base, scale)


def _require_columns(name: str, v: Tensor) -> None:
    _checks.require_floating(name, v)
    _checks.require_dimensions(name, v, (1, 3), "(n,) or (M, K, b)")
