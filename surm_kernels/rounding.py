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

from typing import NamedTuple

import torch
from torch import Tensor

from surm_kernels import _random_words
from surm_kernels.ops.stochastic import rounding_key


class StochasticRounding(NamedTuple):
    """The random numbers of one rounding of a matrix.

    Attributes:
        key: that they follow from, one number in int64 on the device of the matrix.
    """

    key: Tensor

    @classmethod
    def at(cls, seed: int, step: int, device: torch.device | str = "cpu") -> "StochasticRounding":
        """That of a step: seed and step are any ints, and others give independent numbers."""
        return cls(torch.tensor(_random_words.signed(_random_words.word(seed, step)), device=device))

    @classmethod
    def of(cls, first: Tensor, *others: Tensor) -> "StochasticRounding":
        """That of a weight formed of these tensors: the same as long as their values are, another one after a change.

        Its seed is `torch.initial_seed()`, its step a hash of the values. So a weight that is formed again, in a
        backward, a checkpoint, a copy of the layer or a run that was resumed, is the same to the bit. On a GPU nobody
        waits for it, and a captured graph that is replayed rounds by the values of then.
        """
        seed = _random_words.signed(torch.initial_seed())
        return cls(rounding_key(first.detach(), [other.detach() for other in others], seed))
