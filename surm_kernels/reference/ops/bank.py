"""The bank operators, a row of a parameter for every token; signatures and values as docs/architecture.md has them.

16-bit circulant products are computed in float32 and rounded once; all three factors of a diagonal product meet in
float32 too, here. An index out of range gives a row of NaN.
"""

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.reference.ops import grid
from surm_kernels.reference.ops._rows import rounded


def circulant_bank(
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, kind: int, scale: float, transposed: bool
) -> Tensor:
    own = gathered(c, index)[:, None, None]
    start = None if base is None else base.unsqueeze(1)
    return grid.grid(x.unsqueeze(1), own, start, kind, c.shape[1], scale, transposed).squeeze(1)


def diagonal_bank(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Tensor:
    between = (widened(x) @ widened(v)) * widened(gathered(s, index))
    return rounded(between @ widened(u).mT, scale, base, x.dtype)


def gathered(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]` for any integer index, NaN where there is no such row; differentiable, and never synchronises."""
    index = index.long()
    there = (index >= 0) & (index < rows.shape[0])
    return rows[torch.where(there, index, 0)].masked_fill(~there.unsqueeze(-1), torch.nan)
