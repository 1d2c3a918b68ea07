"""The step a user takes: SURM, SiVA and HyDRA on a frozen layer, from one token to many, in both types.

Beside it the same layer alone and with PEFT's LoRA; and one token through it in inference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surm_kernels import reference
from surm_kernels.command.bench.case import BOTH, Case, Claim, Point, point
from surm_kernels.command.bench.families import hydra
from surm_kernels.command.bench.families.adapted import (
    FROZEN,
    ONE_TOKEN,
    PEFT_LORA,
    ROUNDINGS,
    Make,
    adapted_case,
    inference_case,
    siva_matrix,
)
from surm_kernels.structures import Circulant, CirculantProduct, Siva, Structure, ToeplitzProduct

TOKENS = (1, 8, 64, 512, 2048, 8192)
SIZES = tuple(point(768, tokens=tokens) for tokens in TOKENS)
OTHER_SIZES = tuple(point(n, tokens=tokens) for n in (384, 4096) for tokens in (1, 64, 512))
QUICK = (SIZES[2], SIZES[4])
LIMIT_MARGIN = 1.1  # a step of SiVA may take so many times its flop limit


@dataclass(frozen=True)
class Kind:
    """An update that users train: its structure at a point, and its dense matrix from (point, *parameters)."""

    name: str
    title: str
    make: Make
    matrix: Callable[..., Tensor]


def _siva(point: Point) -> Siva:
    return Siva(point.in_features, point.out_features, max(1, min(point.in_features, point.out_features) // 2))


def _hydra(point: Point) -> Structure:
    return hydra.structure(point)


PLAIN_CIRCULANT = Kind(
    "circulant",
    "circulant",
    lambda point: Circulant(point.in_features, point.out_features),
    lambda point, c: reference.circulant(c),
)
CIRCULANT = Kind(
    "surm",
    "SURM circulant",
    lambda point: CirculantProduct(point.in_features, point.out_features),
    lambda point, r1, r2: reference.circulant(r1 * r2),
)
TOEPLITZ = Kind(
    "surm-toeplitz",
    "SURM Toeplitz",
    lambda point: ToeplitzProduct(point.in_features, point.out_features),
    lambda point, t1, t2: reference.symmetric_toeplitz(t2) @ reference.symmetric_toeplitz(t1),
)
HYDRA = Kind("hydra", "HyDRA", _hydra, lambda point, pool: hydra.gathered_matrix(point)(pool))
SIVA = Kind("siva-half", "SiVA k = n / 2", _siva, lambda point, s: siva_matrix(_siva(point), s))


def siva_flop_limit(tokens: int, n: int = 768) -> float:
    """The flops of a step with k = n / 2 over those of the frozen layer, 4 T n^2, by the strategy that has fewer.

    Direct adds 8 T n k, merged 4 T n k and 2 n^2 k for the weight.
    """
    k = n / 2
    return 1 + min(2 * k / n, k / n + k / (2 * tokens))


def _circulant_claims(dtype: torch.dtype) -> tuple[Claim, ...]:
    many = (512, 2048, 8192)
    least = 1 / 1.12
    frozen = (Claim(FROZEN, least, least, dtype, tokens=tokens) for tokens in many)
    return Claim(PEFT_LORA, 1.0, 1.0, dtype), *(frozen if dtype == torch.bfloat16 else ())


def _siva_claims(dtype: torch.dtype) -> tuple[Claim, ...]:
    wanted = {tokens: 1 / (LIMIT_MARGIN * siva_flop_limit(tokens)) for tokens in TOKENS if tokens >= 64}
    return tuple(Claim(FROZEN, least, least, dtype, tokens=tokens) for tokens, least in wanted.items())


def _claims(of_type: Callable[[torch.dtype], tuple[Claim, ...]]) -> tuple[Claim, ...]:
    return tuple(claim for dtype in BOTH for claim in of_type(dtype))


def _step(
    kind: Kind, claims: tuple[Claim, ...] = (), at: tuple[Point, ...] = SIZES, quick: tuple[Point, ...] = ()
) -> Case:
    return adapted_case(
        kind.name, kind.title, kind.make, kind.matrix, claims, dtypes=BOTH, at=at, quick=quick, roundings=ROUNDINGS
    )


def _token(kind: Kind, at: tuple[Point, ...] = ONE_TOKEN) -> Case:
    return inference_case(kind.name, kind.title, kind.make, kind.matrix, BOTH, at)


CASES = (
    _step(CIRCULANT, _claims(_circulant_claims), (*SIZES, *OTHER_SIZES), QUICK),
    _step(SIVA, _claims(_siva_claims), quick=QUICK[1:]),
    _step(TOEPLITZ),
    _step(HYDRA),
    *map(_token, (CIRCULANT, TOEPLITZ, HYDRA)),
    _token(SIVA, ONE_TOKEN[:1]),  # whose decomposition takes a minute at 4096
)
