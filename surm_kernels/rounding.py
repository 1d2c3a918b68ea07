"""Stochastic rounding, by which a weight in 16 bits carries an update that is smaller than the spacing of its numbers.

A number v between neighbours a < b of the type becomes b with probability (v - a) / (b - a), else a: its mean is v,
where rounding to nearest gives the same neighbour every time and loses what it removes (Croci et al., Stochastic
rounding: implementation, error analysis and applications, Royal Society Open Science, 2022). The error is less than one
spacing, its variance twice that of rounding to nearest in the mean over all v.

- A number of the type stays as it is, and so do infinity and the sign of zero; NaN stays NaN.
- Subnormal numbers are rounded like others; in float16 what is below 2^-21 of their spacing is cut off first.
- Beyond the largest finite number, where there is no neighbour, rounding is to nearest: chance makes nothing infinite.

The random numbers are a function of (seed, step, row, column), the same for every instruction set, number of threads
and device. The key is word number `step` of SplitMix64 from the seed; csrc/stochastic_rounding.h has what follows.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from surm_kernels import _random_words


class StochasticRounding(NamedTuple):
    """The random numbers of one rounding of a matrix.

    Attributes:
        seed: any int; another one gives independent numbers.
        step: any int, likewise.
    """

    seed: int
    step: int

    @classmethod
    def of(cls, *tensors: Tensor) -> "StochasticRounding":
        """That of a weight formed of these tensors: the same as long as their values are, another one after a change.

        Its seed is `torch.initial_seed()`, its step a hash of the values. So a weight that is formed again, in a
        backward, a checkpoint, a copy of the layer or a run that was resumed, is the same to the bit.
        """
        # One product for all: this is done before every merge.
        bits = torch.cat([t.detach().flatten().view(_INTEGERS[t.dtype.itemsize]) for t in tensors]).long()
        return cls(torch.initial_seed(), _random_words.word(int(bits.dot(_multipliers(bits.numel()))), 0))

    @property
    def key(self) -> int:
        """What operators take, an int of 64 bits."""
        return _random_words.signed(_random_words.word(self.seed, self.step))


_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@lru_cache(maxsize=32)
def _multipliers(size: int) -> Tensor:
    """Odd ones, so that no change of a single value goes unseen."""
    with torch.inference_mode(False):
        return _random_words.words(0, size) | 1
