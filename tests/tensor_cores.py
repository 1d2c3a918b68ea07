"""What transforms on tensor cores have to reach, wherever they run: inputs, exact results, limits of errors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests import oracle

SIZES = tuple(256 * radix for radix in (1, 3, 4, 8, 16, 32))
DRAWS = 12
#: Errors of a result in bfloat16, in those of rounding the exact one: of one draw, and in the mean of DRAWS.
OF_EACH, OF_MEAN = 1.2, 1.1


class Draw(NamedTuple):
    """One matrix, of the first column c, and tokens."""

    c: Tensor
    x: Tensor
    g: Tensor

    def y(self) -> Tensor:
        """The exact product."""
        return circulant_product(self.x, self.c)

    def x_gradient(self) -> Tensor:
        """The exact product with the transposed matrix."""
        return circulant_product(self.g, self.c, transposed=True)

    def c_gradient(self) -> Tensor:
        """The exact gradient of <g, product> with respect to c."""
        spectrum = torch.fft.rfft(self.g.double()) * torch.fft.rfft(self.x.double()).conj()
        return torch.fft.irfft(spectrum.sum((0, 1)), self.c.shape[-1])


def circulant_product(x: Tensor, c: Tensor, transposed: bool = False) -> Tensor:
    """The product of tokens with a circulant matrix in float64."""
    spectrum = torch.fft.rfft(c.double())
    return torch.fft.irfft(torch.fft.rfft(x.double()) * (spectrum.conj() if transposed else spectrum), c.shape[-1])


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


def drawn(size: int, tokens: int, kind: str = "random") -> Draw:
    c, x, g = torch.randn(size) / size**0.5, KINDS[kind]((1, tokens, size)), torch.randn(1, tokens, size)
    return Draw(c.bfloat16(), x.bfloat16(), g.bfloat16())


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
