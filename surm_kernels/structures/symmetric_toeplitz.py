"""Symmetric Toeplitz matrices: `W[i, j] = t[abs(i - j)]`."""

import torch
from torch import Tensor

from surm_kernels import dense
from surm_kernels.functional._product import product
from surm_kernels.functional.toeplitz import wide_for
from surm_kernels.ops import toeplitz as _ops
from surm_kernels.structures.base import TiedEntries, tied_means, transform_work
from surm_kernels.structures.primitive import Primitive, PrimitiveStructure


class SymmetricToeplitz(TiedEntries, PrimitiveStructure):
    """The symmetric Toeplitz matrix with first column t, (n,) with n = max(in_features, out_features), or its top left.

    That part is a rectangular Toeplitz matrix itself, so nothing is padded.
    """

    @property
    def repeats(self) -> bool:
        return True

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"t": (max(self.in_features, self.out_features),)}

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        (t,) = parameters
        sizes = self.in_features, self.out_features
        return product(self.operator, x, {"t": t}, *sizes, base, scale, wide=wide_for(x, t))

    def operator(self, rows: Tensor, t: Tensor, base: Tensor | None, scale: float) -> Tensor:
        """The product in operator form, (1, T, in_features) to (1, T, out_features); t may be wider than the rest."""
        diagonals = self._diagonals(t).view(1, 1, 1, -1)
        return _ops.toeplitz(rows, diagonals, base, self.in_features, scale, False, False)

    def primitive(self, *parameters: Tensor, scale: float) -> Primitive:
        (t,) = parameters
        return Primitive(_ops.form, (self._diagonals(t).view(1, 1, 1, -1),), (self.in_features, scale, False))

    def token_work(self) -> float:
        return 2 * transform_work(self.in_features + self.out_features)

    def dense(self, *parameters: Tensor) -> Tensor:
        (t,) = parameters
        wide = t.to(torch.promote_types(t.dtype, torch.float32))
        return dense.toeplitz(self._diagonals(wide), self.in_features).to(t.dtype)

    def _diagonals(self, t: Tensor) -> Tensor:
        """The values on all diagonals, (out_features + in_features - 1,), as a Toeplitz matrix has them."""
        return torch.cat([t[1 : self.in_features].flip(0), t[: self.out_features]])

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over each pair of diagonals, of the entries present."""
        self._check_weight(weight)
        return (tied_means(self.dense, self.parameter_shapes()["t"], weight),)
