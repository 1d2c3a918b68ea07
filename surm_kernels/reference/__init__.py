"""Plain PyTorch: every matrix by its index formula, every product through that matrix, every operator by torch.fft.

The matrices and products are what the tests compare with; the operators in `reference.ops` run wherever a
compiled kernel does not.
"""

from surm_kernels.reference.dense import (
    block_circulant,
    cauchy_like,
    circulant,
    hankel,
    hankel_like,
    kronecker,
    krylov,
    low_rank,
    skew_circulant,
    symmetric_toeplitz,
    toeplitz,
    toeplitz_like,
    vandermonde,
    vandermonde_like,
)
from surm_kernels.reference.linear import (
    block_circulant_linear,
    cauchy_like_linear,
    circulant_linear,
    hankel_like_linear,
    hankel_linear,
    kronecker_linear,
    krylov_linear,
    low_rank_linear,
    skew_circulant_linear,
    symmetric_toeplitz_linear,
    toeplitz_like_linear,
    toeplitz_linear,
    vandermonde_like_linear,
    vandermonde_linear,
)

__all__ = [
    "block_circulant",
    "block_circulant_linear",
    "cauchy_like",
    "cauchy_like_linear",
    "circulant",
    "circulant_linear",
    "hankel",
    "hankel_like",
    "hankel_like_linear",
    "hankel_linear",
    "kronecker",
    "kronecker_linear",
    "krylov",
    "krylov_linear",
    "low_rank",
    "low_rank_linear",
    "skew_circulant",
    "skew_circulant_linear",
    "symmetric_toeplitz",
    "symmetric_toeplitz_linear",
    "toeplitz",
    "toeplitz_like",
    "toeplitz_like_linear",
    "toeplitz_linear",
    "vandermonde",
    "vandermonde_like",
    "vandermonde_like_linear",
    "vandermonde_linear",
]
