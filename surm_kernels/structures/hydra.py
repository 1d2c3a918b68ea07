"""HyDRA's update: a grid of small structured blocks whose parameters are drawn from one pool."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import widened
from surm_kernels.functional._product import cast, composed, product
from surm_kernels.ops import grid
from surm_kernels.ops._primitive import Primitive
from surm_kernels.structures.base import tied_means
from surm_kernels.structures.hydra_blocks import KINDS, LinearBlocks
from surm_kernels.structures.pool import Constants, PoolMap
from surm_kernels.structures.primitive import PrimitiveStructure, Pullback
from surm_kernels.structures.random_integers import RandomIntegers

_LARGEST_FRACTION = 0.9


class Hydra(PrimitiveStructure):
    """A `splits` x `splits` grid of structured blocks of one kind, which read their parameters from a pool.

    Slots are numbered block by block, row by row. In each block they are, for m x n blocks and b = max(m, n):

        circulant      b          first column of the square, cut to its top left part
        toeplitz       m + n      first column, then first row (its corner is not used)
        hankel         m + n      first column, then last row (its corner is not used)
        vandermonde    m          nodes
        low_rank       (m + n) r  left factor, then right factor
        toeplitz_like  2 b r      generators G, then H

    Which value of the pool a slot takes is a map drawn from the seed, under which values are used equally often up to
    one. A pool as large as the slots, the default, is a bijection. `fixed_fraction` of the pool are fixed random
    values, drawn from the seed as well: only the rest is a parameter. Neither is ever stored.

    Circulant, Toeplitz and Hankel blocks are W(pool). Vandermonde and the bilinear kinds, low_rank and toeplitz_like,
    have no start that is zero and trains, so theirs is W(pool) - W(start), with a frozen start drawn from the seed.
    Fixed values and starts are N(0, 0.02^2), nodes uniform in (-0.7, 0.7).

    Initialisations: "paper" starts from W = 0, with zeros or from the start, except that a linear kind with a fixed
    share begins with what its fixed values give. Linear kinds have "layer" as well, by which the output varies as in
    torch.nn.Linear but for the fixed values.

    Args:
        splits: divides in_features and out_features.
        structure: of a block, one of the six above.
        pool_size: how many values, at most as many as there are slots.
        fixed_fraction: from 0 to 0.9.
        rank: r, of low_rank and toeplitz_like alone.
        seed: any int.
    """

    holds_tensors = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        splits: int = 4,
        structure: str = "toeplitz",
        pool_size: int | None = None,
        fixed_fraction: float = 0.0,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features)
        _check_arguments(in_features, out_features, splits, structure, rank, seed)
        self.splits, self.structure, self.fixed_fraction = splits, structure, fixed_fraction
        self.rank, self.seed = rank, seed
        self._grid = KINDS[structure](splits, out_features // splits, in_features // splits, rank or 1)
        self.initialisations = ("layer", "paper") if self._grid.is_linear else ("paper",)
        self.slots = splits**2 * self._grid.size
        self.pool_size = self.slots if pool_size is None else pool_size
        fixed = _fixed_values(self.pool_size, self.slots, fixed_fraction)
        self.trainable = self.pool_size - fixed

        random = RandomIntegers(seed)
        self._map = PoolMap.drawn(self.pool_size, self.slots, random)
        # The start of the pool or, of linear kinds, no more than its fixed end.
        drawn = [self._grid.draw(random) for _ in range(fixed if self._grid.is_linear else self.pool_size)]
        self._drawn = Constants(torch.tensor(drawn, dtype=torch.float32, device="cpu"))
        if isinstance(self._grid, LinearBlocks):
            # W of the numbers of the slots: which slot each of its values is.
            places = self._grid.primitive(torch.arange(self.slots, device="cpu").view(splits, splits, -1))
            self._values, self._block = self._map.behind(*places.arguments), places.constants

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"pool": (self.trainable,)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        (pool,) = parameters
        if method == "layer":
            bound = 1 / math.sqrt(self.in_features)
            pool.uniform_(-bound, bound, generator=generator)
        elif self._grid.is_linear:
            pool.zero_()
        else:
            (start,) = self._drawn.on(pool.device)
            pool.copy_(start[: self.trainable])

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        (pool,) = parameters
        stored, sizes = pool.dtype, (self.out_features, self.in_features)
        if self._grid.is_linear:
            return product(partial(self._primitive, stored=stored), x, {"pool": pool}, base, scale)

        def operator(rows: Tensor, pool: Tensor, base: Tensor | None, scale: float) -> Tensor:
            return self._grid.linear(rows, *self._slots(pool, stored), base, scale)

        return composed(operator, x, {"pool": pool}, sizes, base, scale)

    def primitive(self, *parameters: Tensor) -> Primitive | None:
        (pool,) = parameters
        return self._primitive(pool, pool.dtype) if self._grid.is_linear else None

    def wide_primitive(self, *parameters: Tensor) -> Primitive | None:
        (pool,) = parameters
        return self._primitive(widened(pool), pool.dtype) if self._grid.is_linear else None

    def _primitive(self, pool: Tensor, stored: torch.dtype) -> Primitive:
        """W of a linear kind."""
        values = self._values.slots(self._whole(pool, stored)[0])
        return Primitive(grid.form, (values,), self._block)

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback] | None:
        w = self.primitive(*parameters)
        if w is None:
            return None

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            (values,) = inner
            assert values is not None
            return (self._values.sums(values)[: self.trainable],)

        return w, pullback

    def token_work(self) -> float:
        return self._grid.token_work()

    def merge_work(self) -> float:
        return self._grid.merge_work()

    def dense(self, *parameters: Tensor) -> Tensor:
        (pool,) = parameters
        return self.wide_dense(pool).to(pool.dtype)

    def wide_dense(self, *parameters: Tensor) -> Tensor:
        (pool,) = parameters
        return self._grid.dense(*self._slots(widened(pool), pool.dtype))

    def _slots(self, pool: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
        """The slots and those of the start, none for linear kinds."""
        whole, drawn = self._whole(pool, stored)
        shape = (self.splits, self.splits, -1)
        return self._map.slots(whole).view(shape), drawn if self._grid.is_linear else self._map.slots(drawn).view(shape)

    def _whole(self, pool: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
        """The pool with its fixed end, and all drawn values, which are rounded as the pool is stored."""
        (drawn,) = self._drawn.on(pool.device)
        drawn = cast(cast(drawn, stored), pool.dtype)
        fixed = self.pool_size - self.trainable
        return torch.cat([pool, drawn[len(drawn) - fixed :]]) if fixed else pool, drawn

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over the entries that each value of the pool fills, for linear kinds.

        Fixed values stay; a value that fills no entry, as a Toeplitz block's corner may be, is 0.
        """
        self._check_weight(weight)
        if not self._grid.is_linear:
            raise NotImplementedError(
                f"the nearest Hydra of structure {self.structure} to a matrix has no known formula"
            )
        return (tied_means(self.dense, (self.trainable,), weight),)

    def __reduce__(self) -> tuple[type, tuple]:
        # The arguments say everything: copies and pickles draw maps and values anew.
        return type(self), tuple(self.arguments.values())


def _check_arguments(
    in_features: int, out_features: int, splits: int, structure: str, rank: int | None, seed: int
) -> None:
    _checks.require_size("splits", splits)
    if in_features % splits or out_features % splits:
        raise ValueError(
            f"splits must divide in_features and out_features, got {splits} for {in_features} and {out_features}"
        )
    _checks.require_choice("structure", structure, KINDS)
    if KINDS[structure].ranked:
        _checks.require_size("rank", rank)
    elif rank is not None:
        raise ValueError(f"rank must be None for structure {structure}, got {rank}")
    _checks.require_int("seed", seed)


def _fixed_values(pool_size: int, slots: int, fixed_fraction: float) -> int:
    """How many values of the pool are fixed."""
    _checks.require_size("pool_size", pool_size)
    if pool_size > slots:
        raise ValueError(f"pool_size must be at most the number of slots, {slots}, got {pool_size}")
    _checks.require_number("fixed_fraction", fixed_fraction)
    if not 0 <= fixed_fraction <= _LARGEST_FRACTION:
        raise ValueError(f"fixed_fraction must be from 0 to {_LARGEST_FRACTION}, got {fixed_fraction}")
    fixed = round(fixed_fraction * pool_size)
    if fixed == pool_size:
        raise ValueError(f"fixed_fraction must leave a value to train, got {fixed_fraction} of a pool of {pool_size}")
    return fixed
