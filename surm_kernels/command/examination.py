"""How a family of matrices is checked: random instances, and six maps of each beside their exact answers.

A family is checked through its public product and matrix. Autograd takes the cheapest operator that gives the
derivatives asked for, so the six maps below reach every kernel of a family.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from surm_kernels.command import accuracy
from surm_kernels.command.accuracy import Deviation
from surm_kernels.command.families import LARGE, Family, Shapes

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75
FEW_TOKENS, MANY_TOKENS = (1, 17), (1, 17, 100)  # some, for the schedule that has few tokens and the one that has many
SMALL = 100  # up to this many features there is time for many tokens


class Instance:
    """Random parameters, tokens and cotangents of one type, and the exact answers for them."""

    def __init__(self, family: Family, shapes: Shapes, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator).to(device, dtype)

        self.family = family
        self.constants = tuple(number for number in shapes if isinstance(number, int))
        drawn = [draw(*shape) for shape in shapes if not isinstance(shape, int)]
        offsets = family.offsets or (0.0,) * len(drawn)
        self.parameters = tuple(p + offset for p, offset in zip(drawn, offsets, strict=True))
        self._leaves = tuple(p.double().detach().clone().requires_grad_() for p in self.parameters)
        self._graph = family.reference(*self._leaves, *self.constants)
        self.matrix = self._graph.detach()
        outputs, inputs = self.matrix.shape
        self.cotangent = draw(outputs, inputs)
        counts = family.tokens or (MANY_TOKENS if max(outputs, inputs) <= SMALL else FEW_TOKENS)
        self.batches = [Batch(self, draw(tokens, inputs), draw(tokens, outputs), draw(outputs)) for tokens in counts]

    def trained(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Those of the parameters, or of their gradients, that are not frozen."""
        return tuple(t for index, t in enumerate(parameters) if index not in self.family.frozen)

    def parameter_gradients(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The exact gradients of `<cotangent, W>` with respect to the parameters."""
        return torch.autograd.grad(self._graph, self._leaves, cotangent.double(), retain_graph=True)


class Batch:
    """Tokens x, a gradient g of the output, a bias as base, and the exact answers for them."""

    def __init__(self, instance: Instance, x: Tensor, noise: Tensor, base: Tensor) -> None:
        self._instance, self.x, self.base = instance, x, base
        # A gradient that leans towards x W^T: the sum over tokens in the pullback cannot cancel by chance.
        self.g = noise + torch.nn.functional.normalize(x.double() @ instance.matrix.mT).to(noise.dtype)

    @cached_property
    def product(self) -> Tensor:
        return self.base.double() + SCALE * self.x.double() @ self._instance.matrix.mT

    @cached_property
    def x_gradient(self) -> Tensor:
        return SCALE * self.g.double() @ self._instance.matrix

    @cached_property
    def parameter_gradients(self) -> tuple[Tensor, ...]:
        return self._instance.parameter_gradients(SCALE * self.g.double().mT @ self.x.double())


Pairs = Iterator[tuple[Tensor, Tensor]]  # results, each with the exact one


def _product(instance: Instance) -> Pairs:
    for batch in instance.batches:
        y = instance.family.linear(batch.x, *instance.parameters, base=batch.base, scale=SCALE)
        yield y, batch.product


def _gradients(instance: Instance, of_x: bool, of_parameters: bool) -> Pairs:
    """The gradients asked for by autograd, which picks the operator: transposed, pullback, or both in one pass."""
    for batch in instance.batches:
        x = batch.x.clone().requires_grad_(of_x)
        parameters = tuple(parameter.clone() for parameter in instance.parameters)
        trained = instance.trained(parameters) if of_parameters else ()
        for parameter in trained:
            parameter.requires_grad_()
        y = instance.family.linear(x, *parameters, scale=SCALE)
        wanted = (x,) * of_x + trained
        exact = (batch.x_gradient,) * of_x
        if of_parameters:
            exact += instance.trained(batch.parameter_gradients)
        yield from zip(torch.autograd.grad(y, wanted, batch.g), exact, strict=True)


def _dense(instance: Instance) -> Pairs:
    yield instance.family.dense(*instance.parameters, *instance.constants), instance.matrix


def _dense_adjoint(instance: Instance) -> Pairs:
    parameters = tuple(parameter.clone().requires_grad_() for parameter in instance.parameters)
    matrix = instance.family.dense(*parameters, *instance.constants)
    got = torch.autograd.grad(matrix, parameters, instance.cotangent)
    yield from zip(got, instance.parameter_gradients(instance.cotangent), strict=True)


MAPS: dict[str, Callable[[Instance], Pairs]] = {
    "product": _product,
    "transposed": partial(_gradients, of_x=True, of_parameters=False),
    "pullback": partial(_gradients, of_x=False, of_parameters=True),
    "fused backward": partial(_gradients, of_x=True, of_parameters=True),
    "dense": _dense,
    "dense adjoint": _dense_adjoint,
}


@dataclass(frozen=True)
class Finding:
    """What one map gave for one instance: its worst deviation, or the error it raised."""

    shapes: Shapes
    deviation: Deviation
    raised: str = ""


Findings = dict[tuple[str, torch.dtype], list[Finding]]  # by map and type


def examine(family: Family, device: torch.device, advance: Callable[[], Any]) -> Findings:
    """Every map of a family on every instance and type; `advance` is called after each instance."""
    findings: Findings = {(name, dtype): [] for name in MAPS for dtype in DTYPES}
    for dtype in DTYPES:
        for seed, shapes in enumerate(family.cases):
            if _included(shapes, dtype):
                instance = Instance(family, shapes, dtype, device, seed)
                for name, function in MAPS.items():
                    findings[name, dtype].append(_find(function, instance, shapes))
            advance()
    return findings


def _included(shapes: Shapes, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or all(max(shape) <= LARGE for shape in shapes if not isinstance(shape, int))


def _find(function: Callable[[Instance], Pairs], instance: Instance, shapes: Shapes) -> Finding:
    try:
        pairs = list(function(instance))
    except Exception as failure:  # a kernel that raises has failed; the others are still of interest
        return Finding(shapes, Deviation(math.inf, 1.0), f"{type(failure).__name__}: {failure}")
    return Finding(shapes, accuracy.worst(instance.family.deviation(*pair) for pair in pairs))
