"""Skew-circulant matrices: circulant with the sign changed above the diagonal."""

from surm_kernels.structures.krylov import KrylovStructure


class SkewCirculant(KrylovStructure):
    """The skew-circulant matrix with first column s, or a grid of such blocks."""

    sign = -1
    parameter = "s"
