"""Rows and their spectra, as the operators by torch.fft share them.

16-bit tensors are computed in float32 and rounded once. Sums over blocks and tokens are plain reductions, since a
matrix product may be set to run in TF32.
"""

import torch
from torch import Tensor

from surm_kernels._widening import wide_type, widened


def blocks(rows: Tensor, size: int) -> Tensor:
    return rows.unflatten(-1, (rows.shape[-1] // size, size))


def normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to a largest entry in [1, 2) and the power of two that undoes it.

    A row that is not finite becomes zeros with the factor NaN, so that it cannot meet another row.
    """
    rows = widened(rows)
    largest = rows.abs().amax(-1, keepdim=True)
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite, largest, 1.0))[1].sub(1).clamp(-126, 126)
    one = torch.ones_like(largest)
    rows = torch.where(finite, rows * torch.ldexp(one, -exponent), 0.0)
    return rows, torch.where(finite, torch.ldexp(one, exponent), torch.nan)


def normalised_pair(g: Tensor, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Rows whose products are those of `scale * g` and x, with the powers of two of both in the first."""
    g_rows, g_magnitude = normalised(g)
    x_rows, x_magnitude = normalised(x)
    return g_rows * (g_magnitude * x_magnitude * scale), x_rows


def rounded(result: Tensor, magnitude: Tensor | float, base: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`base + magnitude * result` in the type of the tensors that came in."""
    result = result * magnitude
    return (result if base is None else result + base).to(dtype)


def merge(weight: Tensor, matrix: Tensor, scale: float, out: Tensor) -> None:
    """`out = weight + scale * matrix`, the sum in the wider type of weight and out, float32 at least; rounded once."""
    torch._check(
        weight.dtype == out.dtype or torch.float32 in (weight.dtype, out.dtype),
        lambda: "surm_kernels: weight and out must have one dtype, or one of them float32",
    )
    dtype = torch.promote_types(wide_type(weight.dtype), wide_type(out.dtype))
    out.copy_(weight.to(dtype) + scale * matrix.to(dtype))


def kept(spectrum: Tensor, x: Tensor) -> Tensor:
    """What the reference keeps in place of a spectrum, the parameter itself, checked to serve x."""
    torch._check(
        spectrum.dtype == wide_type(x.dtype),
        lambda: "surm_kernels: spectrum must be float32, or float64 where x is",
    )
    return spectrum


def mixed(rows: Tensor, matrix: Tensor) -> Tensor:
    """(G, T, M, F), the product in every frequency of the rows (G, T, K, F) with a matrix (G, M, K, F)."""
    return torch.stack([(rows * row).sum(-2) for row in matrix.unsqueeze(1).unbind(2)], 2)


def correlated(g: Tensor, x: Tensor) -> Tensor:
    """(G, M, K, F), the sums over tokens in every frequency of the products of g (G, T, M, F) and x (G, T, K, F)."""
    return torch.stack([(x * column).sum(1) for column in g.unsqueeze(3).unbind(2)], 1)
