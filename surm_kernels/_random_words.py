"""Random numbers that are the same on every machine, device and release of torch, a whole tensor at once.

Fingerprints and random bases are compared with what another machine drew, so these streams may never change.
"""

import torch
from torch import Tensor

_WORD = 2**64
_STEP = 0x9E3779B97F4A7C15


def word(seed: int, index: int) -> int:
    """Entry `index` of `words`, but of 64 bits without a sign; index is any int too."""
    mixed = (seed + (index + 1) * _STEP) % _WORD
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % _WORD
    return mixed ^ (mixed >> 31)


def words(seed: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """The first words of SplitMix64 (Steele, Lea and Flood, 2014) as int64, in rows; any int is a seed.

    Its states are the multiples of one constant.
    """
    size = int(torch.Size(shape).numel())
    return at(signed(seed), torch.arange(size, device=device)).view(shape)


def at(seed: Tensor | int, index: Tensor | int) -> Tensor:
    """Entries of `words`, as int64, where one of both is a tensor of that type; an int has to be of 64 bits."""
    # Products and sums wrap as those of unsigned words do.
    mixed = seed + (index + 1) * signed(_STEP)
    assert isinstance(mixed, Tensor)
    mixed = (mixed ^ _shifted(mixed, 30)) * signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * signed(0x94D049BB133111EB)
    return mixed ^ _shifted(mixed, 31)


def signs(seed: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """-1 or 1 in float64, by the first bit of each word."""
    return 1.0 + 2.0 * (words(seed, *shape, device=device) >> 63).double()


def normals(seed: int, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """N(0, 1) in float64: the inverse distribution function of uniform numbers, each the middle of 2^-52."""
    uniform = (_shifted(words(seed, *shape, device=device), 12).double() + 0.5) / 2**52
    return torch.special.ndtri(uniform)


def signed(word: int) -> int:
    """The int64 of the same bits."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _shifted(word: Tensor, bits: int) -> Tensor:
    """A shift that fills with zeros, where that of int64 repeats the sign."""
    return (word >> bits) & (2 ** (64 - bits) - 1)
