"""What structures share whose map is a product of several simple ones: the operator says it, all else follows."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.functional._product import composed
from surm_kernels.structures.base import Structure


class ComposedStructure(Structure):
    """A structure given by how it acts on tokens."""

    @abstractmethod
    def operator(self, rows: Tensor, *rest: Any) -> Tensor:
        """`(rows, *parameters, base, scale)` -> `base + scale * rows @ W.T`.

        Rows are (1, T, in_features), the result is (1, T, out_features); all tensors have one type, float32 at least.
        """

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        sizes = self.out_features, self.in_features
        return composed(self.operator, x, self._named(parameters), sizes, base, scale)

    def dense(self, *parameters: Tensor) -> Tensor:
        """The products of the unit vectors."""
        wide = [widened(parameter) for parameter in parameters]
        identity = torch.eye(self.in_features, dtype=wide[0].dtype, device=wide[0].device).unsqueeze(0)
        return self.operator(identity, *wide, None, 1.0).squeeze(0).mT.to(parameters[0].dtype)

    def merge_work(self) -> float:
        return self.in_features * self.token_work()
