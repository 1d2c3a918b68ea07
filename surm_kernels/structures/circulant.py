"""Circulant matrices: `W[i, j] = c[(i - j) % n]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.structures.f_circulant import FCirculant


class Circulant(FCirculant):
    """The circulant matrix with first column c, or a grid of such blocks."""

    kind = CIRCULANT
    parameter = "c"
    matrix = _matrices.circulant
