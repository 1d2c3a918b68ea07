"""Block circulant matrices: a grid of circulant blocks of one size, as C3A (arXiv 2407.19342) adapts weights."""

from surm_kernels.structures.circulant import Circulant


class BlockCirculant(Circulant):
    """The grid of circulant blocks with first columns c of shape (M, K, b); b = block_size divides both sizes."""

    def __init__(self, in_features: int, out_features: int, block_size: int) -> None:
        super().__init__(in_features, out_features, block_size)
