"""Grids of blocks of every kind: their values, tokens for them, and their exact matrices and sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, HANKEL, KINDS, SKEW_CIRCULANT, TOEPLITZ
from tests import oracle
from tests.turns import in_turns

EVERY_KIND = (CIRCULANT, SKEW_CIRCULANT, TOEPLITZ, HANKEL)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

kind_cases = pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: KINDS[kind].name)
#: A kind of square blocks with a value for each column, and one with a value for each diagonal.
either_kind = pytest.mark.parametrize("kind", [SKEW_CIRCULANT, TOEPLITZ], ids=lambda kind: KINDS[kind].name)


class Grid(NamedTuple):
    """M x K blocks of a kind, each m x n."""

    kind: int
    outputs: int
    inputs: int
    rows: int
    columns: int

    def __str__(self) -> str:
        grid = f"{self.outputs}x{self.inputs}-" if self.outputs * self.inputs > 1 else ""
        return f"{KINDS[self.kind].name}-{grid}{self.rows}x{self.columns}"

    def values(self, groups: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random values of the blocks."""
        size = self.columns if self.kind in oracle.SIGNS else self.rows + self.columns - 1
        return torch.randn(groups, self.outputs, self.inputs, size).to(dtype)

    def tokens(self, groups: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Random inputs, and cotangents of the outputs."""
        widths = self.inputs * self.columns, self.outputs * self.rows
        x, g = (torch.randn(groups, tokens, width).to(dtype) for width in widths)
        return x, g

    def matrices(self, values: Tensor) -> Tensor:
        """The float64 matrix of every group."""
        return torch.stack([oracle.grid(group, self.kind, self.columns) for group in values])

    def sums(self, w: Tensor) -> Tensor:
        """The float64 gradient of <w, W> with respect to the values, for every group."""
        return torch.stack([oracle.grid_sums(group, self.kind, self.rows, self.columns) for group in w])

    def pullback(self, g: Tensor, x: Tensor) -> Tensor:
        """The float64 gradient of <g, x W^T> with respect to the values, for every group."""
        return self.sums(g.double().mT @ x.double())


def grid_of(kind: int, rows: int, columns: int, outputs: int = 1, inputs: int = 1) -> Grid:
    """A grid of such blocks; where blocks are square, of as many rows as columns."""
    return Grid(kind, outputs, inputs, columns if kind in oracle.SIGNS else rows, columns)


def grids_in_turns(shapes: Sequence[tuple[int, ...]], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A grid of every shape and kind, with one of each of the others; single rectangles where a kind has them."""
    return [
        (grid_of(kind, *shape), *rest)
        for shape, kind, *rest in in_turns(shapes, EVERY_KIND, *others)
        if shape[0] == shape[1] or len(shape) > 2 or kind not in oracle.SIGNS
    ]


def kinds_and_types_in_turns(shapes: Sequence[tuple[int, ...]], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every kind in every type, with a shape and one of each of the others."""
    every = in_turns(EVERY_KIND, DTYPES, shapes, *others)
    return [(grid_of(kind, *shape), dtype, *rest) for kind, dtype, shape, *rest in every]
