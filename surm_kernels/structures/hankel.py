"""Hankel matrices: `W[i, j] = h[i + j]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import HANKEL
from surm_kernels.structures.diagonal import DiagonalStructure


class Hankel(DiagonalStructure):
    """The Hankel matrix with antidiagonals h, from the top left to the bottom right, `W[i, j] = h[i + j]`.

    Shapes of h, and blocks, as of t in Toeplitz.
    """

    kind = HANKEL
    parameter = "h"
    matrix = _matrices.hankel
