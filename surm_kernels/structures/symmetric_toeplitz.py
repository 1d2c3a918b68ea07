"""Symmetric Toeplitz matrices: `W[i, j] = t[abs(i - j)]`."""

from collections.abc import Sequence

from torch import Tensor

from surm_kernels import _matrices
from surm_kernels.functional._product import Wide
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import TiedEntries, tied_means
from surm_kernels.structures.primitive import PrimitiveStructure, Pullback


class SymmetricToeplitz(TiedEntries, PrimitiveStructure):
    """The symmetric Toeplitz matrix `W[i, j] = t[|i - j|]`, t (n,) with n = max(in_features, out_features).

    A rectangular W is the top left part of it. That part is a rectangular Toeplitz matrix itself, so nothing is padded.
    """

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"t": (max(self.in_features, self.out_features),)}

    def primitive(self, *parameters: Tensor) -> Primitive:
        (t,) = parameters
        return _matrices.symmetric_toeplitz(t, self.out_features, self.in_features)

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback]:
        (t,) = parameters

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            (diagonals,) = inner
            assert diagonals is not None
            return (_matrices.symmetric_adjoint(diagonals.flatten(), t.shape[0], self.in_features),)

        return self.primitive(t), pullback

    @property
    def wide(self) -> Wide:
        return "repeated"

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over each pair of diagonals, of the entries present."""
        self._check_weight(weight)
        return (tied_means(self.dense, self.parameter_shapes()["t"], weight),)
