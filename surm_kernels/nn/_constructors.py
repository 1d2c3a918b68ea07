"""The constructors that layers share; a layer names the structure of its weight."""

from collections.abc import Callable

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import Structure


class PlainLinear(StructuredLinear):
    """A layer that its sizes alone describe."""

    weight_structure: Callable[[int, int], Structure]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(self.weight_structure(in_features, out_features), bias, device, dtype)


class BlockLinear(StructuredLinear):
    """A layer whose weight may be cut into square blocks."""

    weight_structure: Callable[[int, int, int | None], Structure]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        block_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(self.weight_structure(in_features, out_features, block_size), bias, device, dtype)


class RankedLinear(StructuredLinear):
    """A layer whose weight has a rank."""

    weight_structure: Callable[[int, int, int], Structure]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(self.weight_structure(in_features, out_features, rank), bias, device, dtype)
