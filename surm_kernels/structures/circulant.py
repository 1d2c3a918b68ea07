"""Circulant matrices: `W[i, j] = c[(i - j) % n]`."""

from surm_kernels.structures.krylov import KrylovStructure


class Circulant(KrylovStructure):
    """The circulant matrix with first column c, or a grid of such blocks."""

    sign = 1
    parameter = "c"
