"""AdaptedLinear: the map and gradients of both strategies, types, bases of all kinds, the choice, refusals."""

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surm_kernels import cost_model
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, CirculantProduct, Kronecker, Siva, Structure
from tests import oracle, updates
from tests.adapted import (
    SCALE,
    SMALL,
    STRATEGIES,
    assert_follows,
    assert_step,
    draw,
    dtypes,
    exact_output,
    exact_step,
    joined_steps,
    make,
    small_structures,
    squares,
    step,
    strategies,
    tokens_of,
    trained,
)
from tests.turns import in_turns

# The map and its gradients


@pytest.mark.parametrize(
    ("name", "strategy", "dtype"), in_turns(list(updates.STRUCTURES), STRATEGIES, updates.DTYPES), ids=str
)
def test_output_and_gradients_are_those_of_the_sum_of_both_matrices(
    name: str, strategy: str, dtype: torch.dtype, poisoned_memory: None
) -> None:
    structure = updates.STRUCTURES[name]
    # A single token may happen to cancel, as several roundings of 16 bits may happen to add.
    many = ((50, updates.draws(structure)),)
    for tokens, draws in many if dtype in oracle.SIXTEEN_BIT else ((1, 8), (17, 1), (300, 1)):
        layers = [make(structure, strategy, dtype) for _ in range(draws)]
        got, exact = joined_steps(layers, tokens, dtype)
        assert all(t.dtype == dtype for t in got)
        assert_step(layers[0], got, exact)


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


@pytest.mark.parametrize(
    ("name", "strategy", "dtype"), in_turns(list(updates.SQUARES), STRATEGIES, updates.DTYPES), ids=str
)
def test_frozen_layers_give_the_same_for_any_number_of_tokens(name: str, strategy: str, dtype: torch.dtype) -> None:
    structure = updates.SQUARES[name]
    # Several roundings add as they do on average only over many calls and layers.
    calls = 60 if dtype in oracle.SIXTEEN_BIT else 1
    layers = [make(structure, strategy, dtype).requires_grad_(False) for _ in range(4)]
    for tokens in (1, 5, 16, 17, 100, 3):
        inputs = [tokens_of(layer, -(-calls // tokens), tokens, dtype=dtype)[0] for layer in layers]
        exact = torch.cat([exact_output(layer, x) for layer, x in zip(layers, inputs, strict=True)])
        for context in (contextlib.nullcontext, torch.inference_mode):
            with context():
                outputs = [layer(call) for layer, x in zip(layers, inputs, strict=True) for call in x]
            assert not any(y.requires_grad for y in outputs)
            updates.assert_close(torch.stack(outputs), exact, updates.rounding_factor(structure))


@strategies
@squares
def test_a_weight_may_have_any_strides(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    transposed = layer.base.weight.detach().T.contiguous().T
    layer.base.weight = nn.Parameter(transposed, requires_grad=False)
    assert not layer.base.weight.is_contiguous()
    assert_follows(layer)
    oracle.assert_close(layer.merged_weight(), exact_output(layer, torch.eye(96)).detach().T - layer.base.bias[:, None])


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
    factor = updates.rounding_factor(structure, strategy == "merged")
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


@pytest.mark.parametrize(
    ("name", "strategy", "dtype"), in_turns(list(updates.SQUARES), STRATEGIES, oracle.SIXTEEN_BIT), ids=str
)
def test_wide_parameters_on_a_16_bit_weight_get_wide_gradients(name: str, strategy: str, dtype: torch.dtype) -> None:
    structure = updates.SQUARES[name]
    steps = []
    for _ in range(updates.draws(structure)):
        layer = make(structure, strategy, dtype)
        for p in trained(layer).values():
            p.data = p.data.float()
        draw(layer)
        x, g = tokens_of(layer, 50, dtype=dtype)
        got = step(layer, layer, x, g)
        # They are rounded to the tokens' type on their way in, as under autocast.
        for p in trained(layer).values():
            p.data = p.data.to(dtype)
        steps.append((got, exact_step(layer, x, g)))
    factor, names = (
        updates.rounding_factor(structure, strategy == "merged"),
        ("output", "gradient of x", *trained(layer)),
    )
    for tensor, *pairs in zip(names, *(zip(*each, strict=True) for each in steps), strict=True):
        found, exact = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        assert found.dtype == (torch.float32 if tensor in trained(layer) else dtype)
        rounding = oracle.error(exact.to(dtype), exact)
        assert oracle.error(found, exact) <= factor * rounding + oracle.FLOAT32_TOLERANCE, tensor


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=str)
def test_merging_in_float32_rounds_16_bit_layers_once(dtype: torch.dtype) -> None:
    layer = make(CirculantProduct(96, 60), "merged", dtype, merge_dtype=torch.float32)
    x, g = tokens_of(layer, 300, dtype=dtype)
    got, exact = step(layer, layer, x, g), exact_step(layer, x, g)
    for a, b in zip(got[:2], exact[:2], strict=True):
        assert a.dtype == dtype
        oracle.assert_close(a, b)


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
    layer = make(structure, "auto", torch.float32).eval()
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
        layer.eval()(torch.randn(2, 5, 96, requires_grad=True))
    assert asked.pop() == (structure, 10, torch.float32, False, False)
    for strategy in ("direct", "merged"):
        layer.strategy = strategy
        assert layer.chosen(100) == strategy
    assert not asked


def test_auto_knows_that_a_compiled_call_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prefers_merged(*arguments: object, parameter_gradients: bool, **needs: object) -> bool:
        asked.append(parameter_gradients)
        return False

    monkeypatch.setattr(cost_model, "prefers_merged", prefers_merged)
    torch._dynamo.reset()
    layer = make(Circulant(12, 12), "auto", torch.float32).eval()
    x, _ = tokens_of(layer, 5, dtype=torch.float32)
    with torch.no_grad():
        oracle.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), exact_output(layer, x))
    assert asked and all(asked)


def test_merging_in_bfloat16_costs_one_rounding_more_and_in_training_one_of_chance() -> None:
    layer = make(Circulant(384, 384), "direct", torch.bfloat16)
    x, _ = tokens_of(layer, 500, dtype=torch.bfloat16)
    exact = exact_output(layer, x).detach()
    rounding, errors = oracle.error(exact.bfloat16(), exact), []
    for strategy, training in (("direct", False), ("merged", False), ("merged", True)):
        layer.strategy = strategy
        with torch.no_grad():
            errors.append(oracle.error(layer.train(training)(x), exact) / rounding)
    assert errors[0] < errors[1] <= 1.5 < errors[2] <= 1.8


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
        "structure must have the in_features of base, 12, got 8",
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
        "must be one of layer, paper, got 'zeros'",
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
