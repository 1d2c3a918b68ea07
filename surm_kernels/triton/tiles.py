"""Tiles of structured matrices, generated inside a kernel from the few parameters that W has.

`entries` gives W[row, column] for index vectors that broadcast against one another, so that one function serves W, its
transpose and tiles of any shape. Its kinds:

    circulant, skew_circulant        theta (M, K, b): blocks v[i - j] if i >= j, else f v[b + i - j], f = 1 or -1
    toeplitz, hankel                 theta (M, K, m + n - 1): blocks t[i - j + n - 1], blocks t[i + j]
    vandermonde                      theta of `powers`: v[i]^j
    weighted_vandermonde             theta of `powers` and w (K, m): blocks w[l, i] v[i]^j, side by side
    cauchy_like                      theta v (m), u (n), G (r, m), H (r, n): (G^T H)[i, j] / (v[i] - u[j])

m is `rows` and n is `columns`, of a block where there are blocks; `in_blocks` is their number K in a row of blocks, and
the number r of generators of a Cauchy-like matrix.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

POWERS = 32  # consecutive powers in the first table of a Vandermonde matrix
_POWERS = tl.constexpr(POWERS)


class Matrix(NamedTuple):
    """What a kernel needs to generate W: theta, contiguous with the groups in front, and the sizes of `entries`."""

    kind: str
    theta: Tensor
    rows: int
    columns: int
    in_blocks: int
    outputs: int
    inputs: int

    @property
    def theta_size(self) -> int:
        """The number of values of one group's theta."""
        return self.theta[0].numel()


@triton.jit
def entries(theta, row, column, rows, columns, in_blocks, KIND: tl.constexpr):
    """W[row, column] in the type of theta."""
    if KIND == "circulant":
        entry = circulant_entries(theta, row, column, rows, in_blocks, False)
    elif KIND == "skew_circulant":
        entry = circulant_entries(theta, row, column, rows, in_blocks, True)
    elif KIND == "toeplitz":
        entry = toeplitz_entries(theta, row, column, rows, columns, in_blocks, False)
    elif KIND == "hankel":
        entry = toeplitz_entries(theta, row, column, rows, columns, in_blocks, True)
    elif KIND == "vandermonde":
        entry = power(theta, row, column, rows, columns)
    elif KIND == "weighted_vandermonde":
        entry = weight(theta, row, column // columns, rows, columns) * power(
            theta, row, column % columns, rows, columns
        )
    else:
        tl.static_assert(KIND == "cauchy_like", "unknown kind of matrix")
        entry = generators_product(theta, row, column, rows, columns, in_blocks) / difference(theta, row, column, rows)
    return entry


@triton.jit
def circulant_entries(theta, row, column, block, in_blocks, SKEW: tl.constexpr):
    """v[i - j] where i >= j in a block, else f v[block + i - j]."""
    i, j = row % block, column % block
    # What depends on the row and what depends on the column meet in one addition for each entry.
    index = (row // block * in_blocks * block + i) + (column // block * block - j)
    wraps = i < j
    entry = tl.load(theta + index + tl.where(wraps, block, 0))
    if SKEW:
        entry = tl.where(wraps, -entry, entry)
    return entry


@triton.jit
def toeplitz_entries(theta, row, column, rows, columns, in_blocks, REFLECTED: tl.constexpr):
    """t[i - j + columns - 1] in a block, t[i + j] where REFLECTED."""
    length = rows + columns - 1
    i, j = row % rows, column % columns
    if not REFLECTED:
        j = columns - 1 - j
    return tl.load(theta + (row // rows * in_blocks * length + i) + (column // columns * length + j))


@triton.jit
def power(theta, row, exponent, rows, columns):
    """v[row]^exponent, the product of two powers rounded from float64: of the remainder and of the multiple."""
    multiples = theta + rows * _POWERS
    low = tl.load(theta + row * _POWERS + exponent % _POWERS)
    return low * tl.load(multiples + row * tl.cdiv(columns, _POWERS) + exponent // _POWERS)


@triton.jit
def weight(theta, row, block, rows, columns):
    """w[block, row], which follows the powers."""
    table = theta + rows * (_POWERS + tl.cdiv(columns, _POWERS))
    return tl.load(table + block * rows + row)


@triton.jit
def difference(theta, row, column, rows):
    """v[row] - u[column]."""
    return tl.load(theta + row) - tl.load(theta + rows + column)


@triton.jit
def generators_product(theta, row, column, rows, columns, rank):
    """(G^T H)[row, column]."""
    total = tl.zeros_like(row + column).to(tl.float32)
    for term in range(rank):
        total += left_generator(theta, term, row, rows, columns) * right_generator(
            theta, term, column, rows, columns, rank
        )
    return total


@triton.jit
def left_generator(theta, term, row, rows, columns):
    """G[term, row]."""
    return tl.load(theta + rows + columns + term * rows + row)


@triton.jit
def right_generator(theta, term, column, rows, columns, rank):
    """H[term, column]."""
    return tl.load(theta + rows + columns + rank * rows + term * columns + column)
