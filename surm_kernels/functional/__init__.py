"""Structured products in the style of torch.nn.functional: `base + scale * x @ W.T` over the last dimension of x.

They share these rules. x has any leading shape, (n,) included; the output has the same leading shape. Tensors are
float64, float32, bfloat16 or float16 on one device; different types promote as in torch, and autocast applies to all
but float64. 16-bit products are computed in float32 and rounded once, base included (low_rank_linear and siva_linear,
of two ordinary matrix products, round between them too). base has the output's shape or is broadcastable to it, such
as a bias of shape (m,). A row of x that is not finite spoils that row of the output alone.

They raise a TypeError for an argument that is no tensor of those types (no real number for scale and f), and a
ValueError for a shape, value or device that does not fit.
"""

from surm_kernels.functional.circulant import (
    block_circulant_linear,
    circulant_linear,
    krylov_linear,
    skew_circulant_linear,
)
from surm_kernels.functional.generated import cauchy_like_linear, vandermonde_like_linear, vandermonde_linear
from surm_kernels.functional.kronecker import kronecker_linear
from surm_kernels.functional.ldr import hankel_like_linear, toeplitz_like_linear
from surm_kernels.functional.low_rank import low_rank_linear
from surm_kernels.functional.siva import siva_linear
from surm_kernels.functional.toeplitz import hankel_linear, symmetric_toeplitz_linear, toeplitz_linear

__all__ = [
    "block_circulant_linear",
    "cauchy_like_linear",
    "circulant_linear",
    "hankel_like_linear",
    "hankel_linear",
    "kronecker_linear",
    "krylov_linear",
    "low_rank_linear",
    "siva_linear",
    "skew_circulant_linear",
    "symmetric_toeplitz_linear",
    "toeplitz_like_linear",
    "toeplitz_linear",
    "vandermonde_like_linear",
    "vandermonde_linear",
]
