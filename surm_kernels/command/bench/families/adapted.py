"""Training of adapted layers: a frozen layer with each structure, beside the same layer alone and with PEFT's LoRA.

Every call is a whole training step: forward, the gradients of x and of what is trained, and a small update of that, so
that a merged weight is formed in each. Claims about the frozen layer alone, which has a forward and an input gradient
to compute, are what the update may cost.
"""

import functools
import warnings
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
BERT_LAYERS = 2
HEADS = 12
SEQUENCE = 128

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

    def product(x: Tensor, *parameters: Tensor) -> Tensor:
        for (owner, name), parameter in zip(places, parameters, strict=True):
            if getattr(owner, name) is not parameter:
                setattr(owner, name, parameter)
        return module(x)

    return product


def adapted_layer(make: Make, strategy: str, point: Point, dtype: torch.dtype) -> Product:
    """Ours."""
    structure = make(point)
    constants = dict(zip(structure.constants, siva_bases(point), strict=False))
    layer = AdaptedLinear(frozen_layer(point, dtype), structure, strategy=strategy, constants=constants)
    return trained(layer, [(layer, name) for name, _ in layer.named_parameters(recurse=False)])


def lora_layer(point: Point, dtype: torch.dtype) -> Product:
    """PEFT's layer."""
    peft = _peft()
    layer = peft.tuners.lora.Linear(frozen_layer(point, dtype), "default", peft.LoraConfig(), r=LORA_RANK)
    return trained(layer.train(), _lora_places(layer))


def three_products(point: Point, dtype: torch.dtype) -> Product:
    """SiVA's update as its formula has it, under autograd."""
    layer, (U, V) = frozen_layer(point, dtype), siva_bases(point)
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


@functools.lru_cache(maxsize=2)
def siva_bases(point: Point) -> tuple[Tensor, Tensor]:
    """U and V of the frozen layer."""
    return siva.bases(frozen_layer(point, torch.float32).weight, k=siva_structure(point).k)


def _siva_matrix(point: Point, s: Tensor) -> Tensor:
    U, V = (basis.double() for basis in siva_bases(point))
    return (U * s) @ V.T


def encoder(point: Point, dtype: torch.dtype) -> nn.Module:
    """BERT-base's layers with random frozen weights, for point.in_features values a token, without dropout."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise Unavailable(f"no BERT layers: {error} (pip install transformers)") from None
    size = point.in_features
    config = BertConfig(
        vocab_size=2,
        hidden_size=size,
        num_hidden_layers=BERT_LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * size,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        model = BertModel(config, add_pooling_layer=False)
    return model.requires_grad_(False).eval().to(dtype)


def on_rows(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """An encoder as a function of rows (tokens, features): sequences of SEQUENCE tokens where that divides."""

    def call(x: Tensor) -> Tensor:
        length = SEQUENCE if x.shape[0] % SEQUENCE == 0 else x.shape[0]
        return model(inputs_embeds=x.view(-1, length, x.shape[1])).last_hidden_state.view(x.shape)

    return call


def frozen_encoder(point: Point, dtype: torch.dtype) -> Product:
    """The encoder alone."""
    return on_rows(encoder(point, dtype))


def adapt_encoder(model: Any, adapt: Callable[[nn.Linear], nn.Module]) -> list[Any]:
    """Puts what `adapt` makes in the place of the query and value of every layer, and returns it."""
    made = []
    for attention in (layer.attention.self for layer in model.encoder.layer):
        for name in ("query", "value"):
            made.append(adapt(getattr(attention, name)))
            setattr(attention, name, made[-1])
    return made


class Composite(nn.Module):
    """A linear layer with the circulant matrix of c added to its weight, by the index formula."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.c = nn.Parameter(base.weight.new_zeros(base.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch_functional.linear(x, self.base.weight + reference.circulant(self.c), self.base.bias)


def adapted_encoder(strategy: str, point: Point, dtype: torch.dtype) -> Product:
    """Ours, circulant."""
    model = encoder(point, dtype)
    structure = Circulant(point.in_features, point.in_features)
    layers = adapt_encoder(model, lambda base: AdaptedLinear(base, structure, strategy=strategy))
    return trained(on_rows(model), [(layer, "c") for layer in layers])


def composite_encoder(point: Point) -> Product:
    """The same in float64 with dense matrices."""
    model = encoder(point, torch.float64)
    return trained(on_rows(model), [(layer, "c") for layer in adapt_encoder(model, Composite)])


def lora_encoder(point: Point, dtype: torch.dtype) -> Product:
    """PEFT's way."""
    peft, model = _peft(), encoder(point, dtype)
    config = peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, lora_dropout=0.0, target_modules=["query", "value"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
        modules = peft.get_peft_model(model, config).modules()
    found = (module for module in modules if isinstance(module, peft.tuners.lora.Linear))
    return trained(on_rows(model), [place for layer in found for place in _lora_places(layer)])


@functools.cache
def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise Unavailable(f"no comparison with PEFT LoRA: {error} (pip install peft)") from None
    return peft


def _lora_places(layer: Any) -> Places:
    return [(layer.lora_A["default"], "weight"), (layer.lora_B["default"], "weight")]


def _encoder_lora_parameters(point: Point, parameters: Parameters) -> Parameters:
    return tuple(factor for _ in parameters for factor in lora_parameters(point, parameters))


def _nothing(point: Point, parameters: Parameters) -> Parameters:
    return ()


FROZEN_LAYER = Method(FROZEN, frozen_layer, _nothing, compare_nothing)
LORA_LAYER = Method(PEFT_LORA, lora_layer, lora_parameters, compare_nothing)
SIVA_FORMULA = Method(THREE_PRODUCTS, three_products)
FROZEN_ENCODER = Method(FROZEN, frozen_encoder, _nothing, compare_nothing)
LORA_ENCODER = Method(PEFT_LORA, lora_encoder, _encoder_lora_parameters, compare_nothing)

FEW, MANY = point(768, tokens=2048), point(768, tokens=8192)
SIZES = (FEW, MANY)


def _at_most(few: float, many: float, dtype: torch.dtype = torch.float32) -> tuple[Claim, ...]:
    """A step takes at most so many times that of the frozen layer, with few tokens and with many."""
    return tuple(
        Claim(FROZEN, 1 / limit, 1 / limit, dtype, tokens=at.tokens)
        for at, limit in zip(SIZES, (few, many), strict=True)
    )


def _case(
    name: str,
    title: str,
    make: Make,
    matrix: Callable[..., Tensor],
    claims: tuple[Claim, ...],
    rivals: tuple[Method, ...] = (),
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    at: tuple[Point, ...] = SIZES,
    draw: Callable[[Shape, Point, torch.Generator], Tensor] = normal,
) -> Case:
    """A frozen layer adapted with one structure."""

    def shapes(point: Point) -> tuple[Shape, ...]:
        made = make(point)
        return tuple(shape for name, shape in made.parameter_shapes().items() if name not in made.constants)

    def ours(title: str, strategy: str) -> Method:
        return Method(title, functools.partial(adapted_layer, make, strategy))

    return Case(
        f"adapted-{name}",
        f"frozen layer + {title}, training step",
        (ours(OURS, "auto"), ours(DIRECT, "direct"), *rivals, FROZEN_LAYER, LORA_LAYER),
        composite(matrix),
        shapes,
        at,
        at,
        dtypes,
        gradients=True,
        claims=claims,
        draw=draw,
        updates=True,
        roundings=3,  # in training a merged weight in 16 bits has the variance of two
    )


def _circulant(point: Point) -> Structure:
    return Circulant(point.in_features, point.out_features)


def _factor(shape: Shape, point: Point, generator: torch.Generator) -> Tensor:
    """Factors of a Kronecker product whose entries are those of a layer's weight."""
    return torch.randn(shape, generator=generator) / point.in_features**0.25


SIVA = _case(
    "siva",
    f"SiVA k = {siva_structure(FEW).k}",
    siva_structure,
    _siva_matrix,
    (*_at_most(1.75, 1.65), Claim(THREE_PRODUCTS, 1.25, 1.25)),
    (SIVA_FORMULA,),
)

BERT = Case(
    "adapted-bert",
    "two BERT-base layers, circulant on query and value, training step",
    (
        Method(OURS, functools.partial(adapted_encoder, "auto")),
        Method(DIRECT, functools.partial(adapted_encoder, "direct")),
        FROZEN_ENCODER,
        LORA_ENCODER,
    ),
    composite_encoder,
    lambda point: ((point.in_features,),) * (2 * BERT_LAYERS),
    (FEW,),
    (FEW,),
    (torch.float32,),
    gradients=True,
    claims=(Claim(FROZEN, 1 / 1.05, 1 / 1.05), Claim(PEFT_LORA, 1.0, 1.0)),
    updates=True,
)

CASES = (
    _case(
        "circulant",
        "circulant",
        _circulant,
        lambda point, c: reference.circulant(c),
        (*_at_most(1.12, 1.08), Claim(PEFT_LORA, 1.0, 1.0)),
    ),
    SIVA,
    _case(
        "toeplitz",
        "Toeplitz",
        lambda point: Toeplitz(point.in_features, point.out_features),
        lambda point, t: reference.toeplitz(t, point.in_features),
        _at_most(1.2, 1.2),
    ),
    _case(
        "kronecker",
        "Kronecker",
        lambda point: Kronecker(point.in_features, point.out_features),
        lambda point, a, b: reference.kronecker(a, b),
        _at_most(1.25, 1.25),
        draw=_factor,
    ),
    _case(
        "toeplitz-like",
        f"Toeplitz-like r = {RANK}",
        lambda point: ToeplitzLike(point.in_features, point.out_features, RANK),
        lambda point, left, right: reference.toeplitz_like(left, right),
        _at_most(1.5, 1.5),
    ),
    _case(
        "bfloat16",
        "circulant",
        _circulant,
        lambda point, c: reference.circulant(c),
        (*_at_most(1.6, 1.6, torch.bfloat16), Claim(PEFT_LORA, 1.0, 1.0, torch.bfloat16)),
        dtypes=(torch.bfloat16,),
        at=tuple(point(n, tokens=tokens) for n in (768, 1024) for tokens in (FEW.tokens, MANY.tokens)),
    ),
    BERT,
)

OURS_IN_SIVA = SIVA.contenders[0]

MEMORY_CASES = (
    MemoryCase(
        "memory-adapted-siva", SIVA, (OURS_IN_SIVA, SIVA_FORMULA), SIZES, (FEW,), MemoryClaim(0.5, THREE_PRODUCTS)
    ),
    MemoryCase(
        "kept-adapted-siva",
        SIVA,
        (OURS_IN_SIVA, SIVA_FORMULA),
        SIZES,
        (FEW,),
        MemoryClaim(0.0, THREE_PRODUCTS),
        kept=True,
    ),
)
