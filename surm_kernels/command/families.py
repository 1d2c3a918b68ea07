"""What `surm-kernels check` checks: the families of matrices, each with the sizes at which it is tried.

One entry in FAMILIES adds one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from surm_kernels import dense, functional, reference
from surm_kernels.command import accuracy
from surm_kernels.command.accuracy import Deviation

LARGE = 1000  # beyond it only float32 is checked

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 768, 1000)
LARGE_SIZES = (1536, 4093)  # the second is prime
MODERATE_SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 500)  # where one matrix takes several products
RECTANGLES = ((5, 3), (3, 5), (12, 97), (97, 12), (64, 192), (300, 100), (100, 300))  # rows and columns
MATRICES = (*((size, size) for size in MODERATE_SIZES), *RECTANGLES)
# Blocks down and across, rows and columns of a block.
GRIDS = ((1, 2, 2, 3), (2, 3, 5, 4), (3, 2, 64, 32), (2, 2, 97, 150))
RANKS = (1, 2, 4, 5, 1, 2, 4, 5, 1, 2)  # of the moderate sizes
FACTORS = (((1, 1), (1, 1)), ((2, 3), (5, 4)), ((7, 2), (1, 9)), ((3, 16), (12, 5)), ((32, 24), (24, 32)))
BLOCKS = ((1, 2, 2), (2, 2, 1), (2, 3, 5), (12, 3, 12), (4, 1, 63), (3, 2, 64), (1, 4, 97), (6, 6, 128), (3, 1, 500))

# Rows, columns and directions for SiVA, whose two products and the diagonal between them round 16-bit numbers √3 times
# as much as one rounding does, in the mean; it takes many numbers to keep to the mean.
DIRECTIONS = ((64, 192, 64), (97, 63, 97), (300, 200, 150), (768, 768, 404))
DIRECTIONS_TOKENS, DIRECTIONS_ROUNDING_FACTOR = (250, 600), 1.8

Shapes = tuple[tuple[int, ...] | int, ...]  # of the parameters, then numbers that the matrix takes as well


@dataclass(frozen=True)
class Family:
    """What is checked: `linear(x, *parameters, base=, scale=)`, `dense(*parameters)`, and the matrix by its formula.

    `cases` has the parameter shapes of every instance, and what else `dense` and `reference` take. Parameters are drawn
    from [-1, 1]; `offsets` moves those that must not meet. `frozen` says which parameters ask for no gradient, `tokens`
    which numbers of tokens are tried where not the usual ones, `rounding_factor` how far 16-bit results may be off, in
    errors of rounding the exact answer.
    """

    name: str
    linear: Callable[..., Tensor]
    dense: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    cases: tuple[Shapes, ...]
    offsets: tuple[float, ...] = ()
    frozen: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    rounding_factor: float = accuracy.ROUNDING_FACTOR

    def deviation(self, got: Tensor, exact: Tensor) -> Deviation:
        """The error of a result, with the limit for its type and this family."""
        found = accuracy.deviation(got, exact)
        if got.dtype in accuracy.LIMITS:
            return found
        return Deviation(found.error, self.rounding_factor / accuracy.ROUNDING_FACTOR * found.limit)


def _f_circulant(f: float) -> Family:
    return Family(
        f"f-circulant {f:g}",
        lambda x, v, **options: functional.krylov_linear(x, v, f, **options),
        partial(dense.krylov, f=f),
        partial(reference.krylov, f=f),
        (*(((n,),) for n in SIZES if n < 500), ((2, 3, 64),)),
    )


def _named(name: str, cases: Iterable[Shapes], title: str = "", **options: Any) -> Family:
    """The family that `functional`, `dense` and `reference` know by one name."""
    linear, matrix, formula = getattr(functional, f"{name}_linear"), getattr(dense, name), getattr(reference, name)
    return Family(title or name.replace("_", "-"), linear, matrix, formula, tuple(cases), **options)


def _diagonals() -> Iterator[Shapes]:
    """Diagonals and columns of square and rectangular matrices and of grids of them."""
    for m, n in (*MATRICES, (LARGE, LARGE)):
        yield (m + n - 1,), n
    for rows, columns, m, n in GRIDS:
        yield (rows, columns, m + n - 1), n


def _pairs() -> Iterator[Shapes]:
    """Generators of square matrices."""
    for rank, n in zip(RANKS, MODERATE_SIZES, strict=True):
        yield (rank, n), (rank, n)


def _nodes_and_generators(nodes: Callable[[int, int], Shapes]) -> Iterator[Shapes]:
    for index, (m, n) in enumerate(MATRICES):
        rank = RANKS[index % len(RANKS)]
        yield *nodes(m, n), (rank, m), (rank, n)


FAMILIES = (
    _named("circulant", (((n,),) for n in SIZES + LARGE_SIZES)),
    _named("skew_circulant", (((n,),) for n in SIZES + LARGE_SIZES)),
    _named("block_circulant", ((shape,) for shape in BLOCKS), "block circulant"),
    _f_circulant(0.0),
    _f_circulant(-0.3),
    _named("toeplitz", _diagonals()),
    _named("symmetric_toeplitz", (((n,),) for n in (*MODERATE_SIZES, LARGE)), "symmetric toeplitz"),
    _named("hankel", _diagonals()),
    _named("toeplitz_like", _pairs()),
    _named("hankel_like", _pairs()),
    _named("kronecker", FACTORS),
    _named("vandermonde", (((m,), n) for m, n in MATRICES)),
    _named("vandermonde_like", _nodes_and_generators(lambda m, n: ((m,),))),
    _named("cauchy_like", _nodes_and_generators(lambda m, n: ((m,), (n,))), offsets=(0, 2.5, 0, 0)),
    _named(
        "siva",
        (((m, k), (k,), (n, k)) for m, n, k in DIRECTIONS),
        frozen=(0, 2),
        tokens=DIRECTIONS_TOKENS,
        rounding_factor=DIRECTIONS_ROUNDING_FACTOR,
    ),
)
