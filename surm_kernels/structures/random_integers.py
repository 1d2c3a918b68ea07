"""A random generator of integers that gives the same numbers on every machine and in every release of torch.

HyDRA's index maps and fixed values are drawn again from a seed instead of being stored, so they may never change.
"""

from statistics import NormalDist

from surm_kernels import _random_words

_WORD = 2**64


class RandomIntegers:
    """SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014)."""

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed, 0

    def word(self) -> int:
        """Uniform among the integers of 64 bits."""
        self._drawn += 1
        return _random_words.word(self._seed, self._drawn - 1)

    def below(self, bound: int) -> int:
        """Uniform in range(bound): words past the last multiple of bound are drawn again."""
        last = _WORD - _WORD % bound
        while (word := self.word()) >= last:
            pass
        return word % bound

    def permutation(self, size: int) -> list[int]:
        """A uniform permutation of range(size), by Fisher and Yates."""
        entries = list(range(size))
        for end in range(size - 1, 0, -1):
            other = self.below(end + 1)
            entries[end], entries[other] = entries[other], entries[end]
        return entries

    def uniform(self) -> float:
        """Uniform in (0, 1): the middle of one of 2^52 equal parts."""
        return ((self.word() >> 12) + 0.5) / 2**52

    def normal(self) -> float:
        """N(0, 1), the inverse distribution function (Wichura, AS 241) of a uniform number."""
        return NormalDist().inv_cdf(self.uniform())
