"""What transforms on tensor cores have to reach, wherever they run: inputs, exact results, limits of errors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, SKEW_CIRCULANT
from tests import oracle

#: Sizes that transforms on tensor cores are for; of those, one for every kind of outer stage that fills it.
ALL_SIZES = tuple(256 * radix for radix in (*range(1, 17), *range(18, 33, 2)))
SIZES = tuple(256 * radix for radix in (1, 3, 4, 8, 16, 32))
#: Size and kind of blocks that fill it, and of others that are twisted, up to 1024 by factors of their own.
FILLING = tuple((size, CIRCULANT) for size in SIZES)
TWISTED = tuple((size, SKEW_CIRCULANT) for size in (256, 512, 1024, 1536, 3072, 5120))
BLOCKS = (*FILLING, *TWISTED)
DTYPES = (torch.bfloat16, torch.float16)
DRAWS = 12
#: Errors of a result in 16 bits, in those of rounding the exact one: of one draw, and in the mean of DRAWS.
OF_EACH, OF_MEAN = 1.2, 1.1


class Draw(NamedTuple):
    """One circulant or skew-circulant matrix, of the first column c, and tokens."""

    c: Tensor
    x: Tensor
    g: Tensor
    block: int = CIRCULANT

    def y(self) -> Tensor:
        """The exact product."""
        return values_of(spectrum_of(self.c, self.block) * spectrum_of(self.x, self.block), self.block)

    def x_gradient(self) -> Tensor:
        """The exact product with the transposed matrix."""
        return values_of(spectrum_of(self.c, self.block).conj() * spectrum_of(self.g, self.block), self.block)

    def c_gradient(self) -> Tensor:
        """The exact gradient of <g, product> with respect to c."""
        spectrum = spectrum_of(self.g, self.block) * spectrum_of(self.x, self.block).conj()
        return values_of(spectrum.sum((0, 1)), self.block)


def twist(size: int, block: int) -> Tensor:
    """What makes of skew-circulant products circulant ones, exp(iπ j/n); ones for a circulant matrix."""
    turns = torch.arange(size, dtype=torch.float64) * (torch.pi / size if block == SKEW_CIRCULANT else 0)
    return torch.polar(torch.ones_like(turns), turns)


def spectrum_of(values: Tensor, block: int) -> Tensor:
    """The transform of values along the last dimension, in float64."""
    return torch.fft.fft(values.double() * twist(values.shape[-1], block).to(values.device))


def values_of(spectrum: Tensor, block: int) -> Tensor:
    """The real values of a transform."""
    return (torch.fft.ifft(spectrum) * twist(spectrum.shape[-1], block).to(spectrum.device).conj()).real


def random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def gelu(shape: tuple[int, ...]) -> Tensor:
    return torch.nn.functional.gelu(torch.randn(shape))


def outlier(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape)
    x[..., shape[-1] // 3] *= 1000
    return x


#: Tokens that the contract is for.
KINDS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {"random": random, "gelu": gelu, "outlier": outlier}


def drawn(
    size: int, tokens: int, kind: str = "random", block: int = CIRCULANT, dtype: torch.dtype = torch.bfloat16
) -> Draw:
    c, x, g = torch.randn(size) / size**0.5, KINDS[kind]((1, tokens, size)), torch.randn(1, tokens, size)
    return Draw(c.to(dtype), x.to(dtype), g.to(dtype), block)


def roundings(got: Tensor, exact: Tensor) -> float:
    """The error of a result, in those of rounding the exact one."""
    return oracle.error(got, exact) / oracle.error(exact.to(got.dtype), exact)


def assert_rows_accurate(got: Tensor, exact: Tensor) -> None:
    """Every row is within the limit of a single draw, by itself."""
    rows = zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True)
    errors = [roundings(row, exact_row) for row, exact_row in rows]
    assert max(errors) <= OF_EACH, errors


def assert_contract(results: list[tuple[Tensor, Tensor]]) -> None:
    """The results of DRAWS draws, with the exact ones, are within the limits of each and of their mean."""
    errors = [roundings(got, exact) for got, exact in results]
    assert len(errors) == DRAWS
    assert max(errors) <= OF_EACH, errors
    assert sum(errors) / DRAWS <= OF_MEAN, errors
