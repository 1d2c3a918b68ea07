"""Circulant, skew-circulant and block circulant products beside torch.fft, PEFT C3A, LoRA and the dense product."""

import functools
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
    MemoryCase,
    MemoryClaim,
    Method,
    Parameters,
    Point,
    Product,
    Unavailable,
    given,
    point,
    points,
)
from surm_kernels.command.bench.measure import Results, compare_nothing

BLOCK = 128
LORA_RANK = 8

PEFT_C3A = "PEFT C3A"
LORA = f"LoRA r={LORA_RANK}"
CLONE = "x.clone()"
INDEXED = "c[index]"


def torch_fft_circulant(x: Tensor, c: Tensor) -> Tensor:
    """The circulant product as torch's users write it."""
    return torch.fft.irfft(torch.fft.rfft(c) * torch.fft.rfft(x), c.shape[-1])


def torch_fft_block_circulant(x: Tensor, c: Tensor) -> Tensor:
    """The same for blocks (M, K, b), summed over K in the frequency domain."""
    blocks = torch.fft.rfft(x.unflatten(-1, (-1, c.shape[-1])))
    spectrum = torch.einsum("...kf,mkf->...mf", blocks, torch.fft.rfft(c))
    return torch.fft.irfft(spectrum, c.shape[-1]).flatten(-2)


def torch_fft_skew_circulant(x: Tensor, s: Tensor) -> Tensor:
    """A skew-circulant product: circulant for tokens and parameters twisted by exp(i pi j / n)."""
    twist = twist_of(s.shape[-1], s.dtype, s.device)
    return (twist.conj() * torch.fft.ifft(torch.fft.fft(twist * s) * torch.fft.fft(twist * x))).real


@functools.cache
def twist_of(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(i pi j / n), ready before the clock runs."""
    angles = torch.arange(size, dtype=torch.float64, device=device) * (torch.pi / size)
    return torch.polar(torch.ones_like(angles), angles).to(dtype.to_complex())


def circulant_index(n: int) -> Tensor:
    """Which entry of the first column is at row i and column j."""
    rows = torch.arange(n)
    return (rows[:, None] - rows) % n


@functools.cache
def _peft_c3a() -> Product:
    try:
        from peft.tuners.c3a.layer import BlockCircularConvolution
    except ImportError as error:
        raise Unavailable(f"no comparison with PEFT C3A: {error} (pip install peft)") from None
    product: Product = BlockCircularConvolution.apply
    return product


def _peft_kernel(c: Tensor) -> Tensor:
    """PEFT's kernel of a block circulant matrix: the first row of each block. The map is its own inverse."""
    return c.view(-1, c.shape[-2] if c.dim() == 3 else 1, c.shape[-1]).flip(-1).roll(1, -1).contiguous()


def _peft_parameters(point: Point, parameters: Parameters) -> Parameters:
    return tuple(_peft_kernel(c) for c in parameters)


def _compare_peft(results: Results) -> Sequence[Tensor | None]:
    """PEFT's output and kernel gradient; its input gradient is wrong for blocks larger than 2 and is left out."""
    if len(results) == 1:
        return results
    output, _, kernel_gradient = results
    return output, None, _peft_kernel(kernel_gradient).flatten()


def _compare_peft_blocks(results: Results) -> Sequence[Tensor | None]:
    output, _, kernel_gradient = results
    return output, None, _peft_kernel(kernel_gradient)


def lora_parameters(point: Point, parameters: Parameters) -> Parameters:
    """The factors of an update of rank 8."""
    c = parameters[0]
    generator = torch.Generator().manual_seed(0)
    shapes = ((LORA_RANK, point.in_features), (point.out_features, LORA_RANK))
    return tuple(
        (torch.randn(shape, generator=generator) / point.in_features**0.5).to(c.device, c.dtype) for shape in shapes
    )


def _compare_dense(results: Results) -> Sequence[Tensor | None]:
    """A dense weight has the same output and input gradient, and a gradient of its own."""
    return [*results[:2], *([None] * len(results[2:]))]


def _by_index(point: Point, dtype: torch.dtype) -> Product:
    index = circulant_index(point.in_features)
    return lambda x, c: c[index]


CIRCULANT = Method(OURS, given(functional.circulant_linear))
SKEW_CIRCULANT = Method(OURS, given(functional.skew_circulant_linear))
BLOCK_CIRCULANT = Method(OURS, given(functional.block_circulant_linear))
DENSE_CIRCULANT = Method(OURS, given(lambda x, c: dense.circulant(c)))
FFT_CIRCULANT = Method(TORCH_FFT, given(torch_fft_circulant), through_float32=True)
FFT_SKEW_CIRCULANT = Method(TORCH_FFT, given(torch_fft_skew_circulant), through_float32=True)
FFT_BLOCK_CIRCULANT = Method(TORCH_FFT, given(torch_fft_block_circulant), through_float32=True)
C3A = Method(PEFT_C3A, lambda point, dtype: _peft_c3a(), _peft_parameters, _compare_peft, through_float32=True)
C3A_BLOCKS = Method(
    PEFT_C3A, lambda point, dtype: _peft_c3a(), _peft_parameters, _compare_peft_blocks, through_float32=True
)
LOW_RANK = Method(LORA, given(lambda x, a, b: (x @ a.T) @ b.T), lora_parameters, compare_nothing)
DENSE = Method(
    "dense",
    given(lambda x, w: x @ w.T),
    lambda point, parameters: (dense.circulant(*parameters),),
    _compare_dense,
    most_features=4096,
    in_quick=False,
)
COPY = Method(CLONE, given(torch.clone), lambda point, parameters: (), compare_nothing)
BY_INDEX = Method(INDEXED, _by_index)

RIVALS = (FFT_CIRCULANT, C3A, LOW_RANK, DENSE)
COMMON = points(768, 1024, 1536, 2048, 3072, 4096)
AWKWARD = points(4093, 11008, 14336)
ONE_TOKEN = (Point(768, 768, 1), Point(4096, 4096, 1))
BLOCKS = (point(768, tokens=4096),)
MATRIX = (Point(4096, 4096, 0),)


def _circulant(
    name: str,
    title: str,
    rivals: tuple[Method, ...],
    at: tuple[Point, ...],
    quick: tuple[Point, ...],
    dtypes: tuple[torch.dtype, ...],
    claims: tuple[Claim, ...],
    gradients: bool,
) -> Case:
    exact = given(torch_fft_circulant)
    return Case(name, title, (CIRCULANT, *rivals), exact, _first_column, at, quick, dtypes, gradients, claims)


def _first_column(point: Point) -> tuple[tuple[int, ...], ...]:
    return ((point.in_features,),)


TRAINING = _circulant(
    "circulant-training",
    "circulant, forward + backward",
    RIVALS,
    COMMON,
    (COMMON[0],),
    BOTH,
    (
        Claim(TORCH_FFT, 4.5, 3.5),
        Claim(PEFT_C3A, 20.0, 20.0),
        Claim(LORA, 1.0, 1.0),
        Claim(TORCH_FFT, 5.5, 5.5, torch.bfloat16),
    ),
    gradients=True,
)

CASES = (
    _circulant(
        "circulant-forward",
        "circulant, forward",
        (*RIVALS, COPY),
        COMMON,
        (COMMON[0],),
        BOTH,
        (Claim(TORCH_FFT, 2.0, 1.6), Claim(CLONE, 0.4, 0.4)),
        gradients=False,
    ),
    TRAINING,
    Case(
        "block-circulant-training",
        f"block circulant b = {BLOCK}, forward + backward",
        (BLOCK_CIRCULANT, FFT_BLOCK_CIRCULANT, C3A_BLOCKS),
        given(torch_fft_block_circulant),
        lambda point: ((point.out_features // BLOCK, point.in_features // BLOCK, BLOCK),),
        BLOCKS,
        (),
        (torch.float32,),
        gradients=True,
        claims=(Claim(PEFT_C3A, 15.0, 15.0),),
    ),
    Case(
        "skew-circulant-training",
        "skew-circulant, forward + backward",
        (SKEW_CIRCULANT, FFT_SKEW_CIRCULANT),
        given(torch_fft_skew_circulant),
        _first_column,
        points(1024),
        (),
        (torch.float32,),
        gradients=True,
    ),
    _circulant(
        "awkward-forward",
        "circulant of awkward size, forward",
        (FFT_CIRCULANT, LOW_RANK, COPY),
        AWKWARD,
        (AWKWARD[0],),
        (torch.float32,),
        (Claim(TORCH_FFT, 1.0, 1.0),),
        gradients=False,
    ),
    _circulant(
        "awkward-training",
        "circulant of awkward size, forward + backward",
        (FFT_CIRCULANT, LOW_RANK),
        AWKWARD,
        (),
        (torch.float32,),
        (Claim(TORCH_FFT, 1.0, 1.0),),
        gradients=True,
    ),
    _circulant(
        "one-token",
        "circulant, one token, forward",
        (FFT_CIRCULANT, LOW_RANK),
        ONE_TOKEN,
        ONE_TOKEN,
        (torch.float32,),
        (Claim(TORCH_FFT, 1.0, 1.0),),
        gradients=False,
    ),
    Case(
        "dense-circulant",
        "the circulant matrix itself",
        (DENSE_CIRCULANT, BY_INDEX),
        lambda point: lambda x, c: torch.cat([c[1:], c]).unfold(0, len(c), 1).flip(1),
        _first_column,
        MATRIX,
        MATRIX,
        (torch.float32,),
        gradients=False,
        claims=(Claim(INDEXED, 2.0, 2.0),),
    ),
)

MEMORY_CASES = (
    MemoryCase(
        "memory-circulant",
        TRAINING,
        (CIRCULANT, FFT_CIRCULANT),
        points(768, 4093, 4096, 11008, 16384),
        points(16384),
        MemoryClaim(8.0),
    ),
)
