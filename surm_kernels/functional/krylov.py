"""Products with f-circulant matrices and grids of them: circulant, skew-circulant, block circulant, any real f."""

from typing import Any

from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import Wide, chosen, product
from surm_kernels.ops import bank as _bank
from surm_kernels.ops import krylov as _ops


def circulant_linear(
    x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0, index: Tensor | None = None
) -> Tensor:
    """Product with the circulant matrix whose first column is c, `W[i, j] = c[(i - j) % n]`.

    One transform each way: W x = irfft(rfft(c) * rfft(x)) (SURM, arXiv 2406.17740). With an index every token has a
    matrix of its own, as in serving many adapters in one batch; an index out of range is refused on the CPU and gives
    that token NaN on other devices, which are not waited for, and under torch.compile.

    Args:
        x: tokens, (..., n).
        c: first column, (n,), or with an index those of all adapters, (adapters, n).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.
        index: the adapter of every token, integers (...).

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to `F.linear(x, scale * dense.circulant(c), bias=base)`; with an index for each token t to
    `F.linear(x[t], scale * dense.circulant(c[index[t]]), bias=base[t])`.
    """
    if index is not None:
        return _circulant_by_token(x, c, base, scale, index)
    _checks.require_vector("c", c, "(n,)")
    return _krylov(x, "c", c, _CIRCULANT, base, scale)


def _circulant_by_token(x: Tensor, c: Tensor, base: Tensor | None, scale: float, index: Tensor) -> Tensor:
    _checks.require_floating("x", x)
    _checks.require_matrix("c", c, "(adapters, n) to go with index")
    tokens = chosen(x, index, c.shape[0])

    def operator(rows: Tensor, c: Tensor, base: Tensor | None, scale: float) -> Tensor:
        start = None if base is None else base.squeeze(0)
        return _bank.circulant_bank(rows.squeeze(0), c, tokens, start, 1, scale, False).unsqueeze(0)

    return product(operator, x, {"c": c}, c.shape[1], c.shape[1], base, scale)


def skew_circulant_linear(x: Tensor, s: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the skew-circulant matrix whose first column is s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j.

    The f-circulant matrix with f = -1 (Pan, Structured Matrices and Polynomials, section 2.6).

    Args:
        x: tokens, (..., n).
        s: first column, (n,).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to `F.linear(x, scale * dense.skew_circulant(s), bias=base)`.
    """
    _checks.require_vector("s", s, "(n,)")
    return _krylov(x, "s", s, _SKEW_CIRCULANT, base, scale)


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
    return _krylov(x, "c", c, _CIRCULANT, base, scale)


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
    _checks.require_floating("v", v)
    _checks.require_dimensions("v", v, (1, 3), "(n,) or (M, K, b)")
    _checks.require_finite("f", f)
    if f == 1:
        return _krylov(x, "v", v, _CIRCULANT, base, scale)
    if f == -1:
        return _krylov(x, "v", v, _SKEW_CIRCULANT, base, scale)
    return _krylov(x, "v", v, ((1, (1 + f) / 2), (-1, (1 - f) / 2)), base, scale)


# A matrix is a sum of terms (sign, weight), weight * Z_sign(v).
_CIRCULANT = ((1, 1.0),)
_SKEW_CIRCULANT = ((-1, 1.0),)


def _krylov(
    x: Tensor, name: str, v: Tensor, terms: tuple[tuple[int, float], ...], base: Tensor | None, scale: float
) -> Tensor:
    """`base + scale * x @ W.T` for W the sum of the terms; v, called `name` by the user, is checked already."""

    def operator(rows: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
        blocks = v.view(1, 1, 1, -1) if v.dim() == 1 else v.unsqueeze(0)
        y: Any = base
        for sign, weight in terms:
            y = _ops.krylov(rows, blocks, y, sign, scale * weight, False)
        return y

    block = v.shape[-1]
    outputs, features = (block, block) if v.dim() == 1 else (v.shape[0] * block, v.shape[1] * block)
    wide: Wide = "everything" if len(terms) > 1 else "nothing"
    return product(operator, x, {name: v}, features, outputs, base, scale, wide)
