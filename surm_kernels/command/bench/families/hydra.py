"""HyDRA: a grid of Toeplitz blocks that share one pool, beside the gathered dense matrix."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels.command.bench.case import OURS, Case, Claim, Method, Point, Product, point
from surm_kernels.structures import Hydra

BLOCKS = 4
GATHER = "gather, then matmul"


def structure(point: Point) -> Hydra:
    """The paper's grid; the pool has two values for every feature, as many as SURM's structures train."""
    pool = 2 * point.in_features
    return Hydra(point.in_features, point.out_features, splits=BLOCKS, structure="toeplitz", pool_size=pool, seed=0)


@functools.lru_cache(maxsize=2)
def gathered_matrix(point: Point) -> Callable[[Tensor], Tensor]:
    """The dense matrix gathered from the pool by a ready index, one for map and blocks together.

    The matrix of a pool that counts tells which value is at each entry.
    """
    made = structure(point)
    ((values,),) = made.parameter_shapes().values()
    index = made.dense(torch.arange(values, dtype=torch.float64)).round().long().flatten()
    shape = (point.out_features, point.in_features)
    return lambda pool: pool.index_select(0, index).view(shape)


def _gathered(point: Point) -> Product:
    """That matrix, then one product."""
    matrix = gathered_matrix(point)
    return lambda x, pool: x @ matrix(pool).T


HYDRA = Method(OURS, lambda point, dtype: structure(point).linear)
GATHERED = Method(GATHER, lambda point, dtype: _gathered(point))

SIZES = (point(768, tokens=4096),)

CASES = (
    Case(
        "hydra-training",
        f"HyDRA Toeplitz k = {BLOCKS}, forward + backward",
        (HYDRA, GATHERED),
        _gathered,
        lambda point: tuple(structure(point).parameter_shapes().values()),
        SIZES,
        SIZES,
        (torch.float32,),
        gradients=True,
        claims=(Claim(GATHER, 3.0, 3.0),),
    ),
)
