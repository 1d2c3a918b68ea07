"""The block Krylov operators by torch.fft, one transform a row; signatures and values as docs/architecture.md has them.

Both signs diagonalise in one basis: W = D^-1 F^-1 diag(spectrum of v) F D with the Fourier matrix F, and D = I for
sign 1 or D = diag(exp(i pi j / b)) for sign -1. All three are unitary up to a factor, so a transpose conjugates the
spectrum. Conjugates are physical: compiled graphs call operators with lazy conjugation disabled, which ignores the mark
of a lazy one.
"""

import torch
from torch import Tensor

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
    wide,
)


def krylov(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
    groups, outputs, inputs, block = v.shape
    if x.numel() == 0:  # torch.fft refuses empty batches
        return x.new_empty(groups, x.shape[1], (inputs if transposed else outputs) * block)
    rows, magnitude = normalised(x)
    x_spectrum, v_spectrum = _spectrum(blocks(rows, block), sign), _spectrum(wide(v), sign)
    if transposed:
        v_spectrum = v_spectrum.conj_physical().transpose(1, 2)
    product = _signal(mixed(x_spectrum, v_spectrum), sign, block).flatten(-2)
    return rounded(product, magnitude * scale, base, x.dtype)


def krylov_pullback(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], g.shape[-1] // block, x.shape[-1] // block, block)
    g_rows, x_rows = normalised_pair(g, x, scale)
    x_conjugate = _spectrum(blocks(x_rows, block), sign).conj_physical()
    return _signal(correlated(_spectrum(blocks(g_rows, block), sign), x_conjugate), sign, block).to(x.dtype)


def krylov_backward(
    g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    output, input = (x, g) if transposed else (g, x)
    x_gradient = krylov(g, v, None, sign, scale, not transposed)
    return x_gradient, krylov_pullback(output, input, v.shape[-1], sign, scale)


def krylov_dense(v: Tensor, sign: int) -> Tensor:
    return dense.krylov(v, float(sign))


def krylov_dense_adjoint(w: Tensor, block: int, sign: int) -> Tensor:
    index = torch.arange(block, device=w.device)
    row = index[:, None] + index[None, :]  # entry (k, j): where diagonal k meets column j, before wrapping
    squares = wide(w).unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).transpose(-3, -2)
    entries = squares[..., row % block, index]
    return torch.where(row < block, entries, sign * entries).sum(-1).to(w.dtype)


def krylov_merge(weight: Tensor, v: Tensor, sign: int, scale: float, out: Tensor) -> None:
    merge(weight, krylov_dense(v[None], sign)[0], scale, out)


def krylov_spectrum(v: Tensor, sign: int, transposed: bool) -> Tensor:
    if transposed:  # [v_0, f v_{n-1}, ..., f v_1] in every block
        v = torch.cat([v[..., :1], sign * v[..., 1:].flip(-1)], -1).transpose(1, 2)
    return wide(v).flatten().clone()


def krylov_by_spectrum(
    x: Tensor, spectrum: Tensor, base: Tensor | None, outputs: int, inputs: int, block: int, sign: int, scale: float
) -> Tensor:
    v = kept(spectrum, x).view(x.shape[0], outputs, inputs, block)
    return krylov(x, v, base, sign, scale, False)


def _twist(block: int, like: Tensor) -> Tensor:
    """exp(i pi j / block), in float64 until the last rounding."""
    angle = torch.arange(block, dtype=torch.float64, device=like.device) * (torch.pi / block)
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype.to_complex())


def _spectrum(t: Tensor, sign: int) -> Tensor:
    t = t.contiguous()  # the rounding of torch.fft depends on the strides
    return torch.fft.rfft(t) if sign == 1 else torch.fft.fft(t * _twist(t.shape[-1], t))


def _signal(spectrum: Tensor, sign: int, block: int) -> Tensor:
    if sign == 1:
        return torch.fft.irfft(spectrum, n=block)
    return (torch.fft.ifft(spectrum) * _twist(block, spectrum.real).conj_physical()).real.contiguous()
