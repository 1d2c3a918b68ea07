"""Adapted layers on a GPU: forming the weight alone, and a training step beside the frozen layer, LoRA and C3A."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from surm_kernels import reference
from surm_kernels.command.bench.case import OURS, Case, Method, Parameters, Point, Product
from surm_kernels.command.bench.families.adapted import FROZEN, PEFT_LORA, load_peft, lora_places, nothing, trained
from surm_kernels.command.bench.families.circulant import LORA_RANK, PEFT_C3A, circulant_index, lora_parameters
from surm_kernels.command.bench.measure import compare_nothing
from surm_kernels.nn import AdaptedLinear
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures import Circulant

MERGED, DIRECT, NEAREST, GATHERED = "ours, merged", "ours, direct", "ours, to nearest", "weight + c[index]"
MERGE_SIZES = (4096, 8192)
STEP_POINTS = (Point(4096, 4096, 8192), Point(768, 768, 8192))
BFLOAT16 = (torch.bfloat16,)


def weight_of(point: Point, device: torch.device, number: int = 0) -> Tensor:
    """A frozen weight, in values that bfloat16 can hold, so that it is the same in every type."""
    generator, bound = torch.Generator(device).manual_seed(number), point.in_features**-0.5
    weight = torch.empty(point.out_features, point.in_features, device=device)
    return weight.uniform_(-bound, bound, generator=generator).bfloat16()


def frozen_layer(point: Point, dtype: torch.dtype, device: torch.device) -> nn.Linear:
    layer = nn.Linear(point.in_features, point.out_features, bias=False, dtype=dtype, device=device)
    layer.weight.data.copy_(weight_of(point, device))
    return layer.requires_grad_(False)


def on_device_of_x(
    make: Callable[[Point, torch.dtype, torch.device], Product], point: Point, dtype: torch.dtype
) -> Product:
    """A product that is made on the device of the first tokens, at its first call."""
    made: list[Product] = []

    def product(x: Tensor, *parameters: Tensor) -> Tensor:
        if not made:
            made.append(make(point, dtype, x.device))
        return made[0](x, *parameters)

    return product


# ---- forming a weight ----


def merging(rounding: bool, point: Point, dtype: torch.dtype, device: torch.device) -> Product:
    """Ours, of weights in turns, which together are more than the cache holds."""
    weights = itertools.cycle([weight.to(dtype) for weight in weights_of(point, device)])
    structure, out = Circulant(point.in_features, point.out_features), weight_of(point, device).to(dtype)
    key = StochasticRounding.at(0, 0, device) if rounding and dtype.itemsize == 2 else None
    return lambda x, c: structure.merge(next(weights), c, out=out, rounding=key)


def gathered(point: Point, dtype: torch.dtype, device: torch.device) -> Product:
    """By an index that is ready."""
    weights = itertools.cycle([weight.to(dtype) for weight in weights_of(point, device)])
    index = circulant_index(point.in_features).to(device)
    return lambda x, c: next(weights) + c[index]


def weights_of(point: Point, device: torch.device) -> list[Tensor]:
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    bytes_of_one = 2 * point.in_features * point.out_features
    return [weight_of(point, device, number) for number in range(1 + math.ceil(2 * cache / bytes_of_one))]


def merged_exactly(point: Point) -> Product:
    return lambda x, c: weight_of(point, x.device).double() + reference.circulant(c)


MERGE = Case(
    "circulant-merge",
    "a weight + circulant, formed alone",
    (
        Method(OURS, partial(on_device_of_x, partial(merging, True))),
        Method(NEAREST, partial(on_device_of_x, partial(merging, False))),
        Method(GATHERED, partial(on_device_of_x, gathered)),
    ),
    merged_exactly,
    lambda point: ((point.in_features,),),
    tuple(Point(n, n, n) for n in MERGE_SIZES),  # as many tokens as rows: so a device copy moves as much
    (),
    BFLOAT16,
    gradients=False,
    roundings=3,  # stochastic rounding has the variance of two
)

# ---- a training step ----


def adapted_layer(strategy: str, point: Point, dtype: torch.dtype, device: torch.device) -> Product:
    structure = Circulant(point.in_features, point.out_features)
    layer = AdaptedLinear(frozen_layer(point, dtype, device), structure, strategy=strategy)
    return trained(layer, [(layer, "c")])


def lora_layer(point: Point, dtype: torch.dtype, device: torch.device) -> Product:
    peft = load_peft()
    layer = peft.tuners.lora.Linear(frozen_layer(point, dtype, device), "default", peft.LoraConfig(), r=LORA_RANK)
    return trained(layer.to(device), lora_places(layer))


def c3a_layer(point: Point, dtype: torch.dtype, device: torch.device) -> Product:
    peft = load_peft()
    configuration = peft.C3AConfig(block_size=point.in_features)
    base = frozen_layer(point, dtype, device)
    layer = peft.tuners.c3a.C3ALinear(base, "default", configuration, block_size=point.in_features)
    return trained(layer.to(device), [(layer.c3a_kernel, "default")])


def c3a_parameters(point: Point, parameters: Parameters) -> Parameters:
    """One block, in float32, as PEFT keeps it."""
    return (parameters[0].float().view(1, 1, -1),)


def rival(make: Callable[[Point, torch.dtype, torch.device], Product], point: Point, dtype: torch.dtype) -> Product:
    """One of PEFT's, which may not be here."""
    load_peft()
    return on_device_of_x(make, point, dtype)


def composite(point: Point) -> Product:
    """The frozen layer in float64 with the dense matrix added to its weight."""

    def product(x: Tensor, c: Tensor) -> Tensor:
        return torch_functional.linear(x, weight_of(point, x.device).double() + reference.circulant(c))

    return product


def _ours(name: str, strategy: str) -> Method:
    return Method(name, partial(on_device_of_x, partial(adapted_layer, strategy)))


ADAPTED = Case(
    "adapted-step",
    "frozen layer + circulant, training step",
    (
        _ours(OURS, "auto"),
        _ours(MERGED, "merged"),
        _ours(DIRECT, "direct"),
        Method(FROZEN, partial(on_device_of_x, frozen_layer), nothing, compare_nothing),
        Method(PEFT_LORA, partial(rival, lora_layer), lora_parameters, compare_nothing),
        Method(PEFT_C3A, partial(rival, c3a_layer), c3a_parameters, compare_nothing),
    ),
    composite,
    lambda point: ((point.in_features,),),
    STEP_POINTS,
    (),
    BFLOAT16,
    gradients=True,
    updates=True,
    roundings=3,
)
