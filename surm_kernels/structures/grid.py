"""What structures share that are one matrix of a kind, or a grid of blocks of it: circulant to Hankel."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from surm_kernels import _checks
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import TiedEntries
from surm_kernels.structures.primitive import PrimitiveStructure


class GridStructure(TiedEntries, PrimitiveStructure):
    """One matrix or, with `block_size` b, a grid of out_features / b times in_features / b square blocks.

    The parameter has the values of the matrix, (size,), or of every block, (out_features / b, in_features / b, size).
    """

    #: Of the blocks, see surm_kernels.block_kinds.
    kind: int
    #: The parameter's name.
    parameter: str
    #: Of surm_kernels._matrices.
    matrix: Callable[..., Primitive]

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        if block_size is not None:
            _checks.require_size("block_size", block_size)
            if in_features % block_size or out_features % block_size:
                raise ValueError(
                    f"block_size must divide in_features and out_features, "
                    f"got {block_size} for {in_features} and {out_features}"
                )
        self.block_size = block_size

    @abstractmethod
    def _values(self, rows: int, columns: int) -> int:
        """How many values a matrix of this size has."""

    @abstractmethod
    def _matrix(self, values: Tensor, rows: int, columns: int) -> Primitive:
        """The matrix of this size, or the grid of such blocks."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        if (block := self.block_size) is None:
            return {self.parameter: (self._values(self.out_features, self.in_features),)}
        return {self.parameter: (self.out_features // block, self.in_features // block, self._values(block, block))}

    def primitive(self, *parameters: Tensor) -> Primitive:
        (values,) = parameters
        return self._matrix(values, self.block_size or self.out_features, self.block_size or self.in_features)
