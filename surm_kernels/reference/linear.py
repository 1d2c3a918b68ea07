"""Structured products through the dense matrix, rounded once to the type of the arguments."""

import torch
from torch import Tensor

from surm_kernels.reference.dense import krylov


def circulant_linear(x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ circulant(c).T`"""
    return krylov_linear(x, c, 1.0, base=base, scale=scale)


def skew_circulant_linear(x: Tensor, s: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ skew_circulant(s).T`"""
    return krylov_linear(x, s, -1.0, base=base, scale=scale)


def block_circulant_linear(x: Tensor, c: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ block_circulant(c).T`"""
    return krylov_linear(x, c, 1.0, base=base, scale=scale)


def krylov_linear(x: Tensor, v: Tensor, f: float, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """`base + scale * x @ krylov(v, f).T`, 16-bit arguments through float32."""
    result = torch.promote_types(x.dtype, v.dtype)
    if base is not None:
        result = torch.promote_types(result, base.dtype)
    inside = torch.promote_types(result, torch.float32)
    product = scale * (x.to(inside) @ krylov(v.to(inside), f).mT)
    if base is not None:
        product = product + base.to(inside)
    return product.to(result)
