"""Structures of awkward shapes with tame parameters and their exact matrices, for gradients and adapted layers.

Independent of the operators in question: a float64 matrix is the structure's `dense`, which test_structures.py holds
against the index formulas, and HyDRA's is made of blocks by their definition.
"""

import math

import torch
from torch import Tensor

from surm_kernels.structures import (
    BlockCirculant,
    CauchyLike,
    Circulant,
    CirculantDiagonal,
    CirculantProduct,
    Hankel,
    HankelLike,
    Hydra,
    Kronecker,
    LowRank,
    Monarch,
    Siva,
    SkewCirculant,
    Structure,
    SymmetricToeplitz,
    Toeplitz,
    ToeplitzLike,
    ToeplitzProduct,
    Vandermonde,
    VandermondeLike,
)
from tests import oracle

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
RECTANGLES = {"square": (96, 96), "wide": (96, 60), "tall": (60, 96)}
# For any sizes; the first dimension is what a layer takes.
FAMILIES = {
    "circulant": Circulant,
    "skew-circulant": SkewCirculant,
    "circulant product": CirculantProduct,
    "toeplitz": Toeplitz,
    "symmetric toeplitz": SymmetricToeplitz,
    "toeplitz product": ToeplitzProduct,
    "hankel": Hankel,
    "toeplitz-like": lambda *sizes: ToeplitzLike(*sizes, 2),
    "hankel-like": lambda *sizes: HankelLike(*sizes, 2),
    "vandermonde": Vandermonde,
    "vandermonde-like": lambda *sizes: VandermondeLike(*sizes, 2),
    "cauchy-like": lambda *sizes: CauchyLike(*sizes, 2),
    "circulant diagonal": CirculantDiagonal,
    "kronecker": Kronecker,
    "low rank": lambda *sizes: LowRank(*sizes, 3),
    "siva": lambda *sizes: Siva(*sizes, min(sizes) // 2),
}
LINEAR_IN_THE_POOL = ("circulant", "toeplitz", "hankel")  # of HyDRA's blocks
# For sizes with common divisors.
GRIDS = {
    "circulant, blocks": lambda *sizes: Circulant(*sizes, 12),
    "skew-circulant, blocks": lambda *sizes: SkewCirculant(*sizes, 6),
    "block circulant": lambda *sizes: BlockCirculant(*sizes, 4),
    "circulant product, blocks": lambda *sizes: CirculantProduct(*sizes, 12),
    "toeplitz, blocks": lambda *sizes: Toeplitz(*sizes, 12),
    "hankel, blocks": lambda *sizes: Hankel(*sizes, 12),
    "monarch": lambda *sizes: Monarch(*sizes, 12, 6),
    "hydra, circulant": lambda *sizes: Hydra(*sizes, structure="circulant"),
    "hydra, toeplitz": lambda *sizes: Hydra(*sizes, structure="toeplitz", pool_size=130),
    "hydra, hankel": lambda *sizes: Hydra(*sizes, structure="hankel", pool_size=400, fixed_fraction=0.3),
    "hydra, vandermonde": lambda *sizes: Hydra(*sizes, structure="vandermonde", fixed_fraction=0.2),
    "hydra, low rank": lambda *sizes: Hydra(*sizes, splits=1, structure="low_rank", rank=2),
    "hydra, toeplitz-like": lambda *sizes: Hydra(
        *sizes, splits=2, structure="toeplitz_like", rank=1, fixed_fraction=0.3
    ),
}
STRUCTURES: dict[str, Structure] = {
    f"{name}, {shape}": make(*sizes) for name, make in (FAMILIES | GRIDS).items() for shape, sizes in RECTANGLES.items()
} | {f"{name}, of primes": make(61, 97) for name, make in FAMILIES.items()}
# One of each, for what does not depend on the shape.
SQUARES = {name: STRUCTURES[f"{name}, square"] for name in FAMILIES | GRIDS}


def parameters_of(structure: Structure, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Values of the parameters for which W is about as large as a layer's weight, drawn in float64."""
    parameters = [torch.empty(shape, dtype=torch.float64) for shape in structure.parameter_shapes().values()]
    fill(structure, parameters)
    return tuple(parameter.to(dtype) for parameter in parameters)


@torch.no_grad()
def fill(structure: Structure, parameters: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Draws the parameters, in place."""
    if "layer" in structure.initialisations:
        structure.initialise(parameters, "layer")
    elif isinstance(structure, Hydra) and structure.structure == "vandermonde":
        parameters[0].uniform_(-0.7, 0.7)  # nodes whose powers are tame
    else:
        for parameter in parameters:
            parameter.uniform_(-0.4, 0.4)


def matrix(structure: Structure, parameters: tuple[Tensor, ...], stored: torch.dtype) -> Tensor:
    """W in float64, differentiable, for parameters that a layer keeps in the type `stored`."""
    if isinstance(structure, Hydra):  # whose drawn values are rounded as the pool is stored
        return hydra(structure, parameters[0].double(), stored)
    return structure.dense(*(parameter.double() for parameter in parameters))


def hydra(structure: Hydra, pool: Tensor, stored: torch.dtype) -> Tensor:
    """HyDRA's W by the layout of its slots, for a pool in float64 that is stored in another type."""
    index = structure._map.slots(torch.arange(structure.pool_size, dtype=torch.float64)).long()
    (drawn,) = structure._drawn.on(pool.device)
    drawn = drawn.to(stored).double()
    fixed = drawn[len(drawn) - (structure.pool_size - structure.trainable) :]

    def of_slots(slots: Tensor) -> Tensor:
        grid = slots.view(structure.splits, structure.splits, -1)
        sizes = structure.out_features // structure.splits, structure.in_features // structure.splits
        return torch.cat(
            [torch.cat([oracle.hydra_block(structure.structure, block, *sizes) for block in row], 1) for row in grid]
        )

    W = of_slots(torch.cat([pool, fixed])[index])
    return W if structure.structure in LINEAR_IN_THE_POOL else W - of_slots(drawn[index])


def gradient_rounding_factor(structure: Structure) -> float:
    """Of a parameter's gradient in 16 bits: 1.05 for one rounding, and times the root of 2 or 3 for as many."""
    if isinstance(structure, Siva):
        return 1.8  # both factors of the sum over the tokens, then the sum
    if isinstance(structure, (CirculantProduct, LowRank)) or (
        isinstance(structure, Hydra) and structure.structure in LINEAR_IN_THE_POOL
    ):
        return 1.5  # the circulant's gradient before the factor, the values at the rank, the slots' before the sum
    return oracle.ROUNDING_FACTOR


def draws(structure: Structure) -> int:
    """How often to draw so that several roundings of 16 bits add as they do on average, to a few per cent."""
    if gradient_rounding_factor(structure) == oracle.ROUNDING_FACTOR:
        return 4
    shapes = structure.parameter_shapes()
    return -(-4096 // min(math.prod(shape) for name, shape in shapes.items() if name not in structure.constants))


def rounding_factor(structure: Structure, stochastic: bool = False) -> float:
    """Of an adapted layer in 16 bits, times that of rounding the exact answer: it rounds twice, SiVA three times.

    A weight rounded stochastically has the variance of two roundings to nearest. SiVA's update, here as large as the
    weight, is rounded twice before that, as far as a half of the sum each: the roots of 2, 3 and 4, and 5 % more.
    """
    return (1.5, 1.8, 2.1)[stochastic + isinstance(structure, Siva)]


def assert_close(got: Tensor, exact: Tensor, factor: float, name: str = "result", size: float = 0.0) -> None:
    """`oracle.assert_close`, but in 16 bits with this factor of the error of rounding the exact answer."""
    if got.dtype not in oracle.SIXTEEN_BIT:
        return oracle.assert_close(got, exact, name, size)
    assert got.shape == exact.shape, f"{name} has shape {tuple(got.shape)}, wanted {tuple(exact.shape)}"
    found, rounding = oracle.error(got, exact, size), oracle.error(exact.to(got.dtype), exact, size)
    allowed = factor * rounding + oracle.FLOAT32_TOLERANCE
    assert found <= allowed, f"{name} is off by {found:.2e}, allowed are {allowed:.2e}"
