"""Toeplitz matrices: `W[i, j] = t[i - j + n - 1]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import TOEPLITZ
from surm_kernels.structures.diagonal import DiagonalStructure


class Toeplitz(DiagonalStructure):
    """The Toeplitz matrix with diagonals t, from the top right to the bottom left, or a grid of such blocks."""

    kind = TOEPLITZ
    parameter = "t"
    matrix = _matrices.toeplitz
