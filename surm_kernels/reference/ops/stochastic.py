"""Stochastic rounding to 16 bits, in integers: to the bit what csrc/stochastic_rounding.h does, which explains it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels import _random_words

_WORD = 2**32 - 1
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def stochastic_sum(weight: Tensor, addend: Tensor, key: Tensor, out: Tensor) -> None:
    torch._check(
        out.dtype.itemsize == 2 and {weight.dtype, addend.dtype} <= {torch.float32, out.dtype},
        lambda: "surm_kernels: out must have 16 bits, weight and addend its dtype or float32",
    )
    torch._check(
        weight.shape == addend.shape == out.shape,
        lambda: "surm_kernels: weight, addend and out must be matrices of one size",
    )
    sums = weight.float() + addend.float()
    bits = sums.view(torch.int32).long() & _WORD
    rounded = _ROUNDED[out.dtype](bits, random_words(key, *sums.shape))
    out.copy_(rounded.to(torch.int16).view(out.dtype))


def rounding_key(first: Tensor, others: Sequence[Tensor], seed: int) -> Tensor:
    numbers = torch.cat([t.flatten().view(_INTEGERS[t.dtype.itemsize]).long() for t in (first, *others)])
    # Odd ones, so that no change of a single number goes unseen.
    multipliers = _random_words.words(0, numbers.numel(), device=numbers.device) | 1
    return _random_words.at(seed, _random_words.at((numbers * multipliers).sum(), 0))


def random_words(key: Tensor, rows: int, columns: int) -> Tensor:
    """The 32 random bits of every place of a matrix, as int64, on the device of the key."""
    of_rows = _random_words.at(key, torch.arange(rows, device=key.device))[:, None]
    words = (torch.arange(columns, device=key.device) + of_rows) & _WORD
    words = _product(words ^ (words >> 16), 0x7FEB352D)
    words = _product(words ^ (words >> 15) ^ ((of_rows >> 32) & _WORD), 0x846CA68B)
    return words ^ (words >> 16)


def _product(words: Tensor, factor: int) -> Tensor:
    return (words * factor) & _WORD


def _bfloat16_bits(bits: Tensor, random: Tensor) -> Tensor:
    magnitude = bits & 0x7FFFFFFF
    added = torch.where(magnitude > 0x7F7F0000, 0x8000, random >> 16)
    return torch.where(magnitude > 0x7F800000, 0x7FC0, (bits + added) >> 16)


def _float16_bits(bits: Tensor, random: Tensor) -> Tensor:
    magnitude = bits & 0x7FFFFFFF
    added = torch.where(magnitude > 0x477FE000, 0x1000, random >> 19)
    normal = (magnitude.clamp(max=0x47800000) + added - 0x38000000) >> 13
    units = (((magnitude & 0x7FFFFF) | 0x800000) << 7) >> (112 - (magnitude >> 23)).clamp(0, 31)
    rounded = torch.where(magnitude < 0x38800000, (units + (random >> 11)) >> 21, normal)
    return torch.where(magnitude > 0x7F800000, 0x7E00, rounded | ((bits >> 16) & 0x8000))


_ROUNDED = {torch.bfloat16: _bfloat16_bits, torch.float16: _float16_bits}
