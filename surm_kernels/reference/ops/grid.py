"""The grid operators by torch.fft, one transform a row; signatures and values as docs/architecture.md has them.

Circulant blocks of both signs are diagonal in one basis: W = D^-1 F^-1 diag(spectrum of v) F D with the Fourier matrix
F, and D = I for sign 1 or D = diag(exp(i pi j / b)) for sign -1. A product with a Toeplitz block is a part of the
linear convolution of t and x, y[i] = (t * x)[i + n - 1], and so is the pullback, of g and x reversed; what a circular
convolution of m + n - 1 values or more wraps falls outside that part. A Hankel block is a Toeplitz block that meets x
in reverse. Conjugates are physical: compiled graphs call operators with lazy conjugation disabled, which ignores the
mark of a lazy one.
"""

from typing import Protocol

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.block_kinds import KINDS
from surm_kernels.reference import dense
from surm_kernels.reference.ops._rows import (
    blocks,
    correlated,
    kept,
    merge,
    mixed,
    normalised,
    normalised_pair,
    rounded,
)
from surm_kernels.reference.ops.stochastic import stochastic_sum


def grid(
    x: Tensor, values: Tensor, base: Tensor | None, kind: int, columns: int, scale: float, transposed: bool
) -> Tensor:
    rows = KINDS[kind].rows(values.shape[-1], columns)
    if transposed:
        values, rows, columns = _FORMULAS[kind].transpose(values), columns, rows
    if x.numel() == 0:  # torch.fft refuses empty batches
        return x.new_empty(x.shape[0], x.shape[1], values.shape[1] * rows)
    tokens, magnitude = normalised(x)
    product = _FORMULAS[kind].product(blocks(tokens, columns), widened(values), rows)
    return rounded(product.flatten(-2), magnitude * scale, base, x.dtype)


def grid_pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> Tensor:
    return _pullback(g, x, kind, rows, columns, scale, x.dtype)


def _pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float, dtype: torch.dtype) -> Tensor:
    if x.numel() == 0:
        grid_shape = x.shape[0], g.shape[-1] // rows, x.shape[-1] // columns
        return x.new_zeros(*grid_shape, KINDS[kind].values(rows, columns), dtype=dtype)
    g_rows, x_rows = normalised_pair(g, x, scale)
    return _FORMULAS[kind].pullback(blocks(g_rows, rows), blocks(x_rows, columns)).contiguous().to(dtype)


def grid_backward(
    g: Tensor, x: Tensor, values: Tensor, kind: int, columns: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    output, input = (x, g) if transposed else (g, x)
    rows = KINDS[kind].rows(values.shape[-1], columns)
    x_gradient = grid(g, values, None, kind, columns, scale, not transposed)
    return x_gradient, _pullback(output, input, kind, rows, columns, scale, values.dtype)


def grid_dense(values: Tensor, kind: int, columns: int) -> Tensor:
    return _FORMULAS[kind].dense(values, columns)


def grid_dense_adjoint(w: Tensor, kind: int, rows: int, columns: int) -> Tensor:
    entries = blocks(widened(w), columns).unflatten(1, (w.shape[1] // rows, rows)).transpose(2, 3)
    return _FORMULAS[kind].sums(entries).to(w.dtype)


def grid_merge(
    weight: Tensor, values: Tensor, kind: int, columns: int, scale: float, key: Tensor | None, out: Tensor
) -> None:
    if key is None:
        return merge(weight, grid_dense(values[None], kind, columns)[0], scale, out)
    scaled = scale * values.float()  # as the kernels do, to the bit
    stochastic_sum(weight, grid_dense(scaled[None], kind, columns)[0], key, out)


def grid_spectrum(values: Tensor, kind: int, columns: int, transposed: bool) -> Tensor:
    return widened(_FORMULAS[kind].transpose(values) if transposed else values).flatten().clone()


def grid_by_spectrum(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    kind: int,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
) -> Tensor:
    values = kept(spectrum, x).view(x.shape[0], outputs, inputs, KINDS[kind].values(rows, columns))
    return grid(x, values, base, kind, columns, scale, False)


class _Formulas(Protocol):
    """What a kind of blocks is; tokens are in blocks, (G, T, blocks, size), and all tensors in the type of the sums."""

    def product(self, x: Tensor, values: Tensor, rows: int) -> Tensor:
        """(G, T, M, rows)."""

    def pullback(self, g: Tensor, x: Tensor) -> Tensor:
        """(G, M, K, values), summed over the tokens."""

    def transpose(self, values: Tensor) -> Tensor:
        """The values of the transposed grid."""

    def dense(self, values: Tensor, columns: int) -> Tensor:
        """(G, M rows, K columns)."""

    def sums(self, entries: Tensor) -> Tensor:
        """The adjoint of `dense`, from entries (G, M, K, rows, columns)."""


class _Circulant:
    """`W[i, j] = v[i - j]` if i >= j, else `sign * v[b + i - j]`."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def product(self, x: Tensor, values: Tensor, rows: int) -> Tensor:
        return self._signal(mixed(self._spectrum(x), self._spectrum(values)), rows)

    def pullback(self, g: Tensor, x: Tensor) -> Tensor:
        return self._signal(correlated(self._spectrum(g), self._spectrum(x).conj_physical()), x.shape[-1])

    def transpose(self, values: Tensor) -> Tensor:
        return torch.cat([values[..., :1], self.sign * values[..., 1:].flip(-1)], -1).transpose(1, 2)

    def dense(self, values: Tensor, columns: int) -> Tensor:
        return dense.krylov(values, float(self.sign))

    def sums(self, entries: Tensor) -> Tensor:
        block = entries.shape[-1]
        index = torch.arange(block, device=entries.device)
        row = index[:, None] + index  # entry (k, j): where diagonal k meets column j, before wrapping
        diagonals = entries[..., row % block, index]
        return torch.where(row < block, diagonals, self.sign * diagonals).sum(-1)

    def _spectrum(self, t: Tensor) -> Tensor:
        t = t.contiguous()  # the rounding of torch.fft depends on the strides
        return torch.fft.rfft(t) if self.sign == 1 else torch.fft.fft(t * self._twist(t))

    def _signal(self, spectrum: Tensor, block: int) -> Tensor:
        if self.sign == 1:
            return torch.fft.irfft(spectrum, n=block)
        return (torch.fft.ifft(spectrum) * self._twist(spectrum.real).conj_physical()).real.contiguous()

    def _twist(self, like: Tensor) -> Tensor:
        """exp(i pi j / b), in float64 until the last rounding."""
        block = like.shape[-1]
        angle = torch.arange(block, dtype=torch.float64, device=like.device) * (torch.pi / block)
        return torch.polar(torch.ones_like(angle), angle).to(like.dtype.to_complex())


class _Toeplitz:
    """`W[i, j] = t[i - j + n - 1]`, or `t[i + j]` when reflected."""

    def __init__(self, reflected: bool) -> None:
        self.reflected = reflected

    def product(self, x: Tensor, values: Tensor, rows: int) -> Tensor:
        columns, size = x.shape[-1], _power_of_two_from(values.shape[-1])
        x_spectrum = _spectrum(x.flip(-1) if self.reflected else x, size)
        convolution = torch.fft.irfft(mixed(x_spectrum, _spectrum(values, size)), n=size)
        return convolution[..., columns - 1 : columns - 1 + rows]

    def pullback(self, g: Tensor, x: Tensor) -> Tensor:
        values = g.shape[-1] + x.shape[-1] - 1
        size = _power_of_two_from(values)
        x_spectrum = _spectrum(x if self.reflected else x.flip(-1), size)
        return torch.fft.irfft(correlated(_spectrum(g, size), x_spectrum), n=size)[..., :values]

    def transpose(self, values: Tensor) -> Tensor:
        """The diagonals of the transpose come in reverse order, its antidiagonals in the same."""
        return values.transpose(1, 2) if self.reflected else values.transpose(1, 2).flip(-1)

    def dense(self, values: Tensor, columns: int) -> Tensor:
        return dense.hankel(values, columns) if self.reflected else dense.toeplitz(values, columns)

    def sums(self, entries: Tensor) -> Tensor:
        rows, columns = entries.shape[-2:]
        entries = entries if self.reflected else entries.flip(-1)
        # Rows m entries longer, read one entry shorter than that, shift row i by i: antidiagonals become columns.
        sheared = torch.nn.functional.pad(entries, (0, rows)).flatten(-2)[..., :-rows]
        return sheared.unflatten(-1, (rows, rows + columns - 1)).sum(-2)


def _power_of_two_from(length: int) -> int:
    """The least that holds a period of `length` values."""
    return 1 << (length - 1).bit_length()


def _spectrum(t: Tensor, size: int) -> Tensor:
    return torch.fft.rfft(t.contiguous(), n=size)  # the rounding of torch.fft depends on the strides


_FORMULAS: tuple[_Formulas, ...] = (
    _Circulant(sign=1),
    _Circulant(sign=-1),
    _Toeplitz(reflected=False),
    _Toeplitz(reflected=True),
)
