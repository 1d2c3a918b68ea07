"""The block Toeplitz operators by torch.fft; signatures and values as docs/architecture.md has them.

A product is a part of the linear convolution of t and x: y[i] = (t * x)[i + n - 1]. So is the pullback, of g and x
reversed. In both, what a circular convolution of m + n - 1 values or more wraps falls outside that part. A Hankel
matrix is a Toeplitz matrix that meets the blocks of x in reverse.
"""

import torch
from torch import Tensor

from surm_kernels.reference.ops._rows import (
    blocks,
    correlated,
    kept,
    merge,
    mixed,
    normalised,
    normalised_pair,
    rounded,
    wide,
)


def toeplitz(
    x: Tensor, t: Tensor, base: Tensor | None, columns: int, scale: float, transposed: bool, reflected: bool
) -> Tensor:
    rows = t.shape[-1] - columns + 1
    if transposed:
        t, rows, columns = _transpose(t, reflected), columns, rows
    if x.shape[1] == 0:  # torch.fft refuses empty batches
        return x.new_empty(x.shape[0], 0, t.shape[1] * rows)
    tokens, magnitude = normalised(x)
    x_blocks = blocks(tokens, columns)
    size = _size(t.shape[-1])
    x_spectrum = _spectrum(x_blocks.flip(-1) if reflected else x_blocks, size)
    convolution = torch.fft.irfft(mixed(x_spectrum, _spectrum(wide(t), size)), n=size)
    product = convolution[..., columns - 1 : columns - 1 + rows].flatten(-2)
    return rounded(product, magnitude * scale, base, x.dtype)


def toeplitz_pullback(g: Tensor, x: Tensor, rows: int, columns: int, scale: float, reflected: bool) -> Tensor:
    return _pullback(g, x, rows, columns, scale, reflected, x.dtype)


def _pullback(
    g: Tensor, x: Tensor, rows: int, columns: int, scale: float, reflected: bool, dtype: torch.dtype
) -> Tensor:
    length = rows + columns - 1
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], g.shape[-1] // rows, x.shape[-1] // columns, length, dtype=dtype)
    g_rows, x_rows = normalised_pair(g, x, scale)
    x_blocks = blocks(x_rows, columns)
    size = _size(length)
    x_spectrum = _spectrum(x_blocks if reflected else x_blocks.flip(-1), size)
    convolution = torch.fft.irfft(correlated(_spectrum(blocks(g_rows, rows), size), x_spectrum), n=size)
    return convolution[..., :length].contiguous().to(dtype)


def toeplitz_backward(
    g: Tensor, x: Tensor, t: Tensor, columns: int, scale: float, reflected: bool
) -> tuple[Tensor, Tensor]:
    x_gradient = toeplitz(g, t, None, columns, scale, True, reflected)
    return x_gradient, _pullback(g, x, t.shape[-1] - columns + 1, columns, scale, reflected, t.dtype)


def toeplitz_dense(t: Tensor, columns: int, reflected: bool) -> Tensor:
    i = torch.arange(t.shape[-1] - columns + 1, device=t.device)[:, None]
    j = torch.arange(columns, device=t.device)
    entries = t[..., i + j if reflected else i - j + columns - 1]
    return entries.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def toeplitz_dense_adjoint(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    entries = blocks(wide(w), columns).unflatten(1, (w.shape[1] // rows, rows)).transpose(2, 3)
    entries = entries if reflected else entries.flip(-1)
    # Rows m entries longer, read one entry shorter than that, shift row i by i: antidiagonals become columns.
    sheared = torch.nn.functional.pad(entries, (0, rows)).flatten(-2)[..., :-rows]
    return sheared.unflatten(-1, (rows, rows + columns - 1)).sum(-2).to(w.dtype)


def toeplitz_merge(weight: Tensor, t: Tensor, columns: int, reflected: bool, scale: float, out: Tensor) -> None:
    merge(weight, toeplitz_dense(t[None], columns, reflected)[0], scale, out)


def toeplitz_spectrum(t: Tensor, columns: int, transposed: bool, reflected: bool) -> Tensor:
    return wide(_transpose(t, reflected) if transposed else t).flatten().clone()


def toeplitz_by_spectrum(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
    reflected: bool,
) -> Tensor:
    t = kept(spectrum, x).view(x.shape[0], outputs, inputs, rows + columns - 1)
    return toeplitz(x, t, base, columns, scale, False, reflected)


def _transpose(t: Tensor, reflected: bool) -> Tensor:
    """The parameter of the transpose: its diagonals come in reverse order, its antidiagonals in the same."""
    return t.transpose(1, 2) if reflected else t.transpose(1, 2).flip(-1)


def _size(length: int) -> int:
    """The power of two that holds a period of `length` values."""
    return 1 << (length - 1).bit_length()


def _spectrum(t: Tensor, size: int) -> Tensor:
    return torch.fft.rfft(t.contiguous(), n=size)  # the rounding of torch.fft depends on the strides
