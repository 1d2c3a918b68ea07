"""Layers with circulant weights."""

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import BlockCirculant, Circulant, SkewCirculant


class CirculantLinear(StructuredLinear):
    """A linear layer whose weight is circulant: max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square circulant; `block_size` asks for a grid of circulant blocks
    instead and must divide both sizes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        block_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(Circulant(in_features, out_features, block_size), bias, device, dtype)


class SkewCirculantLinear(StructuredLinear):
    """A linear layer whose weight is skew-circulant; sizes and blocks as in CirculantLinear."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        block_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(SkewCirculant(in_features, out_features, block_size), bias, device, dtype)


class BlockCirculantLinear(StructuredLinear):
    """A linear layer whose weight is a grid of circulant blocks: in_features * out_features / block_size parameters."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(BlockCirculant(in_features, out_features, block_size), bias, device, dtype)
