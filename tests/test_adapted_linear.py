"""AdaptedLinear: map and gradients of both strategies, and every way torch calls, transforms and saves a layer."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from surm_kernels import cost_model
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
from tests import oracle, updates

SCALE = 0.7
strategies = pytest.mark.parametrize("strategy", ["direct", "merged"])
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
    "hydra": Hydra(4, 8, kind="toeplitz", pool=9),
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
    y = call(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *trained(layer).values()], g)]


def assert_step(layer: AdaptedLinear, got: list[Tensor], exact: list[Tensor]) -> None:
    factor = updates.rounding_factor(layer.structure)
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


# The map and its gradients


@strategies
@dtypes
@pytest.mark.parametrize("structure", updates.STRUCTURES.values(), ids=updates.STRUCTURES.keys())
def test_output_and_gradients_are_those_of_the_sum_of_both_matrices(
    structure: Structure, dtype: torch.dtype, strategy: str, poisoned_memory: None
) -> None:
    if dtype not in oracle.SIXTEEN_BIT:
        layer = make(structure, strategy, dtype)
        for tokens in (1, 17, 300):
            x, g = tokens_of(layer, tokens, dtype=dtype)
            assert_step(layer, step(layer, layer, x, g), exact_step(layer, x, g))
        return
    # Several roundings add as they do on average only over many numbers.
    steps = []
    for _ in range(8):
        layer = make(structure, strategy, dtype)
        x, g = tokens_of(layer, 100, dtype=dtype)
        steps.append((step(layer, layer, x, g), exact_step(layer, x, g)))
    got, exact = ([torch.stack(parts) for parts in zip(*each, strict=True)] for each in zip(*steps, strict=True))
    assert all(t.dtype == dtype for t in got)
    assert_step(layer, got, exact)


@strategies
@squares
def test_input_has_any_leading_shape_and_strides(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    for leading in ((), (1,), (2, 3), (0,), (2, 0, 3)):
        x, g = tokens_of(layer, *leading)
        assert_step(layer, step(layer, layer, x, g), exact_step(layer, x, g))
    x, g = tokens_of(layer, 5, 2)
    for strided in (x.transpose(0, 1), x[:, :1].expand(5, 4, -1), torch.stack([x, x], -1)[..., 1], x.flip(0)[::2]):
        g = torch.randn(*strided.shape[:-1], 1, dtype=torch.float64).expand(*strided.shape[:-1], layer.out_features)
        assert_step(layer, step(layer, layer, strided, g), exact_step(layer, strided, g))


@strategies
def test_a_layer_without_bias_adds_none(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy, bias=False)
    assert_follows(layer)
    assert torch.equal(layer(torch.zeros(3, 12, dtype=torch.float64)), torch.zeros(3, 8, dtype=torch.float64))


@strategies
@squares
def test_gradients_go_to_what_is_trained_alone(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy, torch.float32)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == list(trained(layer))
    x, g = tokens_of(layer, 5, dtype=torch.float32)
    layer(x).backward(g)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in trained(layer).values())
    assert layer.base.weight.grad is None and layer.base.bias.grad is None
    assert not any(buffer.requires_grad for buffer in layer.buffers())


@strategies
@squares
def test_a_frozen_update_still_gives_the_gradient_of_the_input(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, g = tokens_of(layer, 5)
    _, exact, *_ = exact_step(layer, x, g)
    for p in trained(layer).values():
        p.requires_grad_(False)
    assert not layer(x).requires_grad
    x.requires_grad_()
    oracle.assert_close(torch.autograd.grad(layer(x), x, g)[0], exact)


@strategies
@small_structures
def test_one_parameter_may_be_frozen_and_the_others_trained(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, g = tokens_of(layer, 5)
    exact = dict(zip(trained(layer), exact_step(layer, x, g)[2:], strict=True))
    for frozen, p in trained(layer).items():
        p.requires_grad_(False)
        y = layer(x)
        if y.requires_grad:
            y.backward(g)
        for name, other in trained(layer).items():
            if name == frozen:
                assert other.grad is None
            else:
                oracle.assert_close(other.grad, exact[name])
            other.grad = None
        p.requires_grad_()


@strategies
@small_structures
def test_a_weight_that_is_trained_after_all_gets_its_gradient(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    layer.base.weight.requires_grad_()
    x, g = tokens_of(layer, 2, 3)
    layer(x).backward(g)
    oracle.assert_close(layer.base.weight.grad, g.flatten(0, 1).T @ x.flatten(0, 1))
    for p, exact in zip(trained(layer).values(), exact_step(layer, x, g)[2:], strict=True):
        oracle.assert_close(p.grad, exact)
    assert_follows(layer)


@strategies
def test_a_bias_may_be_trained_alone_or_with_the_update(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy)
    layer.base.bias.requires_grad_()
    x, g = tokens_of(layer, 2, 3)
    for also in (True, False):
        for p in trained(layer).values():
            p.requires_grad_(also)
        layer.base.bias.grad = None
        layer(x).backward(g)
        oracle.assert_close(layer.base.bias.grad, g.sum((0, 1)))


@strategies
def test_a_row_of_nan_stays_a_row_of_nan(strategy: str) -> None:
    layer = make(Circulant(12, 12), strategy, torch.float32)
    x, _ = tokens_of(layer, 5, dtype=torch.float32)
    wanted = layer(x).detach()
    x[3] = torch.nan
    y = layer(x).detach()
    assert y[3].isnan().all()
    others = torch.arange(5) != 3
    oracle.assert_close(y[others], wanted[others].double())


@strategies
@squares
def test_the_merged_weight_is_a_tensor_of_its_own_and_the_layer_becomes_a_linear_one(
    structure: Structure, strategy: str
) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 5)
    wanted = layer(x).detach()
    merged, linear = layer.merged_weight(), layer.to_linear()
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, merged)
    assert linear.weight.requires_grad and not merged.requires_grad
    oracle.assert_close(torch.nn.functional.linear(x, merged, layer.base.bias), wanted)
    oracle.assert_close(linear(x).detach(), wanted)
    merged.zero_()
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    oracle.assert_close(layer(x).detach(), wanted)


def test_an_update_starts_from_zero_where_the_structure_can_and_by_name_otherwise() -> None:
    base = nn.Linear(12, 12)
    x = torch.randn(3, 12)
    layer = AdaptedLinear(base, CirculantProduct(12, 12))
    assert torch.equal(layer(x), base(x))
    assert (layer.r1 == 0).all() and (layer.r2 != 0).any()
    assert (AdaptedLinear(base, Circulant(12, 12)).c == 0).all()
    assert (AdaptedLinear(base, Circulant(12, 12), initialisation="layer").c != 0).any()
    assert (AdaptedLinear(base, Kronecker(12, 12), initialisation="repo").B == 0).all()
    layer.r1.data.fill_(1.0)
    layer.reset_parameters()
    assert torch.equal(layer(x), base(x))


# Types


@strategies
@squares
def test_autocast_gives_its_type_with_no_more_error_than_a_dense_layer_under_it(
    structure: Structure, strategy: str
) -> None:
    layer = make(structure, strategy, torch.float32)
    x, g = tokens_of(layer, 300, dtype=torch.float32)
    exact, exact_x, *_ = exact_step(layer, x, g)
    linear = layer.to_linear()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, dense = layer(x), linear(x)
    assert y.dtype == torch.bfloat16
    y.backward(g.bfloat16())
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in trained(layer).values())
    (dense_x,) = torch.autograd.grad(dense, x, g.bfloat16())
    factor = updates.rounding_factor(structure)
    assert oracle.error(y, exact) <= factor * oracle.error(dense, exact)
    assert oracle.error(x.grad, exact_x) <= factor * oracle.error(dense_x, exact_x)


@strategies
def test_autocast_leaves_float64_alone(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy)
    with torch.autocast("cpu", torch.bfloat16):
        assert_follows(layer)


@strategies
def test_autocast_and_float32_calls_take_turns(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy, torch.float32)
    x, g = tokens_of(layer, 5, dtype=torch.float32)
    wanted = exact_step(layer, x, g)
    for _ in range(2):
        assert_step(layer, step(layer, layer, x, g), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
@strategies
@squares
def test_wide_parameters_on_a_16_bit_weight_get_wide_gradients(
    structure: Structure, strategy: str, dtype: torch.dtype
) -> None:
    layer = make(structure, strategy, dtype)
    for p in trained(layer).values():
        p.data = p.data.float()
    draw(layer)
    x, g = tokens_of(layer, 300, dtype=dtype)
    y, x_gradient, *gradients = step(layer, layer, x, g)
    assert y.dtype == x_gradient.dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    names = ("output", "gradient of x", *trained(layer))
    for name, a, b in zip(names, (y, x_gradient, *gradients), exact_step(layer, x, g), strict=True):
        # The parameter is rounded on its way in, one rounding more.
        assert oracle.error(a, b) <= 2 * oracle.error(b.to(dtype), b), name


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
def test_merging_in_float32_rounds_16_bit_layers_once(dtype: torch.dtype) -> None:
    layer = make(CirculantProduct(96, 60), "merged", dtype, merge_dtype=torch.float32)
    x, g = tokens_of(layer, 300, dtype=dtype)
    got, exact = step(layer, layer, x, g), exact_step(layer, x, g)
    for a, b in zip(got[:2], exact[:2], strict=True):
        assert a.dtype == dtype
        oracle.assert_close(a, b)


# What follows a change


def _in_place(layer: AdaptedLinear) -> None:
    with torch.no_grad():
        for p in trained(layer).values():
            p.mul_(1.5)


def _through_data(layer: AdaptedLinear) -> None:
    for p in trained(layer).values():
        p.data.mul_(1.5)


def _one_entry_through_data(layer: AdaptedLinear) -> None:
    next(iter(trained(layer).values())).data.flatten()[-1:].add_(1e-9)


def _other_data(layer: AdaptedLinear) -> None:
    for p in trained(layer).values():
        p.data = 1.5 * p.data


def _under_inference_mode(layer: AdaptedLinear) -> None:
    with torch.inference_mode():
        for p in trained(layer).values():
            p.mul_(1.5)


def _through_numpy(layer: AdaptedLinear) -> None:
    for p in trained(layer).values():
        p.detach().numpy()[...] *= 1.5


def _other_parameters(layer: AdaptedLinear) -> None:
    for name, p in trained(layer).items():
        setattr(layer, name, nn.Parameter(1.5 * p.detach()))


def _loaded(layer: AdaptedLinear) -> None:
    state = layer.state_dict()
    layer.load_state_dict({name: 1.5 * t if name in trained(layer) else t for name, t in state.items()})


def _assigned(layer: AdaptedLinear) -> None:
    state = copy.deepcopy(layer.state_dict())
    layer.load_state_dict({name: 1.5 * t if name in trained(layer) else t for name, t in state.items()}, assign=True)


def _optimised(layer: AdaptedLinear) -> None:
    x, g = tokens_of(layer, 3)
    layer(x).backward(g)
    torch.optim.SGD(trained(layer).values(), lr=0.1).step()
    layer.zero_grad()


def _adam(layer: AdaptedLinear) -> None:
    x, g = tokens_of(layer, 3)
    layer(x).backward(g)
    torch.optim.AdamW(trained(layer).values(), lr=0.1, fused=True).step()
    layer.zero_grad()


def _reset(layer: AdaptedLinear) -> None:
    layer.reset_parameters()


def _another_scale(layer: AdaptedLinear) -> None:
    layer.scale = 0.3


def _weight_in_place(layer: AdaptedLinear) -> None:
    with torch.no_grad():
        layer.base.weight.mul_(1.5)


def _weight_through_data(layer: AdaptedLinear) -> None:
    layer.base.weight.data.mul_(1.5)


def _one_entry_of_the_weight(layer: AdaptedLinear) -> None:
    with torch.no_grad():
        layer.base.weight[3, 5] += 1


def _other_weight(layer: AdaptedLinear) -> None:
    layer.base.weight = nn.Parameter(1.5 * layer.base.weight.detach(), requires_grad=False)


def _weight_of_other_data(layer: AdaptedLinear) -> None:
    layer.base.weight.data = torch.randn_like(layer.base.weight)


def _other_base(layer: AdaptedLinear) -> None:
    layer.base = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64).requires_grad_(False)


def _other_bias(layer: AdaptedLinear) -> None:
    layer.base.bias.data.add_(1.0)


def _there_and_back(layer: AdaptedLinear) -> None:
    layer.float()(torch.randn(2, layer.in_features))
    layer.double()


CHANGES = [
    _in_place, _through_data, _one_entry_through_data, _other_data, _under_inference_mode, _through_numpy,
    _other_parameters, _loaded, _assigned, _optimised, _adam, _reset, _another_scale, _weight_in_place,
    _weight_through_data, _one_entry_of_the_weight, _other_weight, _weight_of_other_data, _other_base, _other_bias,
    _there_and_back,
]  # fmt: skip
CONTEXTS = {"recording": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.removeprefix("_"))
@pytest.mark.parametrize(
    "structure", [CirculantProduct(12, 12), Toeplitz(12, 8), Siva(12, 8, 3), Hydra(8, 12)], ids=repr
)
@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
def test_layers_follow_every_change_however_it_is_made(
    structure: Structure, change: Callable, strategy: str, context: str
) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 40)
    with CONTEXTS[context]():
        layer(x), layer(x)
    before = exact_output(layer, x).detach()
    change(layer)
    exact = exact_output(layer, x).detach()
    assert not torch.equal(exact, before)
    with CONTEXTS[context]():
        oracle.assert_close(layer(x).detach().clone(), exact)
    assert_follows(layer)


@strategies
def test_a_parameter_of_nan_is_seen_and_so_is_its_end(strategy: str) -> None:
    layer = make(Circulant(12, 12), strategy)
    x, _ = tokens_of(layer, 5)
    wanted = layer(x).detach()
    value = layer.c.data[3].clone()
    layer.c.data[3] = torch.nan
    assert layer(x).isnan().all() and layer(x).isnan().all()
    layer.c.data[3] = value
    oracle.assert_close(layer(x).detach(), wanted)


@strategies
@small_structures
def test_training_with_accumulated_gradients_is_that_of_the_plain_expression(
    structure: Structure, strategy: str
) -> None:
    layer = make(structure, strategy)
    plain = copy.deepcopy(layer)
    optimisers = [torch.optim.Adam(trained(each).values(), lr=0.05) for each in (layer, plain)]
    for _ in range(3):
        for _ in range(4):
            x, g = tokens_of(layer, 6)
            layer(x).backward(g)
            exact_output(plain, x, plain.structured_parameters()).backward(g)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        for a, b in zip(trained(layer).values(), trained(plain).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@strategies
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
@small_structures
def test_gradient_checkpointing_gives_the_same_gradients_step_by_step(
    structure: Structure, use_reentrant: bool, strategy: str
) -> None:
    layer = make(structure, strategy)
    for _ in range(2):
        x, g = tokens_of(layer, 2, 5)
        checkpointed = step(lambda x: checkpoint(layer, x, use_reentrant=use_reentrant).clone(), layer, x, g)
        for a, b in zip(checkpointed, step(layer, layer, x, g), strict=True):
            assert torch.equal(a, b)
        assert_step(layer, checkpointed, exact_step(layer, x, g))
        draw(layer)


@strategies
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved tensors", "reentrant"])
def test_a_layer_checkpointed_twice_in_a_step_accumulates(strategy: str, use_reentrant: bool) -> None:
    layer = make(CirculantProduct(8, 8), strategy)
    x, g = tokens_of(layer, 5)
    x.requires_grad_()
    y = checkpoint(layer, checkpoint(layer, x, use_reentrant=use_reentrant).sin(), use_reentrant=use_reentrant)
    y.backward(g)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *layer.structured_parameters())]
    wanted = exact_output(layer, exact_output(layer, leaves[0], tuple(leaves[1:])).sin(), tuple(leaves[1:]))
    for t, exact in zip((x, *trained(layer).values()), torch.autograd.grad(wanted, leaves, g), strict=True):
        oracle.assert_close(t.grad, exact)


@strategies
def test_the_same_layer_twice_in_a_graph_gets_the_sum_of_both_gradients(strategy: str) -> None:
    layer = make(CirculantProduct(8, 8), strategy)
    x, g = tokens_of(layer, 5)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *layer.structured_parameters())]
    wanted = exact_output(layer, exact_output(layer, leaves[0], tuple(leaves[1:])).sin(), tuple(leaves[1:]))
    got = step(lambda x: layer(layer(x).sin()), layer, x, g)
    for a, b in zip(got, (wanted.detach(), *torch.autograd.grad(wanted, leaves, g)), strict=True):
        oracle.assert_close(a, b)


@strategies
@small_structures
def test_other_parameters_through_functional_call_serve_their_call_alone(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    assert_follows(layer)
    others = {name: (1.5 * p).detach().requires_grad_() for name, p in trained(layer).items()}
    x, g = tokens_of(layer, 5)
    mine, y = layer(x), functional_call(layer, others, (x,))
    exact = dict(layer_tensors(layer)) | others
    wanted = exact_output(layer, x, tuple(exact.values()))
    oracle.assert_close(y.detach(), wanted.detach())
    # Both graphs are alive, each with its own parameters; the older one comes last.
    gradients = torch.autograd.grad(y, list(others.values()), g)
    for a, b in zip(gradients, torch.autograd.grad(wanted, list(others.values()), g), strict=True):
        oracle.assert_close(a, b)
    found = torch.autograd.grad(mine, list(trained(layer).values()), g)
    for a, b in zip(found, exact_step(layer, x, g)[2:], strict=True):
        oracle.assert_close(a, b)
    assert_follows(layer)


@strategies
def test_interleaved_graphs_of_different_parameters_keep_the_gradients_of_the_input(strategy: str) -> None:
    layer = make(CirculantProduct(8, 8), strategy)
    x, g = tokens_of(layer, 5)
    x.requires_grad_()
    scaled = [{name: factor * p.detach() for name, p in trained(layer).items()} for factor in (0.5, 1.0, 2.0)]
    outputs = [functional_call(layer, others, (x,)) for others in scaled]
    for index in (1, 0, 2):
        (gradient,) = torch.autograd.grad(outputs[index], x, g)
        W = layer.structure.dense(*scaled[index].values())
        oracle.assert_close(gradient, g @ (layer.base.weight + SCALE * W))


@strategies
@small_structures
def test_a_parameter_changed_between_forward_and_backward_is_an_error_as_everywhere(
    structure: Structure, strategy: str
) -> None:
    layer = make(structure, strategy)
    x, g = tokens_of(layer, 5)
    for name, p in trained(layer).items():
        y = layer(x.requires_grad_())
        with torch.no_grad():
            p.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(g)
        assert getattr(layer, name) is p
    assert_follows(layer)


@strategies
def test_an_input_changed_between_forward_and_backward_is_an_error_as_everywhere(strategy: str) -> None:
    layer = make(Circulant(8, 8), strategy)
    x, g = tokens_of(layer, 5)
    y = layer(x)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(g)


@strategies
@squares
def test_inference_comes_before_and_between_training(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 5)
    for _ in range(2):
        with torch.inference_mode():
            y = layer(x)
            assert y.is_inference()
            oracle.assert_close(y.clone(), exact_output(layer, x).detach())
        assert_follows(layer)
        draw(layer)


@strategies
def test_layers_built_and_tokens_made_under_inference_mode_work_there(strategy: str) -> None:
    with torch.inference_mode():
        layer = make(CirculantProduct(8, 8), strategy)
        x, _ = tokens_of(layer, 5)
        for _ in range(2):
            oracle.assert_close(layer(x), exact_output(layer, x))
            draw(layer)


@strategies
def test_outputs_are_not_overwritten_by_later_calls(strategy: str) -> None:
    layer = make(Circulant(8, 8), strategy)
    x, _ = tokens_of(layer, 5)
    with torch.no_grad():
        first = layer(x)
        kept = first.clone()
        draw(layer)
        layer(x), layer(2 * x)
    assert torch.equal(first, kept)


@strategies
@squares
def test_a_call_leaves_its_input_alone_and_is_no_view_of_it(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 5)
    before, weight = x.clone(), layer.base.weight.clone()
    with torch.no_grad():
        layer(x).fill_(torch.nan)
    assert torch.equal(x, before)
    assert torch.equal(layer.base.weight, weight)
    assert not any(t.isnan().any() for t in layer.state_dict().values())


# Derivatives of higher order, torch.func, torch.compile


def call_with(layer: AdaptedLinear) -> Callable[..., Tensor]:
    """The layer as a function of x and of what is trained."""
    names = list(trained(layer))
    return lambda x, *values: functional_call(layer, dict(zip(names, values, strict=True)), (x,))


def leaves_of(layer: AdaptedLinear, tokens: int = 2) -> list[Tensor]:
    x, _ = tokens_of(layer, tokens)
    return [t.detach().clone().requires_grad_() for t in (x, *trained(layer).values())]


@strategies
@small_structures
def test_derivatives_of_first_and_second_order_are_right(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    assert gradcheck(call_with(layer), leaves_of(layer), check_batched_grad=True)
    assert gradgradcheck(call_with(layer), leaves_of(layer))


@strategies
@small_structures
def test_a_penalty_on_the_gradient_of_the_input_trains_the_update(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, parameters = tokens_of(layer, 3)[0].requires_grad_(), list(trained(layer).values())

    def penalty_gradients(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(call(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), parameters)

    wanted = penalty_gradients(lambda x: exact_output(layer, x))
    for a, b in zip(penalty_gradients(layer), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@strategies
@small_structures
def test_forward_mode_is_right_for_every_input(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    primals = [t.detach() for t in leaves_of(layer)]
    names = list(layer_tensors(layer))

    def exact(x: Tensor, *values: Tensor) -> Tensor:
        tensors = layer_tensors(layer) | dict(zip(trained(layer), values, strict=True))
        return exact_output(layer, x, tuple(tensors[name] for name in names))

    for moved in range(len(primals)):
        tangents = [torch.randn_like(t) if index == moved else torch.zeros_like(t) for index, t in enumerate(primals)]
        for a, b in zip(
            *(torch.func.jvp(f, tuple(primals), tuple(tangents)) for f in (call_with(layer), exact)), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad(), forward_ad.dual_level():
        y = layer(forward_ad.make_dual(primals[0], torch.ones_like(primals[0])))
        tangent = forward_ad.unpack_dual(y).tangent
    ones = torch.ones_like(primals[0])
    torch.testing.assert_close(tangent, exact_output(layer, ones).detach() - layer.base.bias, rtol=1e-10, atol=1e-10)


@strategies
@small_structures
def test_torch_func_gives_the_gradient_of_each_sample(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 5)
    parameters = {name: p.detach() for name, p in trained(layer).items()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, p in trained(layer).items():
        torch.testing.assert_close(per_sample[name].sum(0), p.grad, rtol=1e-10, atol=1e-10)
    jacobian = jacrev(call_with(layer), argnums=0)(x[0], *parameters.values())
    torch.testing.assert_close(jacobian, layer.merged_weight(), rtol=1e-10, atol=1e-10)


@strategies
@small_structures
def test_vmap_over_parameters_is_an_ensemble(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    x, _ = tokens_of(layer, 5)
    members = [{name: (p * factor).detach() for name, p in trained(layer).items()} for factor in (0.5, 1.0, 2.0)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    outputs = vmap(lambda member: functional_call(layer, member, (x,)))(stacked)
    for y, member in zip(outputs, members, strict=True):
        tensors = layer_tensors(layer) | member
        oracle.assert_close(y, exact_output(layer, x, tuple(tensors.values())))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@strategies
@small_structures
def test_layers_compile_whole_and_follow_their_parameters(structure: Structure, strategy: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    layer = make(structure, strategy)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: layer(x.sin()).cos(), fullgraph=True, dynamic=dynamic, backend=counter)
    for tokens in (5, 9, 17) if dynamic else (5, 5):
        x, g = tokens_of(layer, 2, tokens)
        got, wanted = (step(call, layer, x, g) for call in (compiled, lambda x: exact_output(layer, x.sin()).cos()))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            for p in trained(layer).values():
                p.mul_(1.1)
    assert counter.frame_count == 1


@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
def test_compiled_inference_and_compiled_autocast_take_the_same_layer(strategy: str) -> None:
    torch._dynamo.reset()
    layer = make(CirculantProduct(12, 12), strategy, torch.float32)
    x, g = tokens_of(layer, 5, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_step(layer, step(compiled, layer, x, g), exact_step(layer, x, g))
    with torch.no_grad():
        oracle.assert_close(compiled(x), exact_output(layer, x))
        draw(layer)
        oracle.assert_close(compiled(x), exact_output(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x)
    assert y.dtype == torch.bfloat16
    y.backward(g.bfloat16())
    assert all(p.grad.dtype == torch.float32 for p in trained(layer).values())


# Bases


class Quantised(nn.Module):
    """A linear layer of int8 weights, as quantisation libraries have them."""

    def __init__(self, linear: nn.Linear, name: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self._name = linear.in_features, linear.out_features, name
        self.step = linear.weight.detach().abs().max().item() / 127
        self.register_buffer(name, (linear.weight.detach() / self.step).round().to(torch.int8))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, getattr(self, self._name).to(x.dtype) * self.step, self.bias.to(x.dtype))


class Tripled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def _hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, arguments, output: 3 * output)
    return linear


def _pre_hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_pre_hook(lambda module, arguments: (3 * arguments[0],))
    return linear


def _parametrised(linear: nn.Linear) -> nn.Linear:
    class Threefold(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 3 * weight

    return parametrize.register_parametrization(linear, "weight", Threefold())


def _replaced(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda x: 3 * torch.nn.functional.linear(x, linear.weight, linear.bias)
    return linear


BASES = {
    "quantised": lambda linear: Quantised(linear, "weight"),
    "quantised, weight by another name": lambda linear: Quantised(linear, "qweight"),
    "of a subclass": lambda linear: Tripled(linear.in_features, linear.out_features, dtype=linear.weight.dtype),
    "with a hook": _hooked,
    "with a hook before": _pre_hooked,
    "parametrised": _parametrised,
    "with its forward replaced": _replaced,
    "in a sequence": lambda linear: nn.Sequential(linear, nn.Identity()),
}
bases = pytest.mark.parametrize("base_name", BASES)


@pytest.mark.parametrize("strategy", ["direct", "auto"])
@bases
def test_a_base_that_is_no_plain_linear_layer_is_called_as_it_is(base_name: str, strategy: str) -> None:
    base = BASES[base_name](nn.Linear(12, 8, dtype=torch.float64))
    structure = CirculantProduct(12, 8)
    layer = AdaptedLinear(base, structure, SCALE, strategy)
    draw(layer)
    for tokens in (1, 5000):
        assert layer.chosen(tokens) == "direct"
    x, g = tokens_of(layer, 2, 5)
    got = step(layer, layer, x, g)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *layer.structured_parameters())]
    y = base(leaves[0]) + SCALE * leaves[0] @ structure.dense(*leaves[1:]).T
    for a, b in zip(got, (y.detach(), *torch.autograd.grad(y, leaves, g)), strict=True):
        oracle.assert_close(a, b)
    with torch.inference_mode():
        oracle.assert_close(layer(x).clone(), y.detach())
    assert not any(p.requires_grad for p in base.parameters())


@bases
def test_a_base_that_is_no_plain_linear_layer_cannot_be_merged_and_the_error_says_so(base_name: str) -> None:
    linear = nn.Linear(12, 8)
    base = BASES[base_name](linear)
    with pytest.raises(ValueError, match=f"base.*torch.nn.Linear.*got.*{type(base).__name__}"):
        AdaptedLinear(base, CirculantProduct(12, 8), strategy="merged")
    layer = AdaptedLinear(base, CirculantProduct(12, 8))
    with pytest.raises(ValueError, match=f"base.*torch.nn.Linear.*got.*{type(base).__name__}"):
        layer.strategy = "merged"
    assert layer.strategy == "auto"


@strategies
def test_a_hook_that_comes_later_is_heard(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy)
    x, _ = tokens_of(layer, 5)
    layer(x)
    handle = layer.base.register_forward_hook(lambda module, arguments, output: output + 1)
    assert layer.chosen(5) == "direct"
    oracle.assert_close(layer(x).detach(), exact_output(layer, x).detach() + 1)
    handle.remove()
    assert layer.chosen(5) == strategy
    assert_follows(layer)


@strategies
def test_hooks_of_the_layer_itself_are_heard(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy)
    x, _ = tokens_of(layer, 5)
    layer.register_forward_hook(lambda module, arguments, output: output + 1)
    oracle.assert_close(layer(x).detach(), exact_output(layer, x).detach() + 1)


# The choice of a strategy


@squares
def test_auto_gives_bit_for_bit_what_the_strategy_it_chose_gives(structure: Structure) -> None:
    layer = make(structure, "auto", torch.float32)
    for tokens in (1, 33, 700):
        x, g = tokens_of(layer, tokens, dtype=torch.float32)
        layer.strategy = "auto"
        got = step(layer, layer, x, g)
        with torch.no_grad():
            inferred = layer(x)
        for gradients in (True, False):
            layer.strategy = "auto"
            layer.strategy = chosen = layer.chosen(tokens, gradients=gradients)
            assert chosen in ("direct", "merged")
            if gradients:
                assert all(map(torch.equal, got, step(layer, layer, x, g)))
            else:
                with torch.no_grad():
                    assert torch.equal(inferred, layer(x))


@pytest.mark.parametrize("prefers", [False, True])
def test_auto_follows_the_cost_model_and_the_others_do_not(prefers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prefers_merged(structure: Structure, tokens: int, dtype: torch.dtype, **needs: object) -> bool:
        asked.append((structure, tokens, dtype, needs["parameter_gradients"], needs["input_gradient"]))
        return prefers

    monkeypatch.setattr(cost_model, "prefers_merged", prefers_merged)
    structure = Circulant(96, 60)
    layer = make(structure, "auto", torch.float32)
    for gradients in (True, False):
        assert layer.chosen(100, gradients=gradients) == ("merged" if prefers else "direct")
        assert asked.pop() == (structure, 100, torch.float32, gradients, gradients)
    layer(torch.randn(2, 5, 96, requires_grad=True))
    assert asked.pop() == (structure, 10, torch.float32, True, True)
    layer(torch.randn(2, 5, 96))
    assert asked.pop() == (structure, 10, torch.float32, True, False)
    with torch.no_grad():
        layer(torch.randn(2, 5, 96, requires_grad=True))
    assert asked.pop() == (structure, 10, torch.float32, False, False)
    for strategy in ("direct", "merged"):
        layer.strategy = strategy
        assert layer.chosen(100) == strategy
    assert not asked


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
def test_auto_does_not_merge_a_16_bit_update_that_rounding_would_swallow(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "prefers_merged", lambda *arguments, **needs: True)
    layer = make(Circulant(96, 96), "auto", dtype)
    ratio = (layer.structure.dense(layer.c.detach().double()) * SCALE).norm() / layer.base.weight.double().norm()
    original = layer.c.detach().double() / ratio
    for size, chosen in ((1.0, "merged"), (0.3, "merged"), (1e-4, "direct"), (0.0, "direct"), (1.0, "merged")):
        layer.c.data.copy_(size * original)
        assert layer.chosen(1000) == chosen
        assert layer.chosen(1000, gradients=False) == chosen
    layer.c.data.copy_(1e-4 * original)
    assert layer.chosen(1000, torch.float32) == "merged"
    wide = AdaptedLinear(layer.base, layer.structure, SCALE, merge_dtype=torch.float32)
    wide.c.data.copy_(1e-4 * original)
    assert wide.chosen(1000) == "merged"


def test_a_bfloat16_update_far_below_the_weight_vanishes_when_merged_and_not_when_direct() -> None:
    layer = make(Circulant(96, 96), "merged", torch.bfloat16, bias=False)
    layer.c.data.mul_(1e-3)
    layer.base.weight.data.copy_(torch.empty(96, 96).uniform_(0.5, 1.0))  # each spaced by 2^-8, far above the update
    x, _ = tokens_of(layer, 4000, dtype=torch.bfloat16)
    update = SCALE * x.double() @ layer.structure.dense(layer.c.detach().double()).T

    def share_of_update(layer: AdaptedLinear) -> float:
        """How much of the update there is in the output on average, by least squares; 1 is all of it."""
        found = layer(x).detach().double() - x.double() @ layer.base.weight.double().T
        return float((found * update).sum() / update.square().sum())

    with torch.no_grad():
        assert torch.equal(layer(x), layer.base(x))
    assert abs(share_of_update(layer)) < 0.1
    layer.strategy = "direct"
    assert share_of_update(layer) == pytest.approx(1, abs=0.1)
    wide = AdaptedLinear(layer.base, layer.structure, SCALE, "merged", merge_dtype=torch.float32)
    wide.c.data.copy_(layer.c)
    assert share_of_update(wide) == pytest.approx(1, abs=0.1)


def test_merging_in_bfloat16_costs_no_more_than_one_rounding_of_the_weight() -> None:
    layer = make(Circulant(384, 384), "direct", torch.bfloat16)
    x, _ = tokens_of(layer, 500, dtype=torch.bfloat16)
    exact = exact_output(layer, x).detach()
    errors = {}
    for layer.strategy in ("direct", "merged"):
        errors[layer.strategy] = oracle.error(layer(x).detach(), exact)
    assert errors["merged"] <= 1.2 * errors["direct"]
    assert errors["merged"] <= 1.5 * oracle.error(exact.bfloat16(), exact)


# Memory


@strategies
@squares
def test_the_backward_keeps_the_input_and_the_parameters_and_nothing_else(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy, torch.float32)
    x, _ = tokens_of(layer, 2, 50, dtype=torch.float32)
    x.requires_grad_()
    layer(x)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = layer(x)
    assert y.requires_grad and saved
    kept = {t.data_ptr() for t in (x, layer.base.weight, *layer.structured_parameters())}
    assert {t.data_ptr() for t in saved} <= kept


@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
@squares
def test_states_copies_and_pickles_hold_no_merged_weight(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy, torch.float32)
    x, g = tokens_of(layer, 200, dtype=torch.float32)
    names, size = set(layer.state_dict()), len(pickle.dumps(layer))
    wanted = layer(x).detach()
    layer(x).backward(g)
    layer.zero_grad()
    constants = {"fingerprint"} if structure.constants else set()
    assert set(layer.state_dict()) == names == {"base.weight", "base.bias", *trained(layer), *constants}
    assert len(pickle.dumps(layer)) == size
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), wanted)
        assert other.strategy == strategy


@pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])
@small_structures
def test_a_copy_trains_apart_from_the_original(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    assert_follows(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = [p.detach().clone() for p in trained(layer).values()]
        _optimised(other)
        assert_follows(other)
        assert_follows(layer)
        assert all(map(torch.equal, trained(layer).values(), before))


@strategies
def test_refresh_frees_what_is_kept_and_the_layer_works_on(strategy: str) -> None:
    layer = make(CirculantProduct(12, 12), strategy)
    assert_follows(layer)
    layer.refresh()
    assert_follows(layer)


# Saving and loading, constants


def siva_layer(weight: Tensor, **options) -> AdaptedLinear:
    base = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    base.weight.data.copy_(weight)
    nn.init.zeros_(base.bias)
    layer = AdaptedLinear.siva(base, k=6, **options)
    layer.s.data.uniform_(-1, 1)
    return layer


def saved(layer: AdaptedLinear) -> dict[str, Tensor]:
    """The state, through a file; of the adapter alone, as those who share a base keep it."""
    file = io.BytesIO()
    torch.save({name: t for name, t in layer.state_dict().items() if not name.startswith("base.")}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@squares
def test_a_saved_adapter_gives_the_same_layer_on_the_same_base(structure: Structure) -> None:
    layer = make(structure)
    state = saved(layer)
    other = AdaptedLinear(copy.deepcopy(layer.base), structure, SCALE)
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    x, _ = tokens_of(layer, 5)
    oracle.assert_close(other(x).detach(), layer(x).detach())
    other.load_state_dict(layer.state_dict())


def test_a_siva_adapter_is_s_and_a_fingerprint_unless_its_bases_are_saved_too() -> None:
    weight = torch.randn(12, 16)
    assert {name: tuple(t.shape) for name, t in saved(siva_layer(weight)).items()} == {"s": (6,), "fingerprint": (64,)}
    state = saved(siva_layer(weight, save_constants=True))
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "U": (12, 6),
        "s": (6,),
        "V": (16, 6),
        "fingerprint": (64,),
    }


OTHER_BASES = {
    "another weight": lambda weight: torch.randn_like(weight),
    "the weight rounded to bfloat16": lambda weight: weight.bfloat16().to(weight.dtype),
    "a trained weight": lambda weight: weight + 0.01 * torch.randn_like(weight),
}


@pytest.mark.parametrize("other", OTHER_BASES)
def test_a_siva_adapter_is_refused_on_other_bases_and_nothing_is_loaded(other: str) -> None:
    weight = torch.randn(48, 64)
    state = saved(siva_layer(weight))
    layer = siva_layer(OTHER_BASES[other](weight))
    before = layer.s.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match="bases"):
        layer.load_state_dict(state, strict=False)
    assert torch.equal(layer.s, before)
    siva_layer(weight).load_state_dict(state, strict=False)


def test_a_siva_adapter_inside_a_model_is_refused_as_well() -> None:
    weight = torch.randn(48, 64)
    model = nn.Sequential(siva_layer(weight), nn.ReLU())
    other = nn.Sequential(siva_layer(torch.randn(48, 64)), nn.ReLU())
    with pytest.raises((RuntimeError, ValueError), match="bases"):
        other.load_state_dict(model.state_dict())


def test_saved_bases_are_loaded_over_those_of_the_base() -> None:
    weight = torch.randn(48, 64)
    layer = siva_layer(weight, save_constants=True)
    rounded = weight.bfloat16().float()
    other = siva_layer(rounded, save_constants=True)
    other.load_state_dict(saved(layer), strict=False)
    for name in ("U", "s", "V", "fingerprint"):
        assert torch.equal(getattr(other, name), getattr(layer, name))
    update, exact = (each.merged_weight() - each.base.weight for each in (other, layer))
    assert oracle.error(update, exact.double()) < 1e-6
    again = siva_layer(weight)
    again.load_state_dict(saved(other), strict=False)  # the fingerprint is that of the bases which were loaded


def test_a_bfloat16_layer_of_the_same_bases_loads_what_it_saved() -> None:
    weight = torch.randn(48, 64)
    layer = siva_layer(weight).bfloat16()
    other = siva_layer(weight).bfloat16()
    other.load_state_dict(saved(layer), strict=False)
    assert torch.equal(other.s, layer.s)


def test_constants_may_be_given_by_name() -> None:
    U, V = torch.linalg.qr(torch.randn(12, 4))[0], torch.linalg.qr(torch.randn(8, 4))[0]
    layer = AdaptedLinear(nn.Linear(8, 12), Siva(8, 12, 4), constants={"U": U, "V": V})
    assert torch.equal(layer.U, U) and torch.equal(layer.V, V)
    layer.s.data.fill_(2.0)
    torch.testing.assert_close(layer.merged_weight(), layer.base.weight + 2 * U @ V.T)


def test_siva_of_a_base_counts_by_perc_and_adds_nothing_at_the_start() -> None:
    base = nn.Linear(16, 12)
    layer = AdaptedLinear.siva(base, perc=0.5)
    assert 0 < layer.structure.k < 12
    assert layer.structure.basis == "bottom"
    x = torch.randn(3, 16)
    assert torch.equal(layer(x), base(x))
    assert [name for name, _ in layer.named_parameters()].count("s") == 1
    # U and V are singular vectors: the update is along those of the smallest singular values.
    layer.s.data.fill_(1.0)
    values = torch.linalg.svdvals(base.weight.double())
    raised = values.clone()
    raised[-layer.structure.k :] += 1
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.merged_weight().double()), raised.sort(descending=True)[0], rtol=1e-5, atol=1e-5
    )


# Manners of a module


def test_layers_move_convert_and_live_on_meta_as_modules_do() -> None:
    for structure in SMALL.values():
        layer = make(structure, "auto", torch.float32)
        x = torch.randn(3, layer.in_features)
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
        if not structure.constants:  # a weight without values has no singular vectors
            base = nn.Linear(layer.in_features, layer.out_features, device="meta")
            for strategy in ("auto", "direct", "merged"):
                empty = AdaptedLinear(base, structure, strategy=strategy)
                assert all(p.is_meta for p in empty.parameters())
                y = empty(x.to("meta"))
                assert y.is_meta and y.shape == (3, layer.out_features)
                real = empty.to_empty(device="cpu")
                real.base.reset_parameters()
                real.reset_parameters()
                assert real(x).shape == (3, layer.out_features)
                base = base.to("meta")


def test_repr_shows_structure_scale_strategy_and_base() -> None:
    text = repr(AdaptedLinear(nn.Linear(12, 8), Circulant(12, 8), 0.5, "direct"))
    for part in ("AdaptedLinear(", repr(Circulant(12, 8)), "scale=0.5", "direct", "(base): Linear(in_features=12"):
        assert part in text


def plain_base() -> nn.Linear:
    return nn.Linear(12, 8)


REFUSALS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "base is a tensor": (lambda: AdaptedLinear(torch.zeros(8, 12), Circulant(12, 8)), TypeError, "base must be"),
    "structure is none": (lambda: AdaptedLinear(plain_base(), None), TypeError, "structure must be"),
    "structure is a class": (lambda: AdaptedLinear(plain_base(), Circulant), TypeError, "structure must be"),
    "structure is transposed": (
        lambda: AdaptedLinear(plain_base(), Circulant(8, 12)),
        ValueError,
        "structure must.*12.*8.*got.*8.*12",
    ),
    "scale is a tensor": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), torch.ones(())),
        TypeError,
        "scale must be a real number, got Tensor",
    ),
    "scale is infinite": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), float("inf")),
        ValueError,
        "scale must be finite, got inf",
    ),
    "strategy is unknown": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), strategy="fast"),
        ValueError,
        "strategy must be one of auto, direct, merged, got 'fast'",
    ),
    "strategy is none": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), strategy=None),
        ValueError,
        "strategy must be one of auto, direct, merged, got None",
    ),
    "initialisation is unknown": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), initialisation="zeros"),
        ValueError,
        "must be one of layer, update, got 'zeros'",
    ),
    "merge_dtype is narrow": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), merge_dtype=torch.bfloat16),
        ValueError,
        "merge_dtype must be.*float32.*got.*bfloat16",
    ),
    "constants of the wrong size": (
        lambda: AdaptedLinear(plain_base(), Siva(12, 8, 3), constants=dict.fromkeys("UV", torch.zeros(8, 4))),
        ValueError,
        r"U must have shape.*\(8, 3\), got \(8, 4\)",
    ),
    "constants are missing": (
        lambda: AdaptedLinear(plain_base(), Siva(12, 8, 3), constants={"U": torch.zeros(8, 3)}),
        ValueError,
        "constants must.*V",
    ),
    "constants of a structure that has none": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8), constants={"c": torch.zeros(12)}),
        ValueError,
        "constants must.*c",
    ),
    "x is too wide": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8))(torch.zeros(3, 8)),
        ValueError,
        r"x must have shape \(\.\.\., 12\).*got \(3, 8\)",
    ),
    "x is a number": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8))(torch.zeros(())),
        ValueError,
        r"x must have shape \(\.\.\., 12\).*got \(\)",
    ),
    "x is an integer": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8))(torch.zeros(3, 12, dtype=torch.int64)),
        TypeError,
        "x must be float32, float64, bfloat16 or float16, got int64",
    ),
    "x is a list": (
        lambda: AdaptedLinear(plain_base(), Circulant(12, 8))([0.0] * 12),
        TypeError,
        "x must be a torch.Tensor, got list",
    ),
    "base of siva is quantised": (
        lambda: AdaptedLinear.siva(Quantised(plain_base(), "weight")),
        TypeError,
        "base must be a torch.nn.Linear, got Quantised",
    ),
    "perc of siva": (lambda: AdaptedLinear.siva(plain_base(), perc=1.5), ValueError, "perc must.*got 1.5"),
    "k of siva": (lambda: AdaptedLinear.siva(plain_base(), k=9), ValueError, "k must.*got 9"),
    "basis of siva": (lambda: AdaptedLinear.siva(plain_base(), basis="left"), ValueError, "basis must.*got 'left'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


@strategies
@dtypes
def test_tokens_of_another_type_than_the_weight_are_refused_as_torch_does(strategy: str, dtype: torch.dtype) -> None:
    layer = make(CirculantProduct(12, 8), strategy, torch.float32)
    x, _ = tokens_of(layer, 5, dtype=dtype)
    if dtype == torch.float32:
        assert layer(x).dtype == dtype
        return
    with pytest.raises(ValueError, match=f"x must be torch.float32 like base.weight, got {dtype}"):
        layer(x)
