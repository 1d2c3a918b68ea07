"""Adapted layers trained in 16 bits: a merged weight rounded stochastically, the same wherever it is formed again."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from surm_kernels import cost_model
from surm_kernels._kept import MergedWeight
from surm_kernels.nn import AdaptedLinear, _adapted_product
from surm_kernels.nn._adapted import Update
from surm_kernels.nn._strategy import Decisions, RelativeSize, merges
from surm_kernels.ops import _cuda
from surm_kernels.structures import CauchyLike, Circulant, CirculantProduct, Siva, Structure
from tests import oracle
from tests.adapted import draw, make, step, tokens_of, trained

types = pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
structures = pytest.mark.parametrize(
    "structure", [CirculantProduct(96, 96), Siva(96, 60, 20)], ids=["circulant product", "siva"]
)


def weight_of(layer: AdaptedLinear, dtype: torch.dtype) -> Tensor:
    """What a call in training multiplies by: the outputs of the unit vectors, which sums of zeros leave exact."""
    return layer(torch.eye(layer.in_features, dtype=dtype)).detach().T.contiguous()


def training(structure: Structure, dtype: torch.dtype) -> AdaptedLinear:
    return make(structure, "merged", dtype, bias=False)


def _evaluated(layer: AdaptedLinear, x: Tensor) -> None:
    with torch.no_grad():
        layer.eval()(x)
    layer.train()


def _forgotten(layer: AdaptedLinear, x: Tensor) -> None:
    layer.refresh()


def _used_with_other_parameters(layer: AdaptedLinear, x: Tensor) -> None:
    others = {name: 1.5 * p.detach() for name, p in trained(layer).items()}
    torch.func.functional_call(layer, others, (x,))
    layer(x.float().to(x.dtype))


@types
@structures
@pytest.mark.parametrize("between", [_evaluated, _forgotten, _used_with_other_parameters])
def test_the_backward_has_the_weight_of_the_forward_whatever_happened_in_between(
    structure: Structure, dtype: torch.dtype, between: Callable[[AdaptedLinear, Tensor], None]
) -> None:
    layer = training(structure, dtype)
    x, g = tokens_of(layer, 33, dtype=dtype)
    weight = weight_of(layer, dtype)
    y = layer(x.requires_grad_())
    between(layer, x.detach())
    y.backward(g)
    assert torch.equal(y.detach(), nn.functional.linear(x.detach(), weight))
    assert torch.equal(x.grad, g @ weight)


@types
@structures
def test_the_weight_changes_with_what_is_trained_alone(structure: Structure, dtype: torch.dtype) -> None:
    layer = training(structure, dtype)
    x, g = tokens_of(layer, 33, dtype=dtype)
    weight = weight_of(layer, dtype)
    for repeat in (lambda: step(layer, layer, x, g), lambda: _evaluated(layer, x), layer.refresh):
        repeat()
        assert torch.equal(weight_of(layer, dtype), weight)
    parameter = next(iter(trained(layer).values()))
    before = parameter.detach().clone()
    parameter.data.flatten()[0] += parameter.data.flatten()[0] * 2**-5
    assert (weight_of(layer, dtype) != weight).double().mean() > 0.1
    parameter.data.copy_(before)
    assert torch.equal(weight_of(layer, dtype), weight)


@types
@structures
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_a_checkpointed_layer_is_the_same_to_the_bit(
    structure: Structure, dtype: torch.dtype, use_reentrant: bool
) -> None:
    layer = training(structure, dtype)
    for _ in range(3):
        x, g = tokens_of(layer, 2, 40, dtype=dtype)
        checkpointed = step(lambda x: checkpoint(layer, x, use_reentrant=use_reentrant).clone(), layer, x, g)
        assert all(map(torch.equal, checkpointed, step(layer, layer, x, g)))
        draw(layer)


@types
def test_copies_pickles_and_states_have_the_same_weight(dtype: torch.dtype) -> None:
    layer = training(CirculantProduct(24, 24), dtype)
    weight = weight_of(layer, dtype)
    loaded = training(CirculantProduct(24, 24), dtype)
    loaded.load_state_dict(layer.state_dict())
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
        loaded,
    ):
        assert torch.equal(weight_of(other, dtype), weight)
    assert set(layer.state_dict()) == {"r1", "r2", "base.weight"}


def test_layers_of_other_weights_and_processes_of_other_seeds_round_by_other_numbers() -> None:
    layers = [training(Circulant(64, 64), torch.bfloat16) for _ in range(2)]
    layers[1].c.data.copy_(layers[0].c)
    layers[1].base.weight.data.copy_(layers[0].base.weight)
    layers[1].base.weight.data[0, 0] *= 2
    weights = [weight_of(layer, torch.bfloat16) for layer in layers]
    assert (weights[0] != weights[1]).double().mean() > 0.1
    torch.manual_seed(1)
    layers[0].refresh()
    assert (weights[0] != weight_of(layers[0], torch.bfloat16)).double().mean() > 0.1


@types
@structures
def test_what_is_asked_for_by_name_and_what_serves_inference_is_rounded_to_nearest(
    structure: Structure, dtype: torch.dtype
) -> None:
    layer = training(structure, dtype)
    layer.base.weight.data.mul_(4)
    in_training, nearest = weight_of(layer, dtype), layer.merged_weight()
    exact = layer.base.weight.double() + layer.scale * structure.dense(
        *(p.detach().double() for p in layer.structured_parameters())
    )
    assert oracle.error(nearest, exact) < 1.01 * oracle.error(exact.to(dtype), exact)
    assert not torch.equal(in_training, nearest)
    with torch.no_grad():
        assert torch.equal(layer.weight, nearest)
    assert torch.equal(layer.to_linear().weight, nearest)
    with torch.no_grad():
        assert torch.equal(weight_of(layer.eval(), dtype), nearest)
        assert torch.equal(layer.weight, nearest)
    frozen = layer.train().requires_grad_(False)
    assert torch.equal(weight_of(frozen, dtype), nearest)


def test_merging_in_float32_is_not_rounded_by_chance() -> None:
    layer = make(CirculantProduct(24, 24), "merged", torch.bfloat16, merge_dtype=torch.float32)
    layer(tokens_of(layer, 3, dtype=torch.bfloat16)[0])
    assert layer._product._merged._merged.rounding is None


@types
def test_auto_merges_in_training_by_cost_alone_and_in_inference_what_rounding_leaves(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = True
    monkeypatch.setattr(cost_model, "prefers_merged", lambda *arguments, **needs: faster)
    layer = make(Circulant(96, 96), "auto", dtype)
    dense = layer.structure.dense(layer.c.detach().double())
    original = layer.c.detach().double() * layer.base.weight.double().norm() / (layer.scale * dense).norm()
    for size, inference in ((1.0, "merged"), (0.3, "merged"), (1e-4, "direct"), (0.0, "direct"), (1.0, "merged")):
        layer.c.data.copy_(size * original)
        assert layer.chosen(1000) == "merged"
        assert layer.chosen(1000, gradients=False) == inference
    layer.c.data.copy_(1e-4 * original)
    assert layer.chosen(1000, torch.float32, gradients=False) == "merged"
    wide = AdaptedLinear(layer.base, layer.structure, layer.scale, merge_dtype=torch.float32)
    wide.c.data.copy_(1e-4 * original)
    assert wide.chosen(1000, gradients=False) == "merged"
    faster = False
    cost_model.forget()
    assert layer.chosen(1000) == "direct"


@types
@structures
def test_a_compiled_layer_trains_with_the_weight_of_an_ordinary_one_to_the_bit(
    structure: Structure, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "prefers_merged", lambda *arguments, **needs: True)
    torch._dynamo.reset()
    layer = make(structure, "auto", dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, g = tokens_of(layer, 33, dtype=dtype)
        assert all(map(torch.equal, step(compiled, layer, x, g), step(layer, layer, x, g)))
        assert layer._product._merged._merged.rounding is not None
        draw(layer)
    layer.eval().strategy = "direct"
    with torch.no_grad():
        y = layer(x)
        layer.strategy = "auto"
        assert torch.equal(compiled(x), y)


@types
@structures
@pytest.mark.parametrize("served", [True, False], ids=["CUDA C++", "Triton alone"])
def test_on_a_gpu_auto_merges_in_training_where_its_rounding_is_that_of_the_cpu_and_looks_at_no_number(
    structure: Structure, dtype: torch.dtype, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "prefers_merged", lambda *arguments, **needs: True)
    monkeypatch.setattr(_cuda, "merges", lambda device: served)
    update, kept = Update(structure, 0.7, "auto", None), MergedWeight()
    with FakeTensorMode():  # of a GPU that is not there, whose numbers nobody can look at
        x, weight, *parameters = (
            torch.empty(shape, dtype=dtype, device="cuda")
            for shape in ((33, 96), (structure.out_features, 96), *structure.parameter_shapes().values())
        )
        for changing, wanted in ((True, served), (False, False)):
            call = update, x, weight, parameters, changing, changing, RelativeSize(), Decisions()
            assert merges(*call) is wanted
        merged = kept.of(structure, 0.7, dtype, weight, parameters, stochastic=True)
        assert merged.weight.shape == weight.shape
        assert merged.weight.device.type == merged.rounding.key.device.type == "cuda"


def share_of_update(layer: AdaptedLinear, x: Tensor) -> float:
    """How much of the update there is in the output on average, by least squares; 1 is all of it."""
    update = layer.scale * x.double() @ layer.structure.dense(layer.c.detach().double()).T
    found = layer(x).detach().double() - x.double() @ layer.base.weight.double().T
    return float((found * update).sum() / update.square().sum())


def far_below_the_weight(strategy: str) -> AdaptedLinear:
    """A layer whose weights are spaced by 2^-8, with an update that is far smaller."""
    layer = make(Circulant(96, 96), strategy, torch.bfloat16, bias=False)
    layer.c.data.mul_(1e-2)
    layer.base.weight.data.copy_(torch.empty(96, 96).uniform_(0.5, 1.0))
    return layer


def test_an_update_far_below_the_weight_is_there_but_where_a_weight_is_rounded_to_nearest() -> None:
    layer = far_below_the_weight("merged")
    x, _ = tokens_of(layer, 4000, dtype=torch.bfloat16)
    assert share_of_update(layer, x) == pytest.approx(1, abs=0.25)
    layer.strategy = "direct"
    assert share_of_update(layer, x) == pytest.approx(1, abs=0.1)
    layer.strategy = "merged"
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), layer.base(x))


def losses(layer: AdaptedLinear, wanted: Tensor, steps: int) -> Tensor:
    """Of training c from zero towards the map with the wanted c, step by step, as of exact outputs; at zero it is 1."""
    layer.c.data.zero_()
    optimiser, generator = torch.optim.SGD([layer.c], lr=0.2), torch.Generator().manual_seed(0)
    map = layer.base.weight.double() + layer.scale * layer.structure.dense(wanted)
    found = []
    for _ in range(steps):
        x = torch.randn(256, layer.in_features, generator=generator).bfloat16()
        optimiser.zero_grad()
        (layer(x) - x.double() @ map.T).square().mean().backward()
        optimiser.step()
        found.append((layer.c.detach() - wanted).square().sum() / wanted.square().sum())
    return torch.stack(found)


def test_training_follows_the_direct_strategy_where_rounding_to_nearest_loses_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = far_below_the_weight("direct")
    layer.c.data = layer.c.data.float()
    wanted = layer.c.detach().double()
    direct = losses(layer, wanted, 20)
    layer.strategy = "merged"
    merged = losses(layer, wanted, 20)
    monkeypatch.setattr(_adapted_product, "rounds_stochastically", lambda *arguments: False)
    nearest = losses(layer, wanted, 20)
    assert (merged - direct).abs().max() < 0.05
    assert direct[-1] < 0.01
    assert merged[-1] < 0.05
    assert nearest[-1] > 1


@types
@pytest.mark.parametrize(
    "structure",
    [CirculantProduct(12, 12), Siva(12, 12, 5), CauchyLike(12, 12, 2)],
    ids=["circulant product", "siva", "cauchy-like"],
)
def test_autocast_to_the_other_type_of_16_bits_merges_in_that(structure: Structure, dtype: torch.dtype) -> None:
    other = next(t for t in oracle.SIXTEEN_BIT if t is not dtype)
    layer = training(structure, dtype)
    x, _ = tokens_of(layer, 9, dtype=dtype)
    with torch.autocast("cpu", other):
        y = layer(x)
    parameters = [parameter.double() for parameter in layer.structured_parameters()]
    exact = x.double() @ (layer.base.weight + layer.scale * layer.structure.dense(*parameters)).T
    assert y.dtype is other
    oracle.assert_close(
        y.detach(), exact.detach(), rounding=4
    )  # weight, x and parameters are rounded to that type as well
