"""Skew-circulant matrices: circulant with the sign changed above the diagonal."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import SKEW_CIRCULANT
from surm_kernels.structures.f_circulant import FCirculant


class SkewCirculant(FCirculant):
    """The skew-circulant matrix with first column s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j, or a grid of such.

    Shapes of s as of c in Circulant.
    """

    kind = SKEW_CIRCULANT
    parameter = "s"
    matrix = _matrices.skew_circulant
