"""Layers with circulant weights."""

import torch

from surm_kernels.nn._constructors import BlockLinear
from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import BlockCirculant, Circulant, SkewCirculant


class CirculantLinear(BlockLinear):
    """A linear layer whose weight is circulant: max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square circulant; `block_size` asks for a grid of circulant blocks
    instead and must divide both sizes.
    """

    weight_structure = Circulant


class SkewCirculantLinear(BlockLinear):
    """A linear layer whose weight is skew-circulant; sizes and blocks as in CirculantLinear."""

    weight_structure = SkewCirculant


class BlockCirculantLinear(StructuredLinear):
    """A linear layer whose weight is a grid of circulant blocks: in_features * out_features / block_size parameters."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(BlockCirculant(in_features, out_features, block_size), bias, device, dtype)
