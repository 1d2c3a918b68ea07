"""The block Krylov operators by torch.fft, one transform a row; signatures and values as docs/architecture.md has them.

Both signs diagonalise in one basis: W = D^-1 F^-1 diag(spectrum of v) F D with the Fourier matrix F, and D = I for
sign 1 or D = diag(exp(i pi j / b)) for sign -1. All three are unitary up to a factor, so a transpose conjugates the
spectrum. 16-bit tensors are computed in float32 and rounded once. Sums over blocks and tokens are plain reductions,
since a matrix product may be set to run in TF32. Conjugates are physical: compiled
graphs call operators with lazy conjugation disabled, which ignores the mark of a lazy one.
"""

import torch
from torch import Tensor

from surm_kernels.reference import dense


def krylov(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
    groups, outputs, inputs, block = v.shape
    if x.shape[1] == 0:  # torch.fft refuses empty batches
        return x.new_empty(groups, 0, (inputs if transposed else outputs) * block)
    rows, magnitude = _normalised(x)
    x_spectrum, v_spectrum = _spectrum(_blocks(rows, block), sign), _spectrum(_wide(v), sign)
    if transposed:
        v_spectrum = v_spectrum.conj_physical().transpose(1, 2)
    columns = [(x_spectrum * row).sum(-2) for row in v_spectrum.unsqueeze(1).unbind(2)]
    result = _signal(torch.stack(columns, 2), sign, block).flatten(-2) * (magnitude * scale)
    if base is not None:
        result = result + base
    return result.to(x.dtype)


def krylov_pullback(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], g.shape[-1] // block, x.shape[-1] // block, block)
    g_rows, g_magnitude = _normalised(g)
    x_rows, x_magnitude = _normalised(x)
    g_spectrum = _spectrum(_blocks(g_rows * (g_magnitude * x_magnitude * scale), block), sign)
    x_conjugate = _spectrum(_blocks(x_rows, block), sign).conj_physical()
    rows = [(x_conjugate * column).sum(1) for column in g_spectrum.unsqueeze(3).unbind(2)]
    return _signal(torch.stack(rows, 1), sign, block).to(x.dtype)


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
    blocks = _wide(w).unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).transpose(-3, -2)
    entries = blocks[..., row % block, index]
    return torch.where(row < block, entries, sign * entries).sum(-1).to(w.dtype)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _blocks(rows: Tensor, block: int) -> Tensor:
    return rows.unflatten(-1, (-1, block))


def _normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to a largest entry in [1, 2) and the power of two that undoes it.

    A row that is not finite becomes zeros with the factor NaN, so that it cannot meet another row.
    """
    rows = _wide(rows)
    largest = rows.abs().amax(-1, keepdim=True)
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite, largest, 1.0))[1].sub(1).clamp(-126, 126)
    one = torch.ones_like(largest)
    rows = torch.where(finite, rows * torch.ldexp(one, -exponent), 0.0)
    return rows, torch.where(finite, torch.ldexp(one, exponent), torch.nan)


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
