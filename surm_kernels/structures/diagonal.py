"""What Toeplitz and Hankel matrices share: one value a diagonal or antidiagonal, whole or in blocks."""

from collections.abc import Callable

from torch import Tensor

from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import TiedEntries, require_blocks, tied_means
from surm_kernels.structures.primitive import PrimitiveStructure


class DiagonalStructure(TiedEntries, PrimitiveStructure):
    """The matrix with one value a diagonal or antidiagonal: out_features + in_features - 1 values.

    Rectangular by nature. With `block_size` b the parameter is (out_features / b, in_features / b, 2 b - 1), the
    diagonals of square blocks.
    """

    parameter: str
    matrix: Callable[..., Primitive]

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        require_blocks(block_size, in_features, out_features)
        self.block_size = block_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        block = self.block_size
        if block is None:
            return {self.parameter: (self.out_features + self.in_features - 1,)}
        return {self.parameter: (self.out_features // block, self.in_features // block, 2 * block - 1)}

    def primitive(self, *parameters: Tensor) -> Primitive:
        return type(self).matrix(*parameters, self.block_size or self.in_features)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over each diagonal, antidiagonal of a Hankel matrix."""
        self._check_weight(weight)
        (shape,) = self.parameter_shapes().values()
        return (tied_means(self.dense, shape, weight),)
