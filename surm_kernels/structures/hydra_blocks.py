"""The kinds of HyDRA's blocks: how a grid of small structured matrices reads its parameters from slots.

Slots come as (k, k, size): block row, block column, and the parameters of a block. Products are in operator form, from
rows (1, T, k columns) to (1, T, k rows).
"""

from abc import ABC, abstractmethod
from functools import reduce
from itertools import product
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _matrices, dense
from surm_kernels.ops._primitive import Primitive, transform_work
from surm_kernels.structures.random_integers import RandomIntegers
from surm_kernels.structures.vandermonde import LARGEST_NODE


class Blocks(ABC):
    """A k x k grid of blocks, each rows x columns with `size` slots; `rank` is theirs, of the kinds that have one."""

    ranked = False
    #: Whether W is linear in its slots and starts from 0; else the map is W(slots) - W(start).
    is_linear = False

    def __init__(self, grid: int, rows: int, columns: int, rank: int) -> None:
        self.grid, self.rows, self.columns, self.rank = grid, rows, columns, rank
        self.square = max(rows, columns)
        self.size = self._size()

    @abstractmethod
    def _size(self) -> int:
        """How many slots a block has."""

    def draw(self, random: RandomIntegers) -> float:
        """A random value for a fixed slot or a start."""
        return 0.02 * random.normal()

    @abstractmethod
    def linear(self, rows: Tensor, slots: Tensor, start: Tensor, base: Tensor | None, scale: float) -> Tensor:
        """`base + scale * rows @ W.T`; all tensors have one type."""

    @abstractmethod
    def dense(self, slots: Tensor, start: Tensor) -> Tensor:
        """The matrix W."""

    def token_work(self) -> float:
        """As of a structure."""
        return self.grid**2 * self.rows * self.columns

    def merge_work(self) -> float:
        """As of a structure."""
        return self.grid**2 * self.rows * self.columns


class LinearBlocks(Blocks):
    """Blocks whose entries are values of the pool: one grid of blocks, as surm_kernels.ops.grid has them."""

    is_linear = True

    @abstractmethod
    def primitive(self, slots: Tensor) -> Primitive:
        """The primitive that W is."""

    def linear(self, rows: Tensor, slots: Tensor, start: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return self.primitive(slots).product(rows, base, scale)

    def dense(self, slots: Tensor, start: Tensor) -> Tensor:
        return self.primitive(slots).dense()

    def token_work(self) -> float:
        return self._shape().work.token

    def _shape(self) -> Primitive:
        """The primitive of some slots, on the CPU: arithmetic on the meta device imports torch's compiler."""
        return self.primitive(torch.zeros(self.grid, self.grid, self.size, dtype=torch.float32, device="cpu"))


class ToeplitzBlocks(LinearBlocks):
    """First column, then first row, whose corner is not used."""

    def primitive(self, slots: Tensor) -> Primitive:
        column, row = slots[..., : self.rows], slots[..., self.rows + 1 :]
        return _matrices.toeplitz(torch.cat([row.flip(-1), column], -1), self.columns)

    def _size(self) -> int:
        return self.rows + self.columns


class HankelBlocks(LinearBlocks):
    """First column, then last row, whose corner is not used."""

    def primitive(self, slots: Tensor) -> Primitive:
        column, row = slots[..., : self.rows], slots[..., self.rows + 1 :]
        return _matrices.hankel(torch.cat([column, row], -1), self.columns)

    def _size(self) -> int:
        return self.rows + self.columns


class CirculantBlocks(LinearBlocks):
    """First column of the square block, of which rows x columns are the top left part."""

    def primitive(self, slots: Tensor) -> Primitive:
        return _matrices.circulant(slots, self.rows, self.columns)

    def _size(self) -> int:
        return self.square


class VandermondeBlocks(Blocks):
    """Nodes of the rows. The blocks of one column of the grid, below each other, are one Vandermonde matrix."""

    def draw(self, random: RandomIntegers) -> float:
        return LARGEST_NODE * (2 * random.uniform() - 1)

    def linear(self, rows: Tensor, slots: Tensor, start: Tensor, base: Tensor | None, scale: float) -> Tensor:
        tokens = rows.split(self.columns, -1)
        # Differences of two equal products where nodes are equal; one product added to the other would not be 0.
        terms = (
            self._product(x, v, scale) - self._product(x, v0, scale)
            for x, v, v0 in zip(tokens, self._nodes(slots), self._nodes(start), strict=True)
        )
        return reduce(torch.add, terms) if base is None else reduce(torch.add, terms, base)

    def dense(self, slots: Tensor, start: Tensor) -> Tensor:
        pairs = zip(self._nodes(slots), self._nodes(start), strict=True)
        return torch.cat(
            [dense.vandermonde(v, self.columns) - dense.vandermonde(v0, self.columns) for v, v0 in pairs], 1
        )

    def _product(self, x: Tensor, v: Tensor, scale: float) -> Tensor:
        return _matrices.vandermonde(v, self.columns).product(x, None, scale)

    def _nodes(self, slots: Tensor) -> tuple[Tensor, ...]:
        """(k rows,) for each column of the grid."""
        return slots.transpose(0, 1).flatten(1).unbind()

    def _size(self) -> int:
        return self.rows


class BilinearBlocks(Blocks):
    """Blocks of two factors with `rank` vectors each: those of the left factor, then those of the right.

    W(slots) - W(start) is (left - left_0) right + left_0 (right - right_0): one matrix of twice the rank, which is
    exactly 0 at the start and loses no digits near it.
    """

    ranked = True

    @abstractmethod
    def _lengths(self) -> tuple[int, int]:
        """Of the vectors of the left and of the right factor."""

    def _size(self) -> int:
        return self.rank * sum(self._lengths())

    @abstractmethod
    def _block_linear(self, rows: Tensor, left: Tensor, right: Tensor, base: Tensor | None, scale: float) -> Tensor:
        """The product of one block."""

    @abstractmethod
    def _block_dense(self, left: Tensor, right: Tensor) -> Tensor:
        """The matrix of one block."""

    def linear(self, rows: Tensor, slots: Tensor, start: Tensor, base: Tensor | None, scale: float) -> Tensor:
        left, right = self._difference(slots, start)
        tokens = rows.split(self.columns, -1)
        outputs: list[Any] = [None] * self.grid if base is None else list(base.split(self.rows, -1))
        for p, q in product(range(self.grid), repeat=2):
            outputs[p] = self._block_linear(tokens[q], left[p, q], right[p, q], outputs[p], scale)
        return torch.cat(outputs, -1)

    def dense(self, slots: Tensor, start: Tensor) -> Tensor:
        left, right = self._difference(slots, start)
        blocks = [
            [self._block_dense(*pair) for pair in zip(*row, strict=True)] for row in zip(left, right, strict=True)
        ]
        return torch.cat([torch.cat(row, 1) for row in blocks])

    def _difference(self, slots: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        (left, right), (left_0, right_0) = self._factors(slots), self._factors(start)
        return torch.cat([left - left_0, left_0], 2), torch.cat([right, right - right_0], 2)

    def _factors(self, slots: Tensor) -> list[Tensor]:
        """Left (k, k, rank, length) and right."""
        lengths = self._lengths()
        parts = slots.split([self.rank * length for length in lengths], -1)
        return [part.unflatten(-1, (self.rank, -1)) for part in parts]


class LowRankBlocks(BilinearBlocks):
    """Columns of the left factor, rows of the right one."""

    def _lengths(self) -> tuple[int, int]:
        return self.rows, self.columns

    def token_work(self) -> float:
        return 2 * self.grid**2 * self.rank * (self.rows + self.columns)

    def merge_work(self) -> float:
        return 2 * self.grid**2 * self.rank * self.rows * self.columns

    def _block_linear(self, rows: Tensor, left: Tensor, right: Tensor, base: Tensor | None, scale: float) -> Tensor:
        y = scale * ((rows @ right.mT) @ left)
        return y if base is None else base + y

    def _block_dense(self, left: Tensor, right: Tensor) -> Tensor:
        return left.mT @ right


class ToeplitzLikeBlocks(BilinearBlocks):
    """Generators G and H of the square block, of which rows x columns are the top left part."""

    def _lengths(self) -> tuple[int, int]:
        return self.square, self.square

    def token_work(self) -> float:
        return self.grid**2 * (4 * self.rank + 2) * transform_work(self.square)

    def merge_work(self) -> float:
        return self.square * self.token_work()

    def _block_linear(self, rows: Tensor, left: Tensor, right: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return self._block(left, right).product(rows, base, scale)

    def _block_dense(self, left: Tensor, right: Tensor) -> Tensor:
        return self._block(left, right).dense()

    def _block(self, left: Tensor, right: Tensor) -> Primitive:
        return _matrices.toeplitz_like(left, right, self.rows, self.columns)


KINDS: dict[str, type[Blocks]] = {
    "circulant": CirculantBlocks,
    "toeplitz": ToeplitzBlocks,
    "hankel": HankelBlocks,
    "vandermonde": VandermondeBlocks,
    "low_rank": LowRankBlocks,
    "toeplitz_like": ToeplitzLikeBlocks,
}
