"""What circulant and skew-circulant share: f-circulant matrices with f = 1 or -1, whole or in blocks."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels._widening import widened
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.grid import grid_dense_adjoint
from surm_kernels.structures.base import TiedEntries, require_blocks
from surm_kernels.structures.primitive import PrimitiveStructure


class FCirculant(TiedEntries, PrimitiveStructure):
    """The f-circulant matrix Z_f(v), f = 1 or -1 by the `kind` of its blocks.

    Without `block_size` v is (n,) with n = max(in_features, out_features), and the map is the top left part of the
    square. With it v is (out_features / block_size, in_features / block_size, block_size), first columns of blocks.
    """

    kind: int
    parameter: str
    matrix: Callable[..., Primitive]

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        require_blocks(block_size, in_features, out_features)
        self.block_size = block_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        block = self.block_size
        if block is None:
            return {self.parameter: (max(self.in_features, self.out_features),)}
        return {self.parameter: (self.out_features // block, self.in_features // block, block)}

    def primitive(self, *parameters: Tensor) -> Primitive:
        if self.block_size is not None:
            return type(self).matrix(*parameters)
        return type(self).matrix(*parameters, self.out_features, self.in_features)

    @property
    def wide(self) -> Wide:
        return "repeated" if self.block_size is None and self.in_features != self.out_features else "nothing"

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The signed mean over each f-circulant diagonal, of the entries present."""
        self._check_weight(weight)
        inside = widened(weight)
        block, entries = self.block_size, self.block_size or min(weight.shape)  # entries a diagonal has
        if block is None:
            block = max(weight.shape)
            inside = torch_functional.pad(inside, (0, block - self.in_features, 0, block - self.out_features))
        means = grid_dense_adjoint(inside.unsqueeze(0), self.kind, block, block) / entries
        (shape,) = self.parameter_shapes().values()
        return (means.view(shape).to(weight.dtype),)
