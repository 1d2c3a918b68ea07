"""HyDRA's pool: which of its values each slot takes, by a seeded map, and the sum over slots that is its adjoint."""

from typing import Any

import torch
from torch import Tensor

from surm_kernels._widening import wide_type
from surm_kernels.ops._multilinear import Multilinear
from surm_kernels.structures.random_integers import RandomIntegers


class Constants:
    """Tensors that never change, with a copy on each device that asked for them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._copies = {tensors[0].device: tensors}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        copies = self._copies.get(device)
        if copies is None:
            copies = tuple(t.to(device) for t in self._tensors)
            if all(type(copy) is Tensor for copy in copies):  # what a trace makes must not outlive it
                self._copies[device] = copies
        return copies


class PoolMap:
    """Slot s takes the value index[s] of the pool, slots (..., ) in any shape."""

    def __init__(self, index: Tensor, pool: int) -> None:
        self._pool, self._shape = pool, index.shape
        index = index.flatten()
        # Where each value is for the first time, for the second and so on; behind the last slot where it is no more.
        counts = torch.bincount(index, minlength=pool)
        rounds = torch.arange(max(1, int(counts.max())), device="cpu")[:, None]
        places = (counts.cumsum(0) - counts + rounds).clamp(max=len(index) - 1)
        order = index.argsort(stable=True)
        self._indices = Constants(index, torch.where(rounds < counts, order[places], len(index)))

    @classmethod
    def drawn(cls, pool: int, slots: int, random: RandomIntegers) -> "PoolMap":
        """A row of random permutations of range(pool), cut to the slots.

        Values are used equally often up to one, and a pool as large as the slots is a bijection.
        """
        permutations = [random.permutation(pool) for _ in range(-(-slots // pool))]
        return cls(torch.tensor(permutations, dtype=torch.int64, device="cpu").flatten()[:slots], pool)

    def behind(self, slots: Tensor) -> "PoolMap":
        """The map of what reads these slots, integers of any shape."""
        index, _ = self._indices.on(slots.device)
        return PoolMap(index[slots], self._pool)

    def slots(self, pool: Tensor) -> Tensor:
        """The values of the slots from those of the pool, whose gradient is a sum in a fixed order."""
        found: Tensor = _form.partial(0, None, None, pool.unsqueeze(0), *self._indices.on(pool.device))
        return found.view(self._shape)

    def sums(self, w: Tensor) -> Tensor:
        """The adjoint: the sum of w over the slots that take each value, (pool,)."""
        found: Tensor = _form.partial(1, None, w.reshape(1, -1), self._pool, *self._indices.on(w.device))
        return found.squeeze(0)


def _gather(base: None, w: None, pool: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return pool[:, index]


def _sums(base: None, w: Tensor, pool: None, index: Tensor, inverse: Tensor) -> Tensor:
    if inverse.numel() > w.shape[-1]:
        w = torch.nn.functional.pad(w, (0, 1))
    return w[:, inverse].sum(1, dtype=wide_type(w.dtype)).to(w.dtype)


# <w, slots of the pool>; both arguments have a leading dimension of independent problems.
_form: Any = Multilinear("PoolSlots", (_gather, _sums))
