"""Structured products through the dense matrix, 16-bit arguments in float32 and rounded once."""

from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels._widening import wide_type
from surm_kernels.reference import dense


def circulant_linear(
    x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0, index: Tensor | None = None
) -> Tensor:
    """`base + scale * x @ circulant(c).T`, with c[index[t]] for token, or row of tokens, t where there is an index"""
    if index is not None:
        return _by_row(circulant_linear, x, c, base, scale, index)
    return _linear(dense.circulant, x, (c,), base, scale)


def skew_circulant_linear(x: Tensor, s: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ skew_circulant(s).T`"""
    return _linear(dense.skew_circulant, x, (s,), base, scale)


def block_circulant_linear(x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ block_circulant(c).T`"""
    return _linear(dense.block_circulant, x, (c,), base, scale)


def krylov_linear(x: Tensor, v: Tensor, f: float, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ krylov(v, f).T`"""
    return _linear(lambda v: dense.krylov(v, f), x, (v,), base, scale)


def toeplitz_linear(x: Tensor, t: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ toeplitz(t, n).T`, n being the number of columns of a block"""
    n = x.shape[-1] if t.dim() == 1 else x.shape[-1] // t.shape[1]
    return _linear(lambda t: dense.toeplitz(t, n), x, (t,), base, scale)


def symmetric_toeplitz_linear(x: Tensor, t: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ symmetric_toeplitz(t).T`"""
    return _linear(dense.symmetric_toeplitz, x, (t,), base, scale)


def hankel_linear(x: Tensor, h: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ hankel(h, n).T`, n being the number of columns of a block"""
    n = x.shape[-1] if h.dim() == 1 else x.shape[-1] // h.shape[1]
    return _linear(lambda h: dense.hankel(h, n), x, (h,), base, scale)


def toeplitz_like_linear(x: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ toeplitz_like(G, H).T`"""
    return _linear(dense.toeplitz_like, x, (G, H), base, scale)


def hankel_like_linear(x: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ hankel_like(G, H).T`"""
    return _linear(dense.hankel_like, x, (G, H), base, scale)


def vandermonde_linear(x: Tensor, v: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ vandermonde(v, n).T`, n being the number of features of x"""
    return _linear(lambda v: dense.vandermonde(v, x.shape[-1]), x, (v,), base, scale)


def vandermonde_like_linear(
    x: Tensor, v: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """`base + scale * x @ vandermonde_like(v, G, H).T`"""
    return _linear(dense.vandermonde_like, x, (v, G, H), base, scale)


def cauchy_like_linear(
    x: Tensor, v: Tensor, u: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """`base + scale * x @ cauchy_like(v, u, G, H).T`"""
    return _linear(dense.cauchy_like, x, (v, u, G, H), base, scale)


def kronecker_linear(x: Tensor, A: Tensor, B: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ kronecker(A, B).T`"""
    return _linear(dense.kronecker, x, (A, B), base, scale)


def low_rank_linear(x: Tensor, A: Tensor, B: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ low_rank(A, B).T`"""
    return _linear(dense.low_rank, x, (A, B), base, scale)


def siva_linear(
    x: Tensor,
    U: Tensor,
    s: Tensor,
    V: Tensor,
    *,
    base: Tensor | None = None,
    scale: float = 1.0,
    index: Tensor | None = None,
) -> Tensor:
    """`base + scale * x @ siva(U, s, V).T`, with s[index[t]] for token, or row of tokens, t where there is an index"""
    if index is not None:
        return _by_row(lambda x, s, **rest: siva_linear(x, U, s, V, **rest), x, s, base, scale, index)
    return _linear(dense.siva, x, (U, s, V), base, scale)


def _by_row(
    linear: Callable[..., Tensor], x: Tensor, bank: Tensor, base: Tensor | None, scale: float, index: Tensor
) -> Tensor:
    """One product after the other, each token by its row of the bank."""
    index = index.view((*index.shape, *[1] * (x.dim() - 1 - index.dim()))).expand(x.shape[:-1])
    shape = (*index.shape, linear(x[:0].reshape(0, x.shape[-1]), bank[0]).shape[-1])
    starts = [None] * index.numel() if base is None else base.expand(shape).reshape(-1, shape[-1]).unbind()
    tokens = zip(x.reshape(-1, x.shape[-1]).unbind(), index.flatten().tolist(), starts, strict=True)
    rows = [linear(token, bank[adapter], base=start, scale=scale) for token, adapter, start in tokens]
    return torch.stack(rows).reshape(shape) if rows else x.new_empty(shape)


def _linear(
    matrix: Callable[..., Tensor], x: Tensor, parameters: tuple[Tensor, ...], base: Tensor | None, scale: float
) -> Tensor:
    """`base + scale * x @ matrix(*parameters).T`"""
    result = x.dtype
    for t in (*parameters, *(() if base is None else (base,))):
        result = torch.promote_types(result, t.dtype)
    inside = wide_type(result)
    product = scale * (x.to(inside) @ matrix(*(parameter.to(inside) for parameter in parameters)).mT)
    if base is not None:
        product = product + base.to(inside)
    return product.to(result)
