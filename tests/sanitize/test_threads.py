"""Threads of Python that share a layer, and what is kept for all layers: each gets what it gets alone, bit for bit."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surm_kernels.nn import AdaptedLinear
from tests import adapted
from tests.sanitize.threads import THREADS, at_once
from tests.test_functional import Case, function_cases
from tests.test_nn import layer_cases, make

ROUNDS = 3  # each with other parameters, so that what is kept has to be made again
pytestmark = pytest.mark.slow
strategies = pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])


def step(call: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """The result and the gradient of every leaf, for a cotangent of ones."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    result = call(*leaves)
    return [result.detach(), *torch.autograd.grad(result.sum(), leaves)]


def same(got: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@torch.no_grad()
def output(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [layer(x)]


def training_step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and the gradients of x and of what is trained, without writing to the layer."""
    x = x.detach().requires_grad_()
    y = layer(x)
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


def alone(layer: AdaptedLinear, call: Callable[..., list[Tensor]], x: Tensor) -> list[list[Tensor]]:
    """What a copy gives in its first call and in a later one, by every strategy that the layer may take."""
    results = []
    for strategy in ("direct", "merged") if layer.strategy == "auto" else (layer.strategy,):
        fresh = copy.deepcopy(layer)
        fresh.strategy = strategy
        results += [call(fresh, x), call(fresh, x)]
    return results


@function_cases
def test_functions_and_their_gradients(case: Case) -> None:
    x, parameters = torch.randn(9, 12), case.parameters()
    product, matrix = step(case.linear, x, *parameters), step(case.dense, *parameters)
    for got_product, got_matrix in at_once(
        lambda _: (step(case.linear, x, *parameters), step(case.dense, *parameters))
    ):
        assert same(got_product, product)
        assert same(got_matrix, matrix)


@layer_cases
@pytest.mark.parametrize("call", [output, training_step])
def test_structured_layers(name: str, call: Callable[..., list[Tensor]]) -> None:
    layer = make(name)
    x = torch.randn(9, layer.in_features)
    wanted = call(copy.deepcopy(layer), x)
    assert all(same(got, wanted) for got in at_once(lambda _: call(layer, x)))


@adapted.squares
@strategies
@pytest.mark.parametrize("call", [output, training_step])
def test_adapted_layers_whose_parameters_have_changed(structure, strategy: str, call) -> None:
    layer = adapted.make(structure, strategy, torch.float32)
    x = torch.randn(9, layer.in_features)
    for _ in range(ROUNDS):
        adapted.draw(layer)
        wanted = alone(layer, call, x)
        for got in at_once(lambda _: call(layer, x)):
            assert any(same(got, one) for one in wanted)
        assert any(same(call(layer, x), one) for one in wanted)  # nor is anything wrong left behind


@adapted.squares
@strategies
def test_half_of_the_threads_in_autocast(structure, strategy: str) -> None:
    def call(layer: AdaptedLinear, x: Tensor, autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return output(layer, x)

    layer = adapted.make(structure, strategy, torch.float32)
    x = torch.randn(9, layer.in_features)
    for _ in range(ROUNDS):
        adapted.draw(layer)
        wanted = [
            alone(layer, lambda one, x, autocast=autocast: call(one, x, autocast), x) for autocast in (False, True)
        ]
        for index, got in enumerate(at_once(lambda index: call(layer, x, index % 2 == 1))):
            assert any(same(got, one) for one in wanted[index % 2])


@adapted.squares
def test_threads_that_train_layers_of_their_own(structure) -> None:
    def train(layer: AdaptedLinear) -> list[Tensor]:
        optimiser = torch.optim.SGD(adapted.trained(layer).values(), lr=0.01)
        for x in tokens:
            layer(x).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        return [p.detach() for p in adapted.trained(layer).values()]

    layer = adapted.make(structure, "merged", torch.float32)
    tokens = torch.randn(5, 9, layer.in_features)
    layers = [copy.deepcopy(layer) for _ in range(THREADS)]
    wanted = train(layer)
    assert all(same(got, wanted) for got in at_once(lambda index: train(layers[index])))


def test_threads_that_wait_for_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sanitize.threads.LIMIT", 0.1)
    never = threading.Event()
    with pytest.raises(TimeoutError):
        at_once(lambda _: never.wait(5))
