"""The kinds of blocks of which a grid consists, by number, and how many values make a block.

A circulant block of b x b has b values, its first column. A Toeplitz or Hankel block of m x n has m + n - 1, one for
each diagonal or antidiagonal.
"""

from typing import NamedTuple

#: As csrc/shapes.h numbers them.
CIRCULANT, SKEW_CIRCULANT, TOEPLITZ, HANKEL = range(4)


class BlockKind(NamedTuple):
    """What sizes have to do with a kind; formulas are those of reference/ops/grid.py."""

    name: str
    wraps: bool  # diagonals come back on the other side: blocks are square and have a value for each column

    def values(self, rows: int, columns: int) -> int:
        """How many values make a block."""
        return columns if self.wraps else rows + columns - 1

    def rows(self, values: int, columns: int) -> int:
        """The rows of a block of so many values and columns."""
        return columns if self.wraps else values - columns + 1

    def transform(self, rows: int, columns: int) -> int:
        """The length of the transform that multiplies by a block, nominally."""
        return columns if self.wraps else rows + columns


KINDS = (
    BlockKind("circulant", wraps=True),
    BlockKind("skew_circulant", wraps=True),
    BlockKind("toeplitz", wraps=False),
    BlockKind("hankel", wraps=False),
)
