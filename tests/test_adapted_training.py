"""AdaptedLinear in training: it follows every change, in every graph, and torch differentiates and transforms it."""

import contextlib
import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, CirculantProduct, Hydra, Siva, Structure, Toeplitz
from tests import oracle, updates
from tests.adapted import (
    SCALE,
    SMALL,
    STRATEGIES,
    assert_follows,
    assert_step,
    draw,
    exact_output,
    exact_step,
    layer_tensors,
    make,
    optimise,
    small_structures,
    squares,
    step,
    strategies,
    tokens_of,
    trained,
)
from tests.turns import in_turns

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
    _other_parameters, _loaded, _assigned, optimise, _adam, _reset, _another_scale, _weight_in_place,
    _weight_through_data, _one_entry_of_the_weight, _other_weight, _weight_of_other_data, _other_base, _other_bias,
    _there_and_back,
]  # fmt: skip
CONTEXTS = {"recording": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


CHANGED = (CirculantProduct(12, 12), Toeplitz(12, 8), Siva(12, 8, 3), Hydra(8, 12))


@pytest.mark.parametrize(
    ("change", "strategy", "structure", "context"),
    in_turns(CHANGES, ("direct", "merged", "auto"), CHANGED, tuple(CONTEXTS)),
    ids=lambda value: value.__name__.removeprefix("_") if callable(value) else str(value).partition("(")[0],
)
def test_layers_follow_every_change_however_it_is_made(
    change: Callable, strategy: str, structure: Structure, context: str
) -> None:
    layer = make(structure, strategy)
    inputs = [tokens_of(layer, tokens)[0] for tokens in (3, 40)]  # few tokens have ways of their own
    with CONTEXTS[context]():
        for x in inputs:
            layer(x), layer(x)
    before = [exact_output(layer, x).detach() for x in inputs]
    change(layer)
    for x, unchanged in zip(inputs, before, strict=True):
        exact = exact_output(layer, x).detach()
        assert not torch.equal(exact, unchanged)
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


@strategies
@squares
def test_every_structure_is_checkpointed_accumulated_and_differentiated_twice(
    structure: Structure, strategy: str
) -> None:
    layer = make(structure, strategy)
    x, g = tokens_of(layer, 7)
    wanted = exact_step(layer, x, g)
    for _ in range(2):  # gradients add up, so the second round has twice those of one
        checkpoint(layer, x.requires_grad_(), use_reentrant=False).backward(g)
    for leaf, gradient in zip((x, *trained(layer).values()), wanted[1:], strict=True):
        oracle.assert_close(leaf.grad / 2, gradient)

    leaves = [x, *trained(layer).values()]
    exact = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    others = dict(zip(trained(layer), exact[1:], strict=True))
    twice = []
    for inputs, output in (
        (leaves, layer(x)),
        (exact, exact_output(layer, exact[0], tuple((layer_tensors(layer) | others).values()))),
    ):
        first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
        twice.append(torch.autograd.grad(sum(t.square().sum() for t in first), inputs))
    for got, second in zip(*twice, strict=True):
        torch.testing.assert_close(got, second, rtol=1e-8, atol=1e-8 * float(second.abs().max()))


@pytest.mark.parametrize(("name", "strategy"), list(zip(updates.SQUARES, itertools.cycle(STRATEGIES), strict=False)))
def test_every_structure_compiles_whole(name: str, strategy: str) -> None:
    torch._dynamo.reset()
    structure = updates.SQUARES[name]
    layer = make(structure, strategy)
    x, g = tokens_of(layer, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_step(layer, step(compiled, layer, x, g), exact_step(layer, x, g))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_layer_without_bias_compiles_whole(strategy: str) -> None:
    torch._dynamo.reset()
    layer = make(CirculantProduct(12, 8), strategy, bias=False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, g = tokens_of(layer, 7)
    assert_step(layer, step(compiled, layer, x, g), exact_step(layer, x, g))


@pytest.mark.parametrize(("name", "strategy", "dynamic"), in_turns(list(SMALL), STRATEGIES, (False, True)))
def test_layers_compile_whole_and_follow_their_parameters(name: str, strategy: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    structure = SMALL[name]
    layer = make(structure, strategy)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: layer(x.sin()).cos(), fullgraph=True, dynamic=dynamic, backend=counter)
    compilations = set()
    for tokens in (7, 11, 13) if dynamic else (7, 7):  # sizes of which no two are alike
        x, g = tokens_of(layer, 9, tokens)
        got, wanted = (step(call, layer, x, g) for call in (compiled, lambda x: exact_output(layer, x.sin()).cos()))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        compilations.add(counter.frame_count)
        with torch.no_grad():
            for p in trained(layer).values():
                p.mul_(1.1)
    assert len(compilations) == 1, "neither other sizes nor other values must compile again"


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
