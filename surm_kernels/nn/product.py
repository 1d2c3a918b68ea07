"""Layers whose weights are products of two small matrices."""

import torch

from surm_kernels.nn._constructors import RankedLinear
from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import Kronecker, LowRank


class KroneckerLinear(StructuredLinear):
    """A linear layer whose weight is the Kronecker product of A (p, q) and B (out_features / p, in_features / q).

    `left_shape` is (p, q), by default near the square roots of the sizes: 2 * 768 parameters at 768 x 768.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        left_shape: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(Kronecker(in_features, out_features, left_shape), bias, device, dtype)


class LowRankLinear(RankedLinear):
    """A linear layer whose weight has low rank: rank (in_features + out_features) parameters."""

    weight_structure = LowRank
