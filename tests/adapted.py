"""Adapted layers of every structure, and their outputs and gradients in float64, for tests of AdaptedLinear."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import (
    Circulant,
    CirculantProduct,
    Hydra,
    Kronecker,
    Siva,
    Structure,
    Toeplitz,
    ToeplitzLike,
    VandermondeLike,
)
from tests import updates

SCALE = 0.7
STRATEGIES = ("direct", "merged")
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
squares = pytest.mark.parametrize("structure", updates.SQUARES.values(), ids=updates.SQUARES.keys())
dtypes = pytest.mark.parametrize("dtype", updates.DTYPES, ids=str)
# One of every kind of gradient; few numbers, so that Jacobians are small.
SMALL: dict[str, Structure] = {
    "circulant": Circulant(5, 5),
    "circulant product, wide": CirculantProduct(6, 4),
    "toeplitz, tall": Toeplitz(3, 5),
    "kronecker": Kronecker(6, 4),
    "toeplitz-like": ToeplitzLike(4, 5, 2),
    "vandermonde-like": VandermondeLike(4, 3, 1),
    "siva": Siva(6, 5, 3),
    "hydra": Hydra(4, 8, structure="toeplitz", pool_size=9),
}
small_structures = pytest.mark.parametrize("structure", SMALL.values(), ids=SMALL.keys())


def make(
    structure: Structure,
    strategy: str = "direct",
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    **options,
) -> AdaptedLinear:
    """A layer with an update about as large as its weight."""
    base = nn.Linear(structure.in_features, structure.out_features, bias, dtype=dtype)
    layer = AdaptedLinear(base, structure, SCALE, strategy, **options)
    draw(layer)
    return layer


@torch.no_grad()
def draw(layer: AdaptedLinear) -> None:
    """Other values of what is trained."""
    values = updates.parameters_of(layer.structure)
    for name, value in zip(layer.structure.parameter_shapes(), values, strict=True):
        if name not in layer.structure.constants:
            getattr(layer, name).copy_(value)


def trained(layer: AdaptedLinear) -> dict[str, Tensor]:
    names = layer.structure.parameter_shapes()
    return {name: getattr(layer, name) for name in names if name not in layer.structure.constants}


def exact_output(layer: AdaptedLinear, x: Tensor, parameters: tuple[Tensor, ...] | None = None) -> Tensor:
    """x (W0 + scale W)^T + bias in float64, differentiable."""
    stored = layer.structured_parameters()
    W = updates.matrix(layer.structure, stored if parameters is None else parameters, stored[0].dtype)
    bias = 0 if layer.base.bias is None else layer.base.bias.double()
    return x.double() @ (layer.base.weight.double() + layer.scale * W).T + bias


def exact_step(layer: AdaptedLinear, x: Tensor, g: Tensor) -> list[Tensor]:
    """The output, the gradient of x, and those of what is trained, for the gradient g of the output."""
    parameters = {name: p.detach().double() for name, p in layer_tensors(layer).items()}
    leaves = {name: parameters[name].requires_grad_() for name in trained(layer)}
    x = x.detach().double().requires_grad_()
    y = exact_output(layer, x, tuple(parameters.values()))
    return [y.detach(), *torch.autograd.grad(y, [x, *leaves.values()], g.double())]


def layer_tensors(layer: AdaptedLinear) -> dict[str, Tensor]:
    return dict(zip(layer.structure.parameter_shapes(), layer.structured_parameters(), strict=True))


def step(call: Callable[[Tensor], Tensor], layer: AdaptedLinear, x: Tensor, g: Tensor) -> list[Tensor]:
    """What `exact_step` gives, by the layer or what is made of it."""
    x = x.detach().requires_grad_()
    leaves = [x, *trained(layer).values()]
    for leaf in leaves:
        leaf.grad = None
    y = call(x)
    y.backward(g)  # torch.autograd.grad is not for reentrant checkpoints
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def joined_steps(layers: Iterable[AdaptedLinear], tokens: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """`step` and `exact_step` of several layers alike, stacked: over many numbers roundings add as on average."""
    steps = []
    for layer in layers:
        x, g = tokens_of(layer, tokens, dtype=dtype)
        steps.append((step(layer, layer, x, g), exact_step(layer, x, g)))
    got, exact = ([torch.stack(parts) for parts in zip(*each, strict=True)] for each in zip(*steps, strict=True))
    return got, exact


def assert_step(layer: AdaptedLinear, got: list[Tensor], exact: list[Tensor]) -> None:
    factor = updates.rounding_factor(layer.structure, stochastic=layer.strategy == "merged")
    for name, a, b in zip(("output", "gradient of x", *trained(layer)), got, exact, strict=True):
        updates.assert_close(a, b, factor, name)


def tokens_of(layer: AdaptedLinear, *leading: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the output."""
    sizes = layer.in_features, layer.out_features
    x, g = (torch.randn(*leading, size, dtype=torch.float64).to(dtype) for size in sizes)
    return x, g


def assert_follows(layer: AdaptedLinear, call: Callable[[Tensor], Tensor] | None = None) -> None:
    """The layer has the output and the gradients of its present parameters and weight, in float64."""
    x, g = tokens_of(layer, 7)
    assert_step(layer, step(call or layer, layer, x, g), exact_step(layer, x, g))


def optimise(layer: AdaptedLinear) -> None:
    """One step of training."""
    x, g = tokens_of(layer, 3)
    layer(x).backward(g)
    torch.optim.SGD(trained(layer).values(), lr=0.1).step()
    layer.zero_grad()
