"""Hankel matrices: `W[i, j] = h[i + j]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import HANKEL
from surm_kernels.structures.diagonal import DiagonalStructure


class Hankel(DiagonalStructure):
    """The Hankel matrix with antidiagonals h, from the top left to the bottom right, or a grid of such blocks."""

    kind = HANKEL
    parameter = "h"
    matrix = _matrices.hankel
