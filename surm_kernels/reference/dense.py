"""Structured matrices by their index formula, one gather each."""

import torch
from torch import Tensor


def circulant(c: Tensor) -> Tensor:
    """The circulant matrix with first column c: `W[i, j] = c[(i - j) % n]`."""
    return krylov(c, 1.0)


def skew_circulant(s: Tensor) -> Tensor:
    """The skew-circulant matrix with first column s: `W[i, j] = s[i - j]` if i >= j, else `-s[n + i - j]`."""
    return krylov(s, -1.0)


def block_circulant(c: Tensor) -> Tensor:
    """The M b x K b matrix of circulant blocks: block (p, q) has first column `c[p, q]`; c is (M, K, b)."""
    return krylov(c, 1.0)


def krylov(v: Tensor, f: float) -> Tensor:
    """The f-circulant matrix Z_f(v): `W[i, j] = v[i - j]` if i >= j, else `f * v[n + i - j]`.

    v is (n,), or (..., M, K, b) for a matrix of M x K such blocks.
    """
    size = v.shape[-1]
    index = torch.arange(size, device=v.device)
    diagonal = index[:, None] - index[None, :]
    entries = v[..., diagonal % size]
    entries = torch.where(diagonal < 0, f * entries, entries)
    if v.dim() == 1:
        return entries
    return entries.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
