"""The low displacement rank operators; signatures and values as docs/architecture.md has them.

W = sum over l of Z_1(left[l]) Z_-1(right[l]) is a row of r circulant blocks times a column of r skew-circulant ones, so
each operator is two grid operators with nothing rounded in between.
"""

import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, SKEW_CIRCULANT
from surm_kernels.reference.ops._rows import normalised, normalised_pair, rounded
from surm_kernels.reference.ops.grid import grid, grid_pullback


def ldr(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    base: Tensor | None,
    width: int,
    scale: float,
    transposed: bool,
    reflected: bool,
) -> Tensor:
    if x.shape[1] == 0:  # torch.fft refuses empty batches
        return x.new_empty(x.shape[0], 0, width)
    rows, magnitude = normalised(x)
    if transposed:
        middle = _transposed_circulants(rows, left)
        product = grid(middle, right.unsqueeze(2), None, SKEW_CIRCULANT, right.shape[-1], 1.0, True)
        product = product.flip(-1) if reflected else product
    else:
        middle = _skew_circulants(rows, right, reflected)
        product = grid(middle, left.unsqueeze(1), None, CIRCULANT, left.shape[-1], 1.0, False)
    return rounded(product[..., :width], magnitude * scale, base, x.dtype).contiguous()


def ldr_pullback_left(g: Tensor, x: Tensor, right: Tensor, scale: float, reflected: bool) -> Tensor:
    if x.shape[1] == 0:
        return torch.zeros_like(right, memory_format=torch.contiguous_format)
    g_rows, x_rows = normalised_pair(g, x, scale)
    size = right.shape[-1]
    middle = _skew_circulants(x_rows, right, reflected)
    return grid_pullback(_padded(g_rows, size), middle, CIRCULANT, size, size, 1.0).squeeze(1).to(x.dtype)


def ldr_pullback_right(g: Tensor, x: Tensor, left: Tensor, scale: float, reflected: bool) -> Tensor:
    if x.shape[1] == 0:
        return torch.zeros_like(left, memory_format=torch.contiguous_format)
    g_rows, x_rows = normalised_pair(g, x, scale)
    size = left.shape[-1]
    middle = _transposed_circulants(g_rows, left)
    rows = _reflected(x_rows, size, reflected)
    return grid_pullback(middle, rows, SKEW_CIRCULANT, size, size, 1.0).squeeze(2).to(x.dtype)


def ldr_backward(
    g: Tensor, x: Tensor, left: Tensor, right: Tensor, scale: float, reflected: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        ldr(g, left, right, None, x.shape[-1], scale, True, reflected),
        ldr_pullback_left(g, x, right, scale, reflected),
        ldr_pullback_right(g, x, left, scale, reflected),
    )


def _skew_circulants(x: Tensor, right: Tensor, reflected: bool) -> Tensor:
    """(G, T, r n), every Z_-1(right[l]) x, of J x when reflected."""
    size = right.shape[-1]
    return grid(_reflected(x, size, reflected), right.unsqueeze(2), None, SKEW_CIRCULANT, size, 1.0, False)


def _transposed_circulants(g: Tensor, left: Tensor) -> Tensor:
    """(G, T, r n), every Z_1(left[l])^T g."""
    size = left.shape[-1]
    return grid(_padded(g, size), left.unsqueeze(1), None, CIRCULANT, size, 1.0, True)


def _reflected(x: Tensor, size: int, reflected: bool) -> Tensor:
    """J x of the padded x when reflected, else the padded x."""
    padded = _padded(x, size)
    return padded.flip(-1) if reflected else padded


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, size - rows.shape[-1]))
