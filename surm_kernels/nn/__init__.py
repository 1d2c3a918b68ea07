"""Layers that take the place of torch.nn.Linear: `x @ W.T + bias`, (..., in_features) to (..., out_features).

Their constructors take (in_features, out_features, bias=True, device=None, dtype=None) and their structure's options by
keyword, and raise as the structure does: a TypeError for a size that is no int, a ValueError for one that does not fit.
Calls raise the same for an x of another type or shape. `to_linear()` gives the ordinary layer, `from_linear(linear)`
the nearest one, or a NotImplementedError where no projection is known.
"""

from surm_kernels.nn.adapted_linear import AdaptedLinear
from surm_kernels.nn.circulant import BlockCirculantLinear, CirculantLinear, SkewCirculantLinear
from surm_kernels.nn.displacement import (
    CauchyLikeLinear,
    HankelLikeLinear,
    ToeplitzLikeLinear,
    VandermondeLikeLinear,
    VandermondeLinear,
)
from surm_kernels.nn.hydra import HydraLinear
from surm_kernels.nn.product import KroneckerLinear, LowRankLinear
from surm_kernels.nn.siva import SivaLinear
from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.nn.toeplitz import HankelLinear, SymmetricToeplitzLinear, ToeplitzLinear

__all__ = [
    "AdaptedLinear",
    "BlockCirculantLinear",
    "CauchyLikeLinear",
    "CirculantLinear",
    "HankelLikeLinear",
    "HankelLinear",
    "HydraLinear",
    "KroneckerLinear",
    "LowRankLinear",
    "SivaLinear",
    "SkewCirculantLinear",
    "StructuredLinear",
    "SymmetricToeplitzLinear",
    "ToeplitzLikeLinear",
    "ToeplitzLinear",
    "VandermondeLikeLinear",
    "VandermondeLinear",
]
