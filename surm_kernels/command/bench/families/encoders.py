"""Training of whole encoders, with an update of query and value in every layer: beside the frozen one, LoRA and C3A."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from surm_kernels import siva
from surm_kernels.command.bench.case import (
    OURS,
    Case,
    Claim,
    Method,
    Parameters,
    Point,
    Product,
    Shape,
    Unavailable,
    normal,
    point,
)
from surm_kernels.command.bench.families.adapted import (
    DIRECT,
    FROZEN,
    PEFT_LORA,
    load_peft,
    lora_places,
    nothing,
    trained,
    trained_shapes,
)
from surm_kernels.command.bench.families.circulant import LORA_RANK, PEFT_C3A, lora_parameters
from surm_kernels.command.bench.families.steps import CIRCULANT, HYDRA, PLAIN_CIRCULANT, SIVA, TOEPLITZ, Kind
from surm_kernels.command.bench.measure import compare_nothing
from surm_kernels.nn import AdaptedLinear

HEADS = 12
C3A_BLOCKS = 4  # across and down a weight


@dataclass(frozen=True)
class Architecture:
    """BERT's layers in a number, on sequences of a length."""

    title: str
    layers: int
    sequence: int


BERT = Architecture("two BERT-base layers", 2, 128)
MINILM = Architecture("MiniLM", 6, 48)


def encoder(architecture: Architecture, point: Point, dtype: torch.dtype) -> nn.Module:
    """The layers with random frozen weights, for point.in_features values a token, without dropout."""
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise Unavailable(f"no BERT layers: {error} (pip install transformers)") from None
    config = BertConfig(
        vocab_size=2,
        hidden_size=point.in_features,
        num_hidden_layers=architecture.layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * point.in_features,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        model = BertModel(config, add_pooling_layer=False)
    return model.requires_grad_(False).eval().to(dtype)


def on_rows(model: nn.Module, sequence: int) -> Callable[[Tensor], Tensor]:
    """An encoder as a function of rows (tokens, features): sequences of so many tokens where that divides."""

    def call(x: Tensor) -> Tensor:
        length = sequence if x.shape[0] % sequence == 0 else x.shape[0]
        return model(inputs_embeds=x.view(-1, length, x.shape[1])).last_hidden_state.view(x.shape)

    return call


def adapt_encoder(model: Any, adapt: Callable[[nn.Linear], nn.Module]) -> list[Any]:
    """Puts what `adapt` makes in the place of the query and value of every layer, and returns it."""
    made = []
    for attention in (layer.attention.self for layer in model.encoder.layer):
        for name in ("query", "value"):
            made.append(adapt(getattr(attention, name)))
            setattr(attention, name, made[-1])
    return made


class Composite(nn.Module):
    """A linear layer with the dense matrix of an update added to its weight."""

    def __init__(self, kind: Kind, shapes: Sequence[Shape], base: nn.Linear) -> None:
        super().__init__()
        self.kind, self.base = kind, base
        self.own = nn.ParameterList(base.weight.new_zeros(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + matrix(self.kind, self.base.weight, *self.own)
        return torch_functional.linear(x, weight, self.base.bias)


def matrix(kind: Kind, weight: Tensor, *parameters: Tensor) -> Tensor:
    """The dense matrix of an update of a frozen weight; SiVA's is on the bases that a layer finds in float32."""
    if kind is not SIVA:
        return kind.matrix(Point(weight.shape[1], weight.shape[0], 0), *parameters)
    U, V = (basis.double() for basis in siva.bases(weight.float(), k=weight.shape[0] // 2))
    return (U * parameters[0]) @ V.T


def frozen_encoder(architecture: Architecture, point: Point, dtype: torch.dtype) -> Product:
    """The encoder alone."""
    return on_rows(encoder(architecture, point, dtype), architecture.sequence)


def adapted_encoder(architecture: Architecture, kind: Kind, strategy: str, point: Point, dtype: torch.dtype) -> Product:
    """Ours."""
    model, structure = encoder(architecture, point, dtype), kind.make(point)
    layers = adapt_encoder(model, lambda base: AdaptedLinear(base, structure, strategy=strategy))
    names = [name for name, _ in layers[0].named_parameters(recurse=False)]
    return trained(on_rows(model, architecture.sequence), [(layer, name) for layer in layers for name in names])


def composite_encoder(architecture: Architecture, kind: Kind, point: Point) -> Product:
    """The same in float64 with dense matrices."""
    model, shapes = encoder(architecture, point, torch.float64), trained_shapes(kind.make)(point)
    layers = adapt_encoder(model, functools.partial(Composite, kind, shapes))
    places = [(layer.own, str(index)) for layer in layers for index in range(len(shapes))]
    return trained(on_rows(model, architecture.sequence), places)


def peft_encoder(
    architecture: Architecture, configuration: Callable[[Any, Point], Any], point: Point, dtype: torch.dtype
) -> tuple[Product, list[Any]]:
    """A method of PEFT's, and its layers."""
    peft, model = load_peft(), encoder(architecture, point, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
        modules = peft.get_peft_model(model, configuration(peft, point)).modules()
    layers = [module for module in modules if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)]
    return on_rows(model, architecture.sequence), layers


def lora_encoder(architecture: Architecture, point: Point, dtype: torch.dtype) -> Product:
    """PEFT's LoRA."""

    def configuration(peft: Any, point: Point) -> Any:
        return peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, lora_dropout=0.0, target_modules=["query", "value"])

    product, layers = peft_encoder(architecture, configuration, point, dtype)
    return trained(product, [place for layer in layers for place in lora_places(layer)])


def c3a_encoder(architecture: Architecture, point: Point, dtype: torch.dtype) -> Product:
    """PEFT's C3A."""

    def configuration(peft: Any, point: Point) -> Any:
        return peft.C3AConfig(block_size=point.in_features // C3A_BLOCKS, target_modules=["query", "value"])

    product, layers = peft_encoder(architecture, configuration, point, dtype)
    return trained(product, [(layer.c3a_kernel, "default") for layer in layers])


def _layers(parameters: Parameters, kind: Kind, point: Point) -> int:
    """In how many weights the parameters are."""
    return len(parameters) // len(trained_shapes(kind.make)(point))


def encoder_case(
    architecture: Architecture,
    kind: Kind,
    name: str,
    at: Point,
    limit: float | None,
    rivals: Sequence[str] = (PEFT_LORA,),
) -> Case:
    """A training step of an encoder."""

    def lora(point: Point, parameters: Parameters) -> Parameters:
        count = _layers(parameters, kind, point)
        return tuple(factor for _ in range(count) for factor in lora_parameters(point, parameters))

    def c3a(point: Point, parameters: Parameters) -> Parameters:
        generator = torch.Generator().manual_seed(0)
        shape = (C3A_BLOCKS, C3A_BLOCKS, point.in_features // C3A_BLOCKS)
        kernels = (normal(shape, point, generator) for _ in range(_layers(parameters, kind, point)))
        return tuple(kernel.to(parameters[0].dtype) for kernel in kernels)

    def ours(title: str, strategy: str, in_quick: bool = True) -> Method:
        return Method(title, functools.partial(adapted_encoder, architecture, kind, strategy), in_quick=in_quick)

    others = {
        PEFT_LORA: Method(PEFT_LORA, functools.partial(lora_encoder, architecture), lora, compare_nothing),
        PEFT_C3A: Method(PEFT_C3A, functools.partial(c3a_encoder, architecture), c3a, compare_nothing),
    }
    return Case(
        name,
        f"{architecture.title}, {kind.title} on query and value, training step",
        (
            ours(OURS, "auto"),
            ours(DIRECT, "direct", in_quick=False),
            Method(FROZEN, functools.partial(frozen_encoder, architecture), nothing, compare_nothing),
            *(others[rival] for rival in rivals),
        ),
        functools.partial(composite_encoder, architecture, kind),
        lambda point: trained_shapes(kind.make)(point) * (2 * architecture.layers),
        (at,),
        (),
        (torch.float32,),
        gradients=True,
        claims=_at_most(limit),
        updates=True,
    )


def _at_most(limit: float | None) -> tuple[Claim, ...]:
    """A step takes at most so many times the frozen one, and less than LoRA's."""
    frozen = () if limit is None else (Claim(FROZEN, 1 / limit, 1 / limit),)
    return *frozen, Claim(PEFT_LORA, 1.0, 1.0)


BERT_CIRCULANT = encoder_case(BERT, PLAIN_CIRCULANT, "adapted-bert", point(768, tokens=2048), 1.05)

#: What a step may be of the frozen one's; nothing is asked of SiVA's, whose flops alone are several per cent.
MINILM_LIMITS = {CIRCULANT: 1.02, SIVA: None, TOEPLITZ: 1.06, HYDRA: 1.06}

CASES = (
    BERT_CIRCULANT,
    *(
        encoder_case(
            MINILM, kind, f"minilm-{kind.name}", point(384, tokens=32 * MINILM.sequence), limit, (PEFT_LORA, PEFT_C3A)
        )
        for kind, limit in MINILM_LIMITS.items()
    ),
)
