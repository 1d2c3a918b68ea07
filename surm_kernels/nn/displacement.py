"""Layers with weights of low displacement rank."""

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import CauchyLike, HankelLike, ToeplitzLike, Vandermonde, VandermondeLike


class ToeplitzLikeLinear(StructuredLinear):
    """A linear layer whose weight is Toeplitz-like: 2 rank max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square one.
    """

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
        super().__init__(ToeplitzLike(in_features, out_features, rank), bias, device, dtype)


class HankelLikeLinear(StructuredLinear):
    """A linear layer whose weight is Hankel-like; sizes as in ToeplitzLikeLinear."""

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
        super().__init__(HankelLike(in_features, out_features, rank), bias, device, dtype)


class VandermondeLinear(StructuredLinear):
    """A linear layer whose weight is Vandermonde: out_features parameters.

    Its output starts with a variance between 1 and 2 where that of torch.nn.Linear is 1/3 (structures.Vandermonde).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(Vandermonde(in_features, out_features), bias, device, dtype)


class VandermondeLikeLinear(StructuredLinear):
    """A linear layer whose weight is Vandermonde-like.

    It has out_features + rank (in_features + out_features) parameters.
    """

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
        super().__init__(VandermondeLike(in_features, out_features, rank), bias, device, dtype)


class CauchyLikeLinear(StructuredLinear):
    """A linear layer whose weight is Cauchy-like: (rank + 1) (in_features + out_features) parameters."""

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
        super().__init__(CauchyLike(in_features, out_features, rank), bias, device, dtype)
