"""What circulant and skew-circulant share: f-circulant matrices with f = 1 or -1, whole or in blocks."""

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels import dense, functional
from surm_kernels.functional._product import product
from surm_kernels.functional.toeplitz import wide_for
from surm_kernels.ops import krylov as _ops
from surm_kernels.ops import toeplitz as _toeplitz_ops
from surm_kernels.structures.base import TiedEntries, check_tokens, require_blocks, transform_work
from surm_kernels.structures.primitive import Primitive, PrimitiveStructure


class KrylovStructure(TiedEntries, PrimitiveStructure):
    """The f-circulant matrix Z_f(v), f = `sign`.

    Without `block_size` v is (n,) with n = max(in_features, out_features), and the map is the top left part of the
    square. With it v is (out_features / block_size, in_features / block_size, block_size), first columns of blocks.
    """

    sign: int
    parameter: str

    def __init__(self, in_features: int, out_features: int, block_size: int | None = None) -> None:
        super().__init__(in_features, out_features)
        require_blocks(block_size, in_features, out_features)
        self.block_size = block_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        block = self.block_size
        if block is None:
            return {self.parameter: (max(self.in_features, self.out_features),)}
        return {self.parameter: (self.out_features // block, self.in_features // block, block)}

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        (v,) = parameters
        if self.block_size is not None or self.in_features == self.out_features:
            return functional.krylov_linear(x, v, self.sign, base=base, scale=scale)
        check_tokens(x, self.in_features)
        sizes = self.in_features, self.out_features
        return product(self._rectangle, x, {self.parameter: v}, *sizes, base, scale, wide=wide_for(x, v))

    def _rectangle(self, rows: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
        t = self._diagonals(v).view(1, 1, 1, -1)
        return _toeplitz_ops.toeplitz(rows, t, base, self.in_features, scale, False, False)

    def primitive(self, *parameters: Tensor, scale: float) -> Primitive:
        (v,) = parameters
        if self.block_size is not None:
            return Primitive(_ops.form, (v.unsqueeze(0),), (self.sign, scale))
        if self.in_features == self.out_features:
            return Primitive(_ops.form, (v.view(1, 1, 1, -1),), (self.sign, scale))
        t = self._diagonals(v).view(1, 1, 1, -1)
        return Primitive(_toeplitz_ops.form, (t,), (self.in_features, scale, False))

    @property
    def repeats(self) -> bool:
        return self.block_size is None and self.in_features != self.out_features

    def _diagonals(self, v: Tensor) -> Tensor:
        """Those of the top left part of the square: a Toeplitz matrix, which needs no padding of x."""
        above = v[v.shape[0] - self.in_features + 1 :]
        return torch.cat([above if self.sign == 1 else -above, v[: self.out_features]])

    def token_work(self) -> float:
        if self.block_size is None:
            square = self.in_features == self.out_features
            return 2 * transform_work(self.in_features if square else self.in_features + self.out_features)
        blocks = (self.in_features + self.out_features) // self.block_size
        return blocks * transform_work(self.block_size) + self.count()

    def dense(self, *parameters: Tensor) -> Tensor:
        (v,) = parameters
        return dense.krylov(v, self.sign)[: self.out_features, : self.in_features]

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The signed mean over each f-circulant diagonal, of the entries present."""
        self._check_weight(weight)
        inside = weight.to(torch.promote_types(weight.dtype, torch.float32))
        block, entries = self.block_size, self.block_size or min(weight.shape)  # entries a diagonal has
        if block is None:
            block = max(weight.shape)
            inside = torch_functional.pad(inside, (0, block - self.in_features, 0, block - self.out_features))
        means = _ops.krylov_dense_adjoint(inside.unsqueeze(0), block, self.sign) / entries
        (shape,) = self.parameter_shapes().values()
        return (means.view(shape).to(weight.dtype),)

    def extra_repr(self) -> str:
        blocks = "" if self.block_size is None else f", block_size={self.block_size}"
        return super().extra_repr() + blocks
