"""Training of adapted layers: a frozen layer with each structure, beside the same layer alone and with PEFT's LoRA.

Every call is a whole training step: forward, the gradients of x and of what is trained, and a small update of that, so
that a merged weight is formed in each. Claims about the frozen layer alone, which has a forward and an input gradient
to compute, are what the update may cost.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from surm_kernels import reference, siva
from surm_kernels.command.bench.case import (
    OURS,
    Case,
    Claim,
    MemoryCase,
    MemoryClaim,
    Method,
    Parameters,
    Point,
    Product,
    Shape,
    Unavailable,
    normal,
    point,
)
from surm_kernels.command.bench.families.circulant import LORA_RANK, lora_parameters
from surm_kernels.command.bench.measure import compare_nothing
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, Kronecker, Siva, Structure, Toeplitz, ToeplitzLike

FROZEN = "frozen alone"
PEFT_LORA = f"PEFT LoRA r={LORA_RANK}"
THREE_PRODUCTS = "three products"
DIRECT = "ours, direct"

SIVA_SHARE = 404 / 768  # of the singular values, as SiVA has it for ViT
RANK = 2
ROUNDINGS = 4  # at most, in 16 bits: of factors' product, between two products, in a merged weight, in the result

Make = Callable[[Point], Structure]
Places = Sequence[tuple[nn.Module, str]]


def frozen_layer(point: Point, dtype: torch.dtype) -> nn.Linear:
    """A frozen layer with values that bfloat16 can hold, so that it is the same in every type."""
    layer = nn.Linear(point.in_features, point.out_features, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    bound = point.in_features**-0.5
    for values in (layer.weight, layer.bias):
        values.copy_(torch.empty(values.shape).uniform_(-bound, bound, generator=generator).bfloat16())
    return layer


def trained(module: Callable[[Tensor], Tensor], places: Places) -> Product:
    """A module as a function of x and of the parameters that take the place of its own."""

    given: list[Tensor | None] = [None] * len(places)

    def product(x: Tensor, *parameters: Tensor) -> Tensor:
        for index, ((owner, name), parameter) in enumerate(zip(places, parameters, strict=True)):
            if given[index] is not parameter:
                given[index] = parameter
                frozen = not isinstance(parameter, nn.Parameter)  # in inference, where nothing is recorded
                setattr(owner, name, nn.Parameter(parameter, requires_grad=False) if frozen else parameter)
        return module(x)

    return product


def adapted_layer(make: Make, strategy: str, training: bool, point: Point, dtype: torch.dtype) -> Product:
    """Ours."""
    structure = make(point)
    constants = dict(zip(structure.constants, _bases_for(structure), strict=True))
    layer = AdaptedLinear(frozen_layer(point, dtype), structure, strategy=strategy, constants=constants).train(training)
    return trained(layer, [(layer, name) for name, _ in layer.named_parameters(recurse=False)])


def lora_layer(training: bool, point: Point, dtype: torch.dtype) -> Product:
    """PEFT's layer."""
    peft = load_peft()
    layer = peft.tuners.lora.Linear(frozen_layer(point, dtype), "default", peft.LoraConfig(), r=LORA_RANK)
    return trained(layer.train(training), lora_places(layer))


def three_products(point: Point, dtype: torch.dtype) -> Product:
    """SiVA's update as its formula has it, under autograd."""
    layer, bases = frozen_layer(point, dtype), siva_bases(siva_structure(point))
    U, V = (basis.to(dtype) for basis in bases)
    return lambda x, s: layer(x) + ((x @ V) * s) @ U.T


def composite(matrix: Callable[..., Tensor]) -> Callable[[Point], Product]:
    """The frozen layer in float64 with the dense matrix, (point, *parameters) -> W, added to its weight."""

    def at(point: Point) -> Product:
        layer = frozen_layer(point, torch.float64)
        return lambda x, *parameters: torch_functional.linear(x, layer.weight + matrix(point, *parameters), layer.bias)

    return at


def siva_structure(point: Point) -> Siva:
    k = max(1, round(SIVA_SHARE * min(point.in_features, point.out_features)))
    return Siva(point.in_features, point.out_features, k)


@functools.lru_cache(maxsize=4)
def siva_bases(structure: Siva) -> tuple[Tensor, Tensor]:
    """U and V of the frozen layer, in values that bfloat16 can hold, so that they are the same in every type."""
    sizes = Point(structure.in_features, structure.out_features, 0)
    U, V = siva.bases(frozen_layer(sizes, torch.float32).weight, k=structure.k)
    return U.bfloat16().float(), V.bfloat16().float()


def _bases_for(structure: Structure) -> Sequence[Tensor]:
    """The constants of a structure that has some."""
    return siva_bases(structure) if isinstance(structure, Siva) else ()


def siva_matrix(structure: Siva, s: Tensor) -> Tensor:
    """W on the bases of the frozen layer."""
    U, V = (basis.double() for basis in siva_bases(structure))
    return (U * s) @ V.T


@functools.cache
def load_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise Unavailable(f"no comparison with PEFT LoRA: {error} (pip install peft)") from None
    return peft


def lora_places(layer: Any) -> Places:
    return [(layer.lora_A["default"], "weight"), (layer.lora_B["default"], "weight")]


def nothing(point: Point, parameters: Parameters) -> Parameters:
    return ()


FROZEN_LAYER = Method(FROZEN, frozen_layer, nothing, compare_nothing)
LORA_LAYER = Method(PEFT_LORA, functools.partial(lora_layer, True), lora_parameters, compare_nothing)
LORA_IN_USE = Method(PEFT_LORA, functools.partial(lora_layer, False), lora_parameters, compare_nothing)
SIVA_FORMULA = Method(THREE_PRODUCTS, three_products)

FEW, MANY = point(768, tokens=2048), point(768, tokens=8192)
SIZES = (FEW, MANY)
ONE_TOKEN = (point(768, tokens=1), point(4096, tokens=1))


def _at_most(few: float, many: float, dtype: torch.dtype = torch.float32) -> tuple[Claim, ...]:
    """A step takes at most so many times that of the frozen layer, with few tokens and with many."""
    return tuple(
        Claim(FROZEN, 1 / limit, 1 / limit, dtype, tokens=at.tokens)
        for at, limit in zip(SIZES, (few, many), strict=True)
    )


def adapted_case(
    name: str,
    title: str,
    make: Make,
    matrix: Callable[..., Tensor],
    claims: tuple[Claim, ...],
    rivals: tuple[Method, ...] = (),
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    at: tuple[Point, ...] = SIZES,
    quick: tuple[Point, ...] = (),
    draw: Callable[[Shape, Point, torch.Generator], Tensor] = normal,
    roundings: int = 3,  # in training a merged weight of 16 bits has the variance of two
) -> Case:
    """A training step of a frozen layer adapted with one structure."""
    return Case(
        f"adapted-{name}",
        f"frozen layer + {title}, training step",
        (_ours(make), _direct(make), *rivals, FROZEN_LAYER, LORA_LAYER),
        composite(matrix),
        trained_shapes(make),
        at,
        quick,
        dtypes,
        gradients=True,
        claims=claims,
        draw=draw,
        updates=True,
        roundings=roundings,
    )


def inference_case(
    name: str,
    title: str,
    make: Make,
    matrix: Callable[..., Tensor],
    dtypes: tuple[torch.dtype, ...],
    at: tuple[Point, ...] = ONE_TOKEN,
) -> Case:
    """One token through the same, without gradients and with parameters that do not change."""
    return Case(
        f"adapted-token-{name}",
        f"frozen layer + {title}, one token, no gradients",
        (_ours(make, training=False), _direct(make, training=False), FROZEN_LAYER, LORA_IN_USE),
        composite(matrix),
        trained_shapes(make),
        at,
        at[:1],
        dtypes,
        gradients=False,
        roundings=ROUNDINGS,
    )


def _ours(make: Make, training: bool = True) -> Method:
    return Method(OURS, functools.partial(adapted_layer, make, "auto", training))


def _direct(make: Make, training: bool = True) -> Method:
    return Method(DIRECT, functools.partial(adapted_layer, make, "direct", training), in_quick=False)


def trained_shapes(make: Make) -> Callable[[Point], tuple[Shape, ...]]:
    """Those of a structure's parameters without its constants, at a point."""

    def shapes(point: Point) -> tuple[Shape, ...]:
        made = make(point)
        return tuple(shape for name, shape in made.parameter_shapes().items() if name not in made.constants)

    return shapes


def _circulant(point: Point) -> Structure:
    return Circulant(point.in_features, point.out_features)


def _factor(shape: Shape, point: Point, generator: torch.Generator) -> Tensor:
    """Factors of a Kronecker product whose entries are those of a layer's weight."""
    return torch.randn(shape, generator=generator) / point.in_features**0.25


SIVA = adapted_case(
    "siva",
    f"SiVA k = {siva_structure(FEW).k}",
    siva_structure,
    lambda point, s: siva_matrix(siva_structure(point), s),
    (*_at_most(1.75, 1.65), Claim(THREE_PRODUCTS, 1.25, 1.25)),
    (SIVA_FORMULA,),
)

CASES = (
    adapted_case(
        "circulant",
        "circulant",
        _circulant,
        lambda point, c: reference.circulant(c),
        (*_at_most(1.12, 1.08), Claim(PEFT_LORA, 1.0, 1.0)),
        quick=(FEW,),
    ),
    SIVA,
    adapted_case(
        "toeplitz",
        "Toeplitz",
        lambda point: Toeplitz(point.in_features, point.out_features),
        lambda point, t: reference.toeplitz(t, point.in_features),
        _at_most(1.2, 1.2),
    ),
    adapted_case(
        "kronecker",
        "Kronecker",
        lambda point: Kronecker(point.in_features, point.out_features),
        lambda point, a, b: reference.kronecker(a, b),
        _at_most(1.25, 1.25),
        draw=_factor,
    ),
    adapted_case(
        "toeplitz-like",
        f"Toeplitz-like r = {RANK}",
        lambda point: ToeplitzLike(point.in_features, point.out_features, RANK),
        lambda point, left, right: reference.toeplitz_like(left, right),
        _at_most(1.5, 1.5),
    ),
    adapted_case(
        "bfloat16",
        "circulant",
        _circulant,
        lambda point, c: reference.circulant(c),
        (*_at_most(1.6, 1.6, torch.bfloat16), Claim(PEFT_LORA, 1.0, 1.0, torch.bfloat16)),
        dtypes=(torch.bfloat16,),
        at=tuple(point(n, tokens=tokens) for n in (768, 1024) for tokens in (FEW.tokens, MANY.tokens)),
    ),
)

OURS_IN_SIVA = SIVA.contenders[0]

MEMORY_CASES = (
    MemoryCase("memory-adapted-siva", SIVA, (OURS_IN_SIVA, SIVA_FORMULA), SIZES, (), MemoryClaim(0.5, THREE_PRODUCTS)),
    MemoryCase(
        "kept-adapted-siva",
        SIVA,
        (OURS_IN_SIVA, SIVA_FORMULA),
        SIZES,
        (),
        MemoryClaim(0.0, THREE_PRODUCTS),
        kept=True,
    ),
)
