"""Vandermonde products, by panels of a generated matrix, beside the whole matrix under autograd."""

import torch
from torch import Tensor

from surm_kernels import functional
from surm_kernels.command.bench.case import OURS, Case, Claim, MemoryCase, MemoryClaim, Method, Point, given, point

POWERS = "powers, then matmul"


def dense_vandermonde(x: Tensor, v: Tensor) -> Tensor:
    """The matrix v[i] ** j as torch's users write it, then one product."""
    return x @ (v[:, None] ** torch.arange(x.shape[-1], dtype=v.dtype, device=v.device)).T


def _nodes(shape: tuple[int, ...], point: Point, generator: torch.Generator) -> Tensor:
    """Nodes of magnitude 0.9 to 1, of either sign.

    Up to 768 powers none is a subnormal number; those of smaller nodes are, and slow the rival's matrix product down
    by more than any kernel could.
    """
    nodes = 2 * torch.rand(shape, generator=generator) - 1
    return nodes.sign() * (0.9 + 0.1 * nodes.abs())


VANDERMONDE = Method(OURS, given(functional.vandermonde_linear))
BY_POWERS = Method(POWERS, given(dense_vandermonde))

SIZES = (point(192, tokens=4096), point(768, tokens=4096))

TRAINING = Case(
    "vandermonde-training",
    "Vandermonde, forward + backward",
    (VANDERMONDE, BY_POWERS),
    given(dense_vandermonde),
    lambda point: ((point.out_features,),),
    SIZES,
    (SIZES[0],),
    (torch.float32,),
    gradients=True,
    claims=(Claim(POWERS, 1.0, 1.0),),
    draw=_nodes,
)

CASES = (TRAINING,)

MEMORY_CASES = (
    MemoryCase(
        "memory-vandermonde",
        TRAINING,
        (VANDERMONDE, BY_POWERS),
        SIZES,
        (),
        MemoryClaim(1 / 3, POWERS),
    ),
)
