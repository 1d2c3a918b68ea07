"""Layers with Toeplitz and Hankel weights."""

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import Hankel, SymmetricToeplitz, Toeplitz


class ToeplitzLinear(StructuredLinear):
    """A linear layer whose weight is Toeplitz: in_features + out_features - 1 parameters.

    `block_size` asks for a grid of square Toeplitz blocks instead and must divide both sizes.
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
        super().__init__(Toeplitz(in_features, out_features, block_size), bias, device, dtype)


class SymmetricToeplitzLinear(StructuredLinear):
    """A linear layer whose weight is symmetric Toeplitz: max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(SymmetricToeplitz(in_features, out_features), bias, device, dtype)


class HankelLinear(StructuredLinear):
    """A linear layer whose weight is Hankel; sizes and blocks as in ToeplitzLinear."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        block_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(Hankel(in_features, out_features, block_size), bias, device, dtype)
