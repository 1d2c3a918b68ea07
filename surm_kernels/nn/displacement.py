"""Layers with weights of low displacement rank."""

from surm_kernels.nn._constructors import PlainLinear, RankedLinear
from surm_kernels.structures import CauchyLike, HankelLike, ToeplitzLike, Vandermonde, VandermondeLike


class ToeplitzLikeLinear(RankedLinear):
    """A linear layer whose weight is Toeplitz-like: 2 rank max(in_features, out_features) parameters.

    A rectangular weight is the top left part of the square one.
    """

    weight_structure = ToeplitzLike


class HankelLikeLinear(RankedLinear):
    """A linear layer whose weight is Hankel-like; sizes as in ToeplitzLikeLinear."""

    weight_structure = HankelLike


class VandermondeLinear(PlainLinear):
    """A linear layer whose weight is Vandermonde: out_features parameters.

    Its output starts with a variance between 1 and 2 where that of torch.nn.Linear is 1/3 (structures.Vandermonde).
    """

    weight_structure = Vandermonde


class VandermondeLikeLinear(RankedLinear):
    """A linear layer whose weight is Vandermonde-like.

    It has out_features + rank (in_features + out_features) parameters.
    """

    weight_structure = VandermondeLike


class CauchyLikeLinear(RankedLinear):
    """A linear layer whose weight is Cauchy-like: (rank + 1) (in_features + out_features) parameters."""

    weight_structure = CauchyLike
