"""Toeplitz and Hankel products beside torch.fft by zero padding, and beside a circulant product of ours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels import dense, functional
from surm_kernels.command.bench.case import (
    BOTH,
    OURS,
    TORCH_FFT,
    Case,
    Claim,
    Method,
    Parameters,
    Point,
    Product,
    given,
    point,
    points,
)
from surm_kernels.command.bench.measure import compare_nothing
from surm_kernels.structures import Circulant

CIRCULANT = "circulant of ours"
STRIDED = "as_strided"


def torch_fft_toeplitz(x: Tensor, t: Tensor) -> Tensor:
    """The Toeplitz product as torch's users write it: a part of the convolution of t and x, by m + n frequencies."""
    columns, last = x.shape[-1], t.shape[-1]
    size = last + 1  # what wraps around stays in front of the part
    y = torch.fft.irfft(torch.fft.rfft(t, size) * torch.fft.rfft(x, size), size)
    return y[..., columns - 1 : last]


def torch_fft_hankel(x: Tensor, h: Tensor) -> Tensor:
    """A Hankel matrix is a Toeplitz matrix times the reversal."""
    return torch_fft_toeplitz(x.flip(-1), h)


def strided_toeplitz(x: Tensor, t: Tensor) -> Tensor:
    """The matrix as overlapping rows of the reversed vector, bottom up; the last flip copies them."""
    reversed_rows = t.flip(0).as_strided((len(t) - x.shape[-1] + 1, x.shape[-1]), (1, 1))
    return reversed_rows.flip(0)


def indexed_toeplitz(x: Tensor, t: Tensor) -> Tensor:
    """The matrix by its index formula, t[i - j + n - 1]."""
    columns = x.shape[-1]
    rows = torch.arange(len(t) - columns + 1)
    return t[rows[:, None] - torch.arange(columns) + columns - 1]


def _circulant_product(point: Point, dtype: torch.dtype) -> Product:
    """A layer's circulant product of the same size: padded with zeros, the first outputs kept."""
    return Circulant(point.in_features, point.out_features).linear


def _first_values(point: Point, parameters: Parameters) -> Parameters:
    return (parameters[0][: max(point.in_features, point.out_features)],)


def _diagonals(point: Point) -> tuple[tuple[int, ...], ...]:
    return ((point.in_features + point.out_features - 1,),)


TOEPLITZ = Method(OURS, given(functional.toeplitz_linear))
HANKEL = Method(OURS, given(functional.hankel_linear))
DENSE_TOEPLITZ = Method(OURS, given(lambda x, t: dense.toeplitz(t, x.shape[-1])))
FFT_TOEPLITZ = Method(TORCH_FFT, given(torch_fft_toeplitz), through_float32=True)
FFT_HANKEL = Method(TORCH_FFT, given(torch_fft_hankel), through_float32=True)
OUR_CIRCULANT = Method(CIRCULANT, _circulant_product, _first_values, compare_nothing)
BY_STRIDES = Method(STRIDED, given(strided_toeplitz))

SIZES = (*points(768, 1024, 2048, 4096), point(768, 3072))
MATRIX = (Point(4096, 4096, 0),)

CASES: Sequence[Case] = (
    Case(
        "toeplitz-training",
        "Toeplitz, forward + backward",
        (TOEPLITZ, FFT_TOEPLITZ, OUR_CIRCULANT),
        given(torch_fft_toeplitz),
        _diagonals,
        SIZES,
        (SIZES[0],),
        BOTH,
        gradients=True,
        claims=(
            Claim(TORCH_FFT, 4.5, 4.5),
            Claim(CIRCULANT, 1 / 2.3, 1 / 2.3, square_only=True),
        ),
    ),
    Case(
        "hankel-training",
        "Hankel, forward + backward",
        (HANKEL, FFT_HANKEL),
        given(torch_fft_hankel),
        _diagonals,
        points(1024),
        (),
        (torch.float32,),
        gradients=True,
    ),
    Case(
        "dense-toeplitz",
        "the Toeplitz matrix itself",
        (DENSE_TOEPLITZ, BY_STRIDES),
        given(indexed_toeplitz),
        _diagonals,
        MATRIX,
        MATRIX,
        (torch.float32,),
        gradients=False,
        claims=(Claim(STRIDED, 1.0, 1.0),),
    ),
)
