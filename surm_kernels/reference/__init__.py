"""Plain PyTorch: every matrix by its index formula, every product through that matrix, every operator by torch.fft.

The matrices and products are what the tests compare with; the operators in `reference.ops` run wherever a
compiled kernel does not.
"""

from surm_kernels.reference.dense import block_circulant, circulant, krylov, skew_circulant
from surm_kernels.reference.linear import (
    block_circulant_linear,
    circulant_linear,
    krylov_linear,
    skew_circulant_linear,
)

__all__ = [
    "block_circulant",
    "block_circulant_linear",
    "circulant",
    "circulant_linear",
    "krylov",
    "krylov_linear",
    "skew_circulant",
    "skew_circulant_linear",
]
