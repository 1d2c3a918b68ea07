"""Structured matrices by kernel, differentiable: the names of `functional` without `_linear`.

They raise a TypeError for a parameter that is no floating tensor and a ValueError for a shape that does not fit.
"""

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.ops import krylov as _ops


def circulant(c: Tensor) -> Tensor:
    """The n x n circulant matrix with first column c, `W[i, j] = c[(i - j) % n]`; c is (n,).

    Equivalent to `torch.from_numpy(scipy.linalg.circulant(c))`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (1,), "(n,)")
    return _matrix(c, 1)


def skew_circulant(s: Tensor) -> Tensor:
    """The n x n skew-circulant matrix with first column s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j; s is (n,).

    Equivalent to `reference.krylov(s, -1)`.
    """
    _checks.require_floating("s", s)
    _checks.require_dimensions("s", s, (1,), "(n,)")
    return _matrix(s, -1)


def block_circulant(c: Tensor) -> Tensor:
    """The M b x K b matrix whose block (p, q) is circulant with first column c[p, q]; c is (M, K, b).

    Equivalent to `torch.cat([torch.cat([circulant(block) for block in row], 1) for row in c])`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (3,), "(M, K, b)")
    return _matrix(c, 1)


def krylov(v: Tensor, f: float) -> Tensor:
    """The f-circulant matrix Z_f(v), `W[i, j] = v[i - j]`, `f * v[n + i - j]` if i < j, for any real f.

    v is (n,), or (M, K, b) for the M b x K b matrix of such blocks.
    Equivalent to `reference.krylov(v, f)`.
    """
    _checks.require_floating("v", v)
    _checks.require_dimensions("v", v, (1, 3), "(n,) or (M, K, b)")
    _checks.require_finite("f", f)
    if f in (1, -1):
        return _matrix(v, int(f))
    inside = v.to(torch.promote_types(v.dtype, torch.float32))  # so that 16-bit entries are rounded once
    return ((1 + f) / 2 * _matrix(inside, 1) + (1 - f) / 2 * _matrix(inside, -1)).to(v.dtype)


def _matrix(v: Tensor, sign: int) -> Tensor:
    blocks = v.view(1, 1, 1, -1) if v.dim() == 1 else v.unsqueeze(0)
    return _ops.krylov_dense(blocks, sign).squeeze(0)
