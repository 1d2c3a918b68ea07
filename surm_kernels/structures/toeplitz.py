"""Toeplitz matrices: `W[i, j] = t[i - j + n - 1]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import TOEPLITZ
from surm_kernels.structures.diagonal import DiagonalStructure


class Toeplitz(DiagonalStructure):
    """The Toeplitz matrix with diagonals t, from the top right to the bottom left, `W[i, j] = t[i - j + n - 1]`.

    t is (m + n - 1,) for m = out_features and n = in_features; with a block_size b, which divides both, W is a grid of
    square blocks and t is (M, K, 2 b - 1).
    """

    kind = TOEPLITZ
    parameter = "t"
    matrix = _matrices.toeplitz
