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
    """Slot s takes the value index[s] of the pool.

    The map is a row of random permutations of range(pool), cut to the slots: values are used equally often up to one,
    and a pool as large as the slots is a bijection.
    """

    def __init__(self, pool: int, slots: int, random: RandomIntegers) -> None:
        rounds = -(-slots // pool)
        drawn = [random.permutation(pool) for _ in range(rounds)]
        permutations = torch.tensor(drawn, dtype=torch.int64, device="cpu")
        # Where each value is in each round: the inverse permutation, behind the rounds before.
        inverse = permutations.argsort(1) + pool * torch.arange(rounds, device="cpu")[:, None]
        self._indices = Constants(permutations.flatten()[:slots], inverse)

    def slots(self, pool: Tensor) -> Tensor:
        """The values of the slots, (slots,), from those of the pool, whose gradient is a sum in a fixed order."""
        return _form.partial(0, None, None, pool.unsqueeze(0), *self._indices.on(pool.device)).squeeze(0)


def _gather(base: None, w: None, pool: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return pool[:, index]


def _sums(base: None, w: Tensor, pool: None, index: Tensor, inverse: Tensor) -> Tensor:
    rounds = torch.nn.functional.pad(w, (0, inverse.numel() - w.shape[-1]))[:, inverse]
    return rounds.sum(1, dtype=wide_type(w.dtype)).to(w.dtype)


# <w, slots of the pool>; both arguments have a leading dimension of independent problems.
_form: Any = Multilinear("PoolSlots", (_gather, _sums))
