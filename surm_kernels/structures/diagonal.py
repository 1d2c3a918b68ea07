"""What Toeplitz and Hankel matrices share: one value a diagonal or antidiagonal, whole or in blocks."""

from torch import Tensor

from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.factored_grid import FactoredGrid
from surm_kernels.structures.base import tied_means
from surm_kernels.structures.grid import GridStructure


class DiagonalStructure(GridStructure):
    """The matrix with one value a diagonal or antidiagonal: out_features + in_features - 1 values.

    Rectangular by nature. With `block_size` b the parameter is (out_features / b, in_features / b, 2 b - 1), the
    diagonals of square blocks.
    """

    def _values(self, rows: int, columns: int) -> int:
        return rows + columns - 1

    def _matrix(self, values: Tensor, rows: int, columns: int) -> Primitive:
        return type(self).matrix(values, columns)

    def factored(self, *parameters: Tensor) -> FactoredGrid:
        (values,) = parameters
        return FactoredGrid(values, None, self.kind, self.block_size or self.in_features)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over each diagonal, antidiagonal of a Hankel matrix."""
        self._check_weight(weight)
        (shape,) = self.parameter_shapes().values()
        return (tied_means(self.dense, shape, weight),)
