"""What is measured, at which sizes, and what is wanted: the registries of cases and claims.

A case added to CASES is measured, checked and reported without further code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surm_kernels.command.bench import methods
from surm_kernels.command.bench.measure import Contender, Results, Workload
from surm_kernels.command.bench.methods import Method, Product, Unavailable

ELEMENTS = 2**22  # of x in most cases, about 4 million
BLOCK = 128


@dataclass(frozen=True)
class Point:
    """Tokens of a number of features."""

    features: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.features} × {self.tokens}"


def _points(*features: int) -> tuple[Point, ...]:
    return tuple(Point(n, ELEMENTS // n) for n in features)


@dataclass(frozen=True)
class Case:
    """One structure in one use, at several sizes.

    Attributes:
        name: as `--only` and the JSON file have it.
        title: as tables show it.
        contenders: ours first.
        exact: the product for float64 tensors, independent of our kernels.
        parameter: the shape of the structure's parameter at a size.
        points: the sizes, each of `quick` among them.
        gradients: forward and backward, to x and all parameters; else forward alone without recording.
    """

    name: str
    title: str
    contenders: tuple[Method, ...]
    exact: Product
    parameter: Callable[[int], tuple[int, ...]]
    points: tuple[Point, ...]
    quick: tuple[Point, ...]
    dtypes: tuple[torch.dtype, ...]
    gradients: bool


COMMON = _points(768, 1024, 1536, 2048, 3072, 4096)
AWKWARD = _points(4093, 11008, 14336)
ONE_TOKEN = (Point(768, 1), Point(4096, 1))
BOTH = (torch.float32, torch.bfloat16)
RIVALS = (methods.FFT_CIRCULANT, methods.C3A, methods.LOW_RANK, methods.DENSE)


def _circulant(
    name: str,
    title: str,
    rivals: tuple[Method, ...],
    points: tuple[Point, ...],
    quick: tuple[Point, ...],
    dtypes: tuple[torch.dtype, ...],
    gradients: bool,
) -> Case:
    contenders = (methods.CIRCULANT, *rivals)
    exact = methods.torch_fft_circulant
    return Case(name, title, contenders, exact, lambda n: (n,), points, quick, dtypes, gradients)


CASES = (
    _circulant(
        "circulant-forward",
        "circulant, forward",
        (*RIVALS, methods.COPY),
        COMMON,
        (COMMON[0], COMMON[-1]),
        BOTH,
        gradients=False,
    ),
    _circulant(
        "circulant-training",
        "circulant, forward + backward",
        RIVALS,
        COMMON,
        (COMMON[0], COMMON[-1]),
        BOTH,
        gradients=True,
    ),
    Case(
        "block-circulant-training",
        f"block circulant b = {BLOCK}, forward + backward",
        (methods.BLOCK_CIRCULANT, methods.FFT_BLOCK_CIRCULANT, methods.C3A_BLOCKS),
        methods.torch_fft_block_circulant,
        lambda n: (n // BLOCK, n // BLOCK, BLOCK),
        (Point(768, 4096),),
        (Point(768, 4096),),
        (torch.float32,),
        gradients=True,
    ),
    _circulant(
        "awkward-forward",
        "circulant of awkward size, forward",
        (methods.FFT_CIRCULANT, methods.LOW_RANK, methods.COPY),
        AWKWARD,
        (AWKWARD[0],),
        (torch.float32,),
        gradients=False,
    ),
    _circulant(
        "awkward-training",
        "circulant of awkward size, forward + backward",
        (methods.FFT_CIRCULANT, methods.LOW_RANK),
        AWKWARD,
        (AWKWARD[0],),
        (torch.float32,),
        gradients=True,
    ),
    _circulant(
        "one-token",
        "circulant, one token, forward",
        (methods.FFT_CIRCULANT, methods.LOW_RANK),
        ONE_TOKEN,
        ONE_TOKEN,
        (torch.float32,),
        gradients=False,
    ),
)

MEMORY_NAME = "memory"
MEMORY_TITLE = "memory of forward + backward"
MEMORY_METHODS = (methods.CIRCULANT, methods.FFT_CIRCULANT)
MEMORY_POINTS = _points(768, 4093, 4096, 11008, 16384)
MEMORY_QUICK = _points(16384)


@dataclass(frozen=True)
class Claim:
    """What is wanted of a case: our speed as a multiple of a rival's, in the median over sizes and at every size."""

    case: str
    dtype: torch.dtype
    rival: str
    median: float
    everywhere: float


#: Megabytes a thread beyond input, output and gradients.
MEMORY_CLAIM = 8.0

CLAIMS = (
    Claim("circulant-forward", torch.float32, methods.TORCH_FFT, 2.0, 1.6),
    Claim("circulant-forward", torch.float32, methods.CLONE, 0.4, 0.4),
    Claim("circulant-training", torch.float32, methods.TORCH_FFT, 4.5, 3.5),
    Claim("circulant-training", torch.float32, methods.PEFT_C3A, 20.0, 20.0),
    Claim("circulant-training", torch.float32, methods.LORA, 1.0, 1.0),
    Claim("circulant-training", torch.bfloat16, methods.TORCH_FFT, 5.5, 5.5),
    Claim("block-circulant-training", torch.float32, methods.PEFT_C3A, 15.0, 15.0),
    Claim("one-token", torch.float32, methods.TORCH_FFT, 1.0, 1.0),
    Claim("awkward-forward", torch.float32, methods.TORCH_FFT, 1.0, 1.0),
    Claim("awkward-training", torch.float32, methods.TORCH_FFT, 1.0, 1.0),
)


def workload(case: Case, point: Point, dtype: torch.dtype, unavailable: Callable[[str], object]) -> Workload:
    """The contenders of a case on random tokens; `unavailable` hears of each that cannot run here."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = draw(point.tokens, point.features).to(dtype)
    parameter = (draw(*case.parameter(point.features)) / point.features**0.5).to(dtype)
    g = draw(point.tokens, point.features).to(dtype)
    contenders = []
    for method in case.contenders:
        if method.most_features is not None and point.features > method.most_features:
            continue
        try:
            product = method.product(dtype)
        except Unavailable as reason:
            unavailable(str(reason))
            continue
        call = _call(product, x, method.parameters(parameter), g if case.gradients else None)
        contenders.append(Contender(method.name, call, method.comparable))
    exact = _call(case.exact, x.double(), (parameter.double(),), g.double() if case.gradients else None)
    return Workload(tuple(contenders), exact, case.gradients)


def _call(product: Product, x: Tensor, parameters: tuple[Tensor, ...], g: Tensor | None) -> Callable[[], Results]:
    """The product, followed by the gradients of x and the parameters where g, that of the output, is given."""
    if g is None:
        return lambda: (product(x, *parameters),)
    leaves = tuple(t.detach().requires_grad_() for t in (x, *parameters))

    def forward_and_backward() -> Results:
        y = product(*leaves)
        return (y, *torch.autograd.grad(y, leaves, g))

    return forward_and_backward
