"""HyDRA's update: a grid of small structured blocks whose parameters are drawn from one pool."""

import math
from typing import Literal

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import product
from surm_kernels.structures.base import tied_means, widened
from surm_kernels.structures.hydra_blocks import KINDS
from surm_kernels.structures.pool import Constants, PoolMap
from surm_kernels.structures.primitive import Primitive, PrimitiveStructure
from surm_kernels.structures.random_integers import RandomIntegers

_LARGEST_SHARE = 0.9


class Hydra(PrimitiveStructure):
    """A `blocks` x `blocks` grid of structured blocks of one kind, which read their parameters from a pool.

    Slots are numbered block by block, row by row. In each block they are, for m x n blocks and b = max(m, n):

        circulant      b          first column of the square, cut to its top left part
        toeplitz       m + n      first column, then first row (its corner is not used)
        hankel         m + n      first column, then last row (its corner is not used)
        vandermonde    m          nodes
        low_rank       (m + n) r  left factor, then right factor
        toeplitz_like  2 b r      generators G, then H

    Which value of the pool a slot takes is a map drawn from the seed, under which values are used equally often up to
    one. A pool as large as the slots, the default, is a bijection. `fixed_share` of the pool are fixed random values,
    drawn from the seed as well: only the rest is a parameter. Neither is ever stored.

    Circulant, Toeplitz and Hankel blocks are W(pool). Vandermonde and the bilinear kinds, low_rank and toeplitz_like,
    have no start that is zero and trains, so theirs is W(pool) - W(start), with a frozen start drawn from the seed.
    Fixed values and starts are N(0, 0.02^2), nodes uniform in (-0.7, 0.7).

    Initialisations: "update" starts from W = 0, with zeros or from the start, except that a linear kind with a fixed
    share begins with what its fixed values give. Linear kinds have "layer" as well, by which the output varies as in
    torch.nn.Linear but for the fixed values.

    Args:
        blocks: divides in_features and out_features.
        kind: one of the six above.
        pool: how many values, at most as many as there are slots.
        fixed_share: from 0 to 0.9.
        rank: r, of low_rank and toeplitz_like alone.
        seed: any int.
    """

    holds_tensors = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        blocks: int = 4,
        kind: str = "toeplitz",
        pool: int | None = None,
        fixed_share: float = 0.0,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features)
        _check_arguments(in_features, out_features, blocks, kind, rank, seed)
        self.blocks, self.kind, self.fixed_share, self.rank, self.seed = blocks, kind, fixed_share, rank, seed
        self._grid = KINDS[kind](blocks, out_features // blocks, in_features // blocks, rank or 1)
        self.initialisations = ("layer", "update") if self._grid.is_linear else ("update",)
        self.slots = blocks**2 * self._grid.size
        self.pool = self.slots if pool is None else pool
        fixed = _fixed_values(self.pool, self.slots, fixed_share)
        self.trainable = self.pool - fixed

        random = RandomIntegers(seed)
        self._map = PoolMap(self.pool, self.slots, random)
        # The start of the pool or, of linear kinds, no more than its fixed end.
        drawn = [self._grid.draw(random) for _ in range(fixed if self._grid.is_linear else self.pool)]
        self._drawn = Constants(torch.tensor(drawn, dtype=torch.float32))

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
        stored = pool.dtype

        def operator(rows: Tensor, pool: Tensor, base: Tensor | None, scale: float) -> Tensor:
            return self._grid.linear(rows, *self._slots(pool, stored), base, scale)

        wide: Literal["nothing", "everything"] = "nothing" if self._grid.is_linear else "everything"
        return product(operator, x, {"pool": pool}, self.in_features, self.out_features, base, scale, wide=wide)

    def primitive(self, *parameters: Tensor, scale: float) -> Primitive | None:
        (pool,) = parameters
        return self._grid.primitive(self._slots(pool, pool.dtype)[0], scale) if self._grid.is_linear else None

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

    def wide_primitive(self, *parameters: Tensor, scale: float) -> Primitive | None:
        (pool,) = parameters
        slots, _ = self._slots(widened(pool), pool.dtype)
        return self._grid.primitive(slots, scale) if self._grid.is_linear else None

    def _slots(self, pool: Tensor, stored: torch.dtype) -> tuple[Tensor, Tensor]:
        """The slots and those of the start, none for linear kinds; drawn values are rounded as the pool is stored."""
        (drawn,) = self._drawn.on(pool.device)
        drawn = drawn.to(stored).to(pool.dtype)
        fixed = drawn[len(drawn) - (self.pool - self.trainable) :]
        shape = (self.blocks, self.blocks, -1)
        slots = self._map.slots(torch.cat([pool, fixed])).view(shape)
        return slots, drawn if self._grid.is_linear else self._map.slots(drawn).view(shape)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The mean over the entries that each value of the pool fills, for linear kinds.

        Fixed values stay; a value that fills no entry, as a Toeplitz block's corner may be, is 0.
        """
        self._check_weight(weight)
        if not self._grid.is_linear:
            raise NotImplementedError(f"the nearest Hydra of kind {self.kind} to a matrix has no known formula")
        return (tied_means(self.dense, (self.trainable,), weight),)

    def extra_repr(self) -> str:
        rank = "" if self.rank is None else f", rank={self.rank}"
        return (
            f"{super().extra_repr()}, blocks={self.blocks}, kind={self.kind!r}, pool={self.pool}, "
            f"fixed_share={self.fixed_share}{rank}, seed={self.seed}"
        )

    def __reduce__(self) -> tuple[type, tuple]:
        # The arguments say everything: copies and pickles draw maps and values anew.
        sizes = self.in_features, self.out_features
        return type(self), (*sizes, self.blocks, self.kind, self.pool, self.fixed_share, self.rank, self.seed)


def _check_arguments(in_features: int, out_features: int, blocks: int, kind: str, rank: int | None, seed: int) -> None:
    _checks.require_size("blocks", blocks)
    if in_features % blocks or out_features % blocks:
        raise ValueError(
            f"blocks must divide in_features and out_features, got {blocks} for {in_features} and {out_features}"
        )
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if KINDS[kind].ranked:
        _checks.require_size("rank", rank)
    elif rank is not None:
        raise ValueError(f"rank must be None for kind {kind}, got {rank}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")


def _fixed_values(pool: int, slots: int, fixed_share: float) -> int:
    """How many values of the pool are fixed."""
    _checks.require_size("pool", pool)
    if pool > slots:
        raise ValueError(f"pool must be at most the number of slots, {slots}, got {pool}")
    _checks.require_number("fixed_share", fixed_share)
    if not 0 <= fixed_share <= _LARGEST_SHARE:
        raise ValueError(f"fixed_share must be from 0 to {_LARGEST_SHARE}, got {fixed_share}")
    fixed = round(fixed_share * pool)
    if fixed == pool:
        raise ValueError(f"fixed_share must leave a value to train, got {fixed_share} of a pool of {pool}")
    return fixed
