"""Kronecker products beside the dense matrix of torch.kron, as PEFT's LoKr has it, and beside two matmuls."""

import math

import torch
from torch import Tensor

from surm_kernels import functional
from surm_kernels.command.bench.case import OURS, Case, Claim, Method, Point, given, point

TORCH_KRON = "torch.kron"
MATMUL = "two matmuls"


def torch_kron(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The dense matrix, then one product."""
    return x @ torch.kron(a, b).T


def two_matmuls(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A X B^T with each token as a matrix X; B goes first, the order of fewer multiplications for `factors`."""
    return (a @ (x.unflatten(-1, (a.shape[1], b.shape[1])) @ b.T)).flatten(-2)


def factors(point: Point) -> tuple[tuple[int, ...], ...]:
    """SURM's shapes, 32 x 24 and 24 x 32 for 768: the divisors nearest to the square root."""
    n = point.in_features
    small = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    return ((n // small, small), (small, n // small))


def _scaled(shape: tuple[int, ...], point: Point, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) / shape[1] ** 0.5


KRONECKER = Method(OURS, given(functional.kronecker_linear))
KRON = Method(TORCH_KRON, given(torch_kron))
MATMULS = Method(MATMUL, given(two_matmuls))

SIZES = (point(768, tokens=4096),)

CASES = (
    Case(
        "kronecker-training",
        "Kronecker, forward + backward",
        (KRONECKER, KRON, MATMULS),
        given(torch_kron),
        factors,
        SIZES,
        SIZES,
        (torch.float32,),
        gradients=True,
        claims=(Claim(TORCH_KRON, 4.0, 4.0), Claim(MATMUL, 1.0, 1.0)),
        draw=_scaled,
    ),
)
