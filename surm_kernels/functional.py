"""Structured products in the style of torch.nn.functional: `base + scale * x @ W.T` over the last dimension of x.

They share these rules. x has any leading shape, (n,) included; the output has the same leading shape. Tensors are
float64, float32, bfloat16 or float16 on one device; different types promote as in torch, and autocast applies to all
but float64. 16-bit products are computed in float32 and rounded once, base included. base has the output's shape or
is broadcastable to it, such as a bias of shape (m,). A row of x that is not finite gives NaN in that row only.

They raise a TypeError for an argument that is no tensor of those types (no real number for scale and f), and a
ValueError for a shape, value or device that does not fit.
"""

from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.ops import krylov as _ops


def circulant_linear(x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the circulant matrix whose first column is c, `W[i, j] = c[(i - j) % n]`.

    One transform each way: W x = irfft(rfft(c) * rfft(x)) (SURM, arXiv 2406.17740).

    Args:
        x: tokens, (..., n).
        c: first column, (n,).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to `F.linear(x, scale * dense.circulant(c), bias=base)`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (1,), "(n,)")
    return _product(x, "c", c, _CIRCULANT, base, scale)


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
    _checks.require_floating("s", s)
    _checks.require_dimensions("s", s, (1,), "(n,)")
    return _product(x, "s", s, _SKEW_CIRCULANT, base, scale)


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
    return _product(x, "c", c, _CIRCULANT, base, scale)


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
        return _product(x, "v", v, _CIRCULANT, base, scale)
    if f == -1:
        return _product(x, "v", v, _SKEW_CIRCULANT, base, scale)
    return _product(x, "v", v, ((1, (1 + f) / 2), (-1, (1 - f) / 2)), base, scale)


# A matrix is a sum of terms (sign, weight), weight * Z_sign(v).
_CIRCULANT = ((1, 1.0),)
_SKEW_CIRCULANT = ((-1, 1.0),)


def _product(
    x: Tensor, name: str, v: Tensor, terms: tuple[tuple[int, float], ...], base: Tensor | None, scale: float
) -> Tensor:
    """`base + scale * x @ W.T` for W the sum of the terms; v, called `name` by the user, is checked already."""
    _checks.require_floating("x", x)
    _checks.require_number("scale", scale)
    _checks.require_same_device(x, name, v)
    if v.dim() == 1:
        blocks = v.view(1, 1, 1, -1)
        features = outputs = v.shape[0]
    else:
        blocks = v.unsqueeze(0)
        features, outputs = v.shape[1] * v.shape[2], v.shape[0] * v.shape[2]
    _checks.require_features(x, features, name, v)
    rows = x.reshape(1, -1, features)
    leading = x.shape[:-1]
    if base is not None:
        _checks.require_floating("base", base)
        _checks.require_same_device(x, "base", base)
        base = _checks.broadcast_base(base, (*leading, outputs)).reshape(1, -1, outputs)

    result = _checks.common_dtype(x, v, base)
    # Several terms meet in float32 at least, so that 16-bit answers are rounded once.
    inside = result if len(terms) == 1 else torch.promote_types(result, torch.float32)
    rows, blocks = _cast(rows, inside), _cast(blocks, inside)
    y: Any = None if base is None else _cast(base, inside)
    for sign, weight in terms:
        y = _ops.krylov(rows, blocks, y, sign, scale * weight, False)
    return _cast(y, result).view(*leading, outputs)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in the dtype; a call of `to` costs a microsecond even where there is nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)
