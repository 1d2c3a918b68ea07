"""What circulant and skew-circulant share: f-circulant matrices with f = 1 or -1, whole or in blocks."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels import _matrices
from surm_kernels._widening import widened
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.factored_grid import FactoredGrid
from surm_kernels.ops.grid import grid_dense_adjoint
from surm_kernels.structures.grid import GridStructure
from surm_kernels.structures.primitive import Pullback


class FCirculant(GridStructure):
    """The f-circulant matrix Z_f(v), f = 1 or -1 by the `kind` of its blocks.

    Without `block_size` v is (n,) with n = max(in_features, out_features), and the map is the top left part of the
    square. With it v is (out_features / block_size, in_features / block_size, block_size), first columns of blocks.
    """

    def _values(self, rows: int, columns: int) -> int:
        return max(rows, columns)

    def _matrix(self, values: Tensor, rows: int, columns: int) -> Primitive:
        return type(self).matrix(values, rows, columns)

    @property
    def is_cut(self) -> bool:
        """Whether W is a part of the square."""
        return self.block_size is None and self.in_features != self.out_features

    def factored(self, *parameters: Tensor) -> FactoredGrid | None:
        (v,) = parameters
        return None if self.is_cut else FactoredGrid(v, None, self.kind, v.shape[-1])

    @property
    def wide(self) -> Wide:
        return "repeated" if self.is_cut else "nothing"

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback] | None:
        if not self.is_cut:
            return super().differentiated(*parameters)
        (v,), sign = parameters, 1 if self.kind == CIRCULANT else -1

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            (diagonals,) = inner
            assert diagonals is not None
            return (_matrices.cut_adjoint(diagonals.flatten(), sign, v.shape[0], self.in_features),)

        return self._only_primitive(v), pullback

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
