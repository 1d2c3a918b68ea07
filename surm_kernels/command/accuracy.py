"""How far a result may be from the exact one: normwise error against float64, and its limit for each type."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from surm_kernels import _environment

FLOAT32_LIMIT = 2e-6
LIMITS = {torch.float64: 1e-14, torch.float32: FLOAT32_LIMIT}
ROUNDING_FACTOR = 1.05  # 16-bit results: times the error of rounding the exact answer
ROUNDINGS_FACTORS = {
    1: ROUNDING_FACTOR,
    2: 1.5,
    3: 1.8,
    4: 2.1,
}  # rounded more often: they add as their squares

TENSOR_CORES_FACTOR = 1.2  # the same on a GPU, which transforms on tensor cores where they serve


@dataclass(frozen=True)
class Deviation:
    """A normwise error and what is allowed; `share` compares results whose limits differ."""

    error: float
    limit: float

    @property
    def share(self) -> float:
        """The error as a multiple of the limit."""
        return self.error / self.limit

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def error(got: Tensor, exact: Tensor) -> float:
    """The normwise relative error; infinite for another shape, a result that is not finite, or an exact zero missed."""
    if got.shape != exact.shape:
        return math.inf
    distance, size = (got.double() - exact).norm().item(), exact.norm().item()
    if not math.isfinite(distance):
        return math.inf
    return distance / size if size else (0.0 if distance == 0 else math.inf)


def factor(dtype: torch.dtype, device_type: str, roundings: int = 1) -> float:
    """What is allowed of a result in 16 bits, as a multiple of the error of rounding the exact answer."""
    precise = device_type != "cuda" or _environment.read("SURM_KERNELS_GPU_PRECISION") == "float32"
    if precise or dtype.itemsize != 2:
        return ROUNDINGS_FACTORS[roundings]
    return max(ROUNDINGS_FACTORS[roundings], TENSOR_CORES_FACTOR)


def deviation(got: Tensor, exact: Tensor, roundings: int = 1) -> Deviation:
    """The error of a result, with the limit for its type; `exact` is float64.

    The kernels compute inside float32 and round a 16-bit result once; what is made of two products has two roundings,
    SiVA's gradient three.
    """
    limit = LIMITS.get(got.dtype)
    if limit is None:
        limit = factor(got.dtype, got.device.type, roundings) * error(exact.to(got.dtype), exact) + FLOAT32_LIMIT
    return Deviation(error(got, exact), limit)


def worst(deviations: Iterable[Deviation]) -> Deviation:
    """The deviation that takes most of its limit."""
    return max(deviations, key=lambda one: one.share)
