"""Circulant matrices: `W[i, j] = c[(i - j) % n]`."""

from surm_kernels import _matrices
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.structures.f_circulant import FCirculant


class Circulant(FCirculant):
    """The circulant matrix with first column c, `W[i, j] = c[(i - j) % n]`, or a grid of such blocks.

    c is (n,) with n = max(in_features, out_features), and the map the top left part of the square; with a block_size b,
    which divides both sizes, c is (M, K, b).
    """

    kind = CIRCULANT
    parameter = "c"
    matrix = _matrices.circulant
