"""What a case is: the ways to compute a product, the sizes they are measured at, and what is wanted of the results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surm_kernels.command.bench.measure import Results, compare_all

OURS = "surm_kernels"
TORCH_FFT = "torch.fft"

ELEMENTS = 2**22  # of the larger of input and output in most cases, about 4 million
BOTH = (torch.float32, torch.bfloat16)

Parameters = tuple[Tensor, ...]
Shape = tuple[int, ...]
Product = Callable[..., Tensor]  # (x, *parameters) -> output


class Unavailable(Exception):
    """A rival cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Point:
    """Tokens of in_features values that become out_features values; none where the matrix itself is made."""

    in_features: int
    out_features: int
    tokens: int

    @property
    def square(self) -> bool:
        return self.in_features == self.out_features

    def __str__(self) -> str:
        sizes = str(self.in_features) if self.square else f"{self.in_features} → {self.out_features}"
        return f"{sizes} × {self.tokens}" if self.tokens else f"{self.out_features} × {self.in_features}"


def point(in_features: int, out_features: int | None = None, tokens: int | None = None) -> Point:
    """A point, square where one size is given, with about ELEMENTS elements where no number of tokens is."""
    outputs = in_features if out_features is None else out_features
    return Point(in_features, outputs, ELEMENTS // max(in_features, outputs) if tokens is None else tokens)


def points(*features: int) -> tuple[Point, ...]:
    """Square points."""
    return tuple(point(n) for n in features)


def given(product: Product) -> Callable[..., Product]:
    """The product is the same at every point and for every type."""
    return lambda *where: product


@dataclass(frozen=True)
class Method:
    """A way to compute a product of tokens x with a matrix.

    Attributes:
        name: as tables show it.
        load: gives the product at a point for tensors of a type, tables of its size ready, or raises Unavailable.
        parameters: what the product trains, from the parameters of our structure.
        comparable: what of (output, gradient of x, gradients of parameters) has to equal ours.
        through_float32: 16-bit tensors are converted to float32 and back, since the product does not take them.
        most_features: the largest size worth measuring, None for any.
        in_quick: whether `--quick` measures it as well.
    """

    name: str
    load: Callable[[Point, torch.dtype], Product]
    parameters: Callable[[Point, Parameters], Parameters] = lambda point, parameters: parameters
    comparable: Callable[[Results], Sequence[Tensor | None]] = compare_all
    through_float32: bool = False
    most_features: int | None = None
    in_quick: bool = True

    def product(self, point: Point, dtype: torch.dtype) -> Product:
        """The product for tensors of a type."""
        product = self.load(point, dtype)
        if self.through_float32 and dtype in (torch.bfloat16, torch.float16):
            return lambda x, *parameters: product(x.float(), *(p.float() for p in parameters)).to(dtype)
        return product

    def serves(self, point: Point) -> bool:
        """Whether the size is worth measuring."""
        return self.most_features is None or max(point.in_features, point.out_features) <= self.most_features


@dataclass(frozen=True)
class Claim:
    """What is wanted: our speed as a multiple of a rival's, in the median over sizes and at every size.

    `square_only` and `tokens` say at which sizes, all by default.
    """

    rival: str
    median: float
    everywhere: float
    dtype: torch.dtype = torch.float32
    square_only: bool = False
    tokens: int | None = None

    def about(self, point: Point) -> bool:
        """Whether the claim is made at this size."""
        return (point.square or not self.square_only) and self.tokens in (None, point.tokens)


def normal(shape: Shape, point: Point, generator: torch.Generator) -> Tensor:
    """Values of a parameter that keep the size of x in a product linear in it."""
    return torch.randn(shape, generator=generator) / point.in_features**0.5


@dataclass(frozen=True)
class Case:
    """One structure in one use, at several sizes.

    Attributes:
        name: as `--only` and the JSON file have it.
        title: as tables show it.
        contenders: ours first.
        exact: gives the product at a point for float64 tensors, independent of our kernels.
        shapes: the shapes of the structure's parameters at a point.
        points: the sizes, each of `quick` among them; none is in it where a quick look can do without the case.
        gradients: forward and backward, to x and all parameters; else forward alone without recording.
        claims: what is wanted of the results.
        draw: values of a parameter.
        updates: every call ends with a small step of its parameters, so that nothing made of them outlives it.
        roundings: how often a 16-bit result is rounded where ours is as exact as it can be.
    """

    name: str
    title: str
    contenders: tuple[Method, ...]
    exact: Callable[[Point], Product]
    shapes: Callable[[Point], tuple[Shape, ...]]
    points: tuple[Point, ...]
    quick: tuple[Point, ...]
    dtypes: tuple[torch.dtype, ...]
    gradients: bool
    claims: tuple[Claim, ...] = ()
    draw: Callable[[Shape, Point, torch.Generator], Tensor] = normal
    updates: bool = False
    roundings: int = 1


@dataclass(frozen=True)
class MemoryClaim:
    """What is wanted: at most a share of a rival's memory, or of megabytes a thread where no rival is named."""

    limit: float
    rival: str | None = None


@dataclass(frozen=True)
class MemoryCase:
    """Memory of a case's forward and backward pass beyond input, output and gradients.

    Attributes:
        name: as `--only` and the JSON file have it.
        case: what is computed.
        methods: those of its contenders that are measured, ours first.
        points: the sizes, each of `quick` among them, if any is.
        claim: what is wanted of the results.
        kept: what the forward pass keeps for the backward counts, beyond the tensors it was given; else the peak.
    """

    name: str
    case: Case
    methods: tuple[Method, ...]
    points: tuple[Point, ...]
    quick: tuple[Point, ...]
    claim: MemoryClaim
    kept: bool = False

    @property
    def title(self) -> str:
        return f"{'memory kept for the backward' if self.kept else 'memory'} of {self.case.title}"
