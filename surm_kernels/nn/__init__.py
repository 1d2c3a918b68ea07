"""Layers that take the place of torch.nn.Linear."""

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
