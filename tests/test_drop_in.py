"""What code written for torch.nn.Linear does with a layer: names, attributes, in-place changes, devices, tracers."""

import contextlib
import copy
import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from surm_kernels import convert, cost_model, functional, siva
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, CirculantProduct, LowRank, Siva, Structure, ToeplitzLike
from tests import oracle, updates
from tests.adapted import draw, exact_output, make, tokens_of
from tests.test_nn import layer_cases
from tests.test_nn import make as make_structured

both = pytest.mark.parametrize("strategy", ["direct", "merged", "auto"])

# In place


@layer_cases
def test_the_output_of_a_structured_layer_may_be_changed_in_place(name: str) -> None:
    layer = make_structured(name, dtype=torch.float64)
    for leading in ((3,), (2, 3)):
        x = torch.randn(*leading, layer.in_features, dtype=torch.float64)
        _assert_changes_in_place(layer, layer.to_linear(), x)


@pytest.mark.parametrize("structure", updates.SQUARES.values(), ids=updates.SQUARES.keys())
@pytest.mark.parametrize("strategy", ["direct", "merged"])
def test_the_output_of_an_adapted_layer_may_be_changed_in_place(structure: Structure, strategy: str) -> None:
    layer = make(structure, strategy)
    for leading in ((3,), (2, 3), (40,)):
        _assert_changes_in_place(layer, layer.to_linear(), tokens_of(layer, *leading)[0])


def _assert_changes_in_place(layer: nn.Module, linear: nn.Linear, x: Tensor) -> None:
    """Where it is recorded, and where it was not but what changes it is."""
    shift = torch.full((), 0.5, dtype=x.dtype, requires_grad=True)
    results = []
    for module in (layer, linear):
        tokens = x.clone().requires_grad_()
        y = module(tokens).add_(shift).relu_()
        with torch.no_grad():
            unrecorded = module(tokens.flatten(0, -2))  # that of torch.nn.Linear is a view where x has more dimensions
        z = unrecorded.add_(shift).relu_()
        results.append([y, z, *torch.autograd.grad(y.square().sum() + z.sum(), [tokens, shift])])
    for got, exact in zip(*results, strict=True):
        oracle.assert_close(got.detach(), exact.detach())


@both
def test_a_compiled_output_may_be_changed_in_place(strategy: str) -> None:
    torch._dynamo.reset()
    layer = make(ToeplitzLike(12, 8, 2), strategy)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    x, _ = tokens_of(layer, 2, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    oracle.assert_close(compiled(x).detach(), exact_output(layer, x).detach().relu())


# Compiled


# One of every primitive.
@pytest.mark.parametrize(
    "name", ["circulant", "toeplitz", "toeplitz-like", "vandermonde", "kronecker", "low rank", "siva"]
)
def test_compiled_layers_take_tokens_of_any_rank(name: str) -> None:
    torch._dynamo.reset()
    layer = make_structured(name)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for leading in ((4,), (2, 3), ()):
        x = torch.randn(*leading, layer.in_features)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("product", [functional.toeplitz_linear, functional.hankel_linear])
def test_compiled_products_whose_sizes_are_symbols_take_a_base(product: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    values, base = torch.randn(47), torch.randn(24)
    compiled = torch.compile(product, fullgraph=True, backend="eager")
    for leading in ((4,), (2, 3)):  # after the second 24 is a symbol, and so is the size of the output
        x = torch.randn(*leading, 24)
        torch.testing.assert_close(compiled(x, values, base=base), product(x, values, base=base))


# Weight and bias


def assert_as_with_merged_weights(model: nn.Module, call: Callable[[nn.Module], Tensor]) -> None:
    """A model with adapted layers is the plain one with W0 + scale W in their places, gradients of the updates too."""
    plain, layers = copy.deepcopy(model), dict(_adapted(model))
    for name in layers:
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, plain.get_submodule(name).base)
    weights = {
        f"{name}.weight": layer.base.weight + layer.scale * layer.structure.dense(*layer.structured_parameters())
        for name, layer in layers.items()
    }
    updates = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    with torch.random.fork_rng():
        got = call(model)
    wanted = call(_Call(plain, weights))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    if got.requires_grad:
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), updates) for y in (got, wanted)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear))


class _Call:
    """A module called with some of its parameters replaced."""

    def __init__(self, module: nn.Module, parameters: dict[str, Tensor]) -> None:
        self.module, self.parameters = module, parameters

    def __call__(self, *arguments: Tensor, **named: Any) -> Any:
        return torch.func.functional_call(self.module, self.parameters, arguments, named)


def adapt(model: nn.Module, *names: str) -> None:
    """Puts an update on linear layers of a model."""
    for name in names:
        parent, _, last = name.rpartition(".")
        base = model.get_submodule(name)
        layer = AdaptedLinear(base, LowRank(base.in_features, base.out_features, 2), 0.5)
        draw(layer)
        setattr(model.get_submodule(parent), last, layer)


@pytest.mark.parametrize("training", [True, False])
def test_the_projection_of_attention_may_be_adapted(training: bool) -> None:
    model = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64).train(training)
    adapt(model, "out_proj")
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        assert_as_with_merged_weights(model, lambda model: model(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("training", [True, False])
def test_linear_layers_of_a_transformer_may_be_adapted(training: bool) -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, dtype=torch.float64).train(training)
    adapt(model, "linear1", "linear2", "self_attn.out_proj")
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.set_grad_enabled(training):  # else its fast path, which takes weights and leaves layers out
        assert_as_with_merged_weights(model, lambda model: model(x))


def test_the_feed_forward_layers_of_t5_may_be_adapted() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    model = transformers.T5EncoderModel(config)
    adapt(model, *(name for name, _ in model.named_modules() if name.endswith((".wi", ".wo", ".q"))))
    tokens = torch.arange(10).reshape(2, 5)
    assert_as_with_merged_weights(model, lambda model: model(input_ids=tokens).last_hidden_state)


@both
def test_the_weight_is_the_merged_one_and_a_tensor_of_its_own(strategy: str) -> None:
    layer = make(CirculantProduct(12, 8), strategy).eval()
    x, _ = tokens_of(layer, 40)
    for _ in range(2):
        exact = exact_output(layer, torch.eye(12)).detach().T - layer.bias[:, None]
        with torch.no_grad():
            for _ in range(2):
                layer(x)
                oracle.assert_close(layer.weight, exact)
                layer.weight.zero_()
            oracle.assert_close(layer(x), exact_output(layer, x).detach())
        draw(layer)
    assert layer.bias is layer.base.bias
    g = torch.randn(8, 12, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(layer.weight, [layer.r1, layer.r2], g),
        torch.autograd.grad(0.7 * layer.structure.dense(layer.r1, layer.r2), [layer.r1, layer.r2], g),
        strict=True,
    ):
        oracle.assert_close(a, b)


def test_the_weight_cannot_be_set_and_bases_of_another_kind_have_none() -> None:
    for layer in (make(Circulant(12, 8)), make_structured("circulant")):
        for value in (nn.Parameter(torch.zeros(8, 12)), torch.zeros(8, 12), None):
            with pytest.raises((AttributeError, KeyError), match="weight"):
                layer.weight = value
    assert not hasattr(AdaptedLinear(nn.Sequential(nn.Linear(12, 8)), Circulant(12, 8)), "weight")


@layer_cases
def test_the_weight_of_a_structured_layer_is_its_matrix(name: str) -> None:
    layer = make_structured(name)
    assert torch.equal(layer.weight, layer.to_linear().weight)
    assert layer.weight.requires_grad


# Tracers


def _by_jit(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(layer, x)


def _by_make_fx(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return make_fx(layer, tracing_mode="real")(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [_by_jit, _by_make_fx])
@pytest.mark.parametrize("structure", [Circulant(12, 12), Siva(12, 8, 3)], ids=repr)
@both
def test_what_is_traced_after_a_call_follows_the_parameters(
    strategy: str, structure: Structure, trace: Callable[..., Callable[[Tensor], Tensor]]
) -> None:
    layer = make(structure, strategy).eval()
    x, _ = tokens_of(layer, 3)
    with torch.no_grad():
        layer(x)
        traced = trace(layer, x)
        draw(layer)
        oracle.assert_close(traced(x), exact_output(layer, x).detach())
        oracle.assert_close(layer(x), exact_output(layer, x).detach())


def test_layers_are_built_and_called_without_values() -> None:
    real, tokens = make_structured("cauchy-like"), torch.randn(3, 12)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(tokens)
        assert real(x).shape == (3, 8)
        layer = AdaptedLinear.siva(nn.Linear(12, 8), k=3)
        assert layer(x).shape == (3, 8)
        for strategy in ("merged", "direct", "auto"):
            layer = AdaptedLinear(nn.Linear(12, 8), Circulant(12, 8), strategy=strategy)
            assert layer(x).shape == (3, 8)
            assert layer.weight.shape == (8, 12)
    oracle.assert_close(real(tokens).detach(), real.to_linear()(tokens).detach().double())
    with pytest.raises(ValueError, match="k must be given where the weight has no values"):
        AdaptedLinear.siva(nn.Linear(12, 8, device="meta"))


# Devices and types


@contextlib.contextmanager
def other_defaults(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def _results(make_structure: Callable[[int, int], Structure], parameters: tuple[Tensor, ...]) -> list[Tensor]:
    """Of everything that a structure and its layers compute."""
    structure, (m, n) = make_structure(60, 60), (60, 60)
    base = nn.Linear(n, m, device="cpu", dtype=torch.bfloat16)
    numbers = torch.linspace(-1, 1, m * n, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        base.weight.copy_(numbers.view(m, n).sin())
        base.bias.zero_()
    layer = AdaptedLinear(base, structure)
    results = [*layer.buffers()]
    for parameter, value in zip(layer.structured_parameters(), parameters, strict=True):
        parameter.data.copy_(value)
    for dtype in (torch.bfloat16, torch.float32):
        layer = layer.to(dtype)
        x = numbers[: 3 * n].view(3, n).to(dtype).requires_grad_()
        for strategy in ("auto", "direct", "merged"):
            layer.strategy = strategy
            y = layer(x)
            results += [y, *torch.autograd.grad(y.sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])]
        results += [layer.weight, structure.dense(*layer.structured_parameters())]
    with contextlib.suppress(NotImplementedError):
        results += structure.nearest(layer.base.weight.detach())
    return results


@pytest.mark.parametrize("name", updates.FAMILIES | updates.GRIDS)
def test_nothing_depends_on_the_default_device_or_type(name: str) -> None:
    make_structure = (updates.FAMILIES | updates.GRIDS)[name]
    parameters = updates.parameters_of(make_structure(60, 60))
    wanted = _results(make_structure, parameters)
    for dtype in (torch.float64, torch.bfloat16):
        with other_defaults(dtype):
            found = _results(make_structure, parameters)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype and a.device == b.device
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_the_bases_of_siva_are_those_of_the_weight_whatever_the_defaults() -> None:
    for basis in ("bottom", "random"):
        weight = torch.randn(12, 16)
        wanted = siva.bases(weight, perc=0.5, basis=basis)
        for dtype in (torch.float64, torch.bfloat16):
            with other_defaults(dtype):
                found = siva.bases(weight, perc=0.5, basis=basis)
            assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("save_constants", [True, False])
def test_a_layer_that_was_built_without_values_gets_them_from_a_state(save_constants: bool) -> None:
    layer = AdaptedLinear.siva(nn.Linear(16, 12), k=4, save_constants=save_constants)
    draw(layer)
    state = layer.state_dict()
    states = [state, {**state, "U": layer.U, "V": layer.V}]
    for state in states:
        with torch.device("meta"):
            empty = AdaptedLinear.siva(nn.Linear(16, 12), k=4, save_constants=save_constants)
        assert empty.U.is_meta
        empty.load_state_dict(copy.deepcopy(state), assign=True)
        x = torch.randn(3, 16)
        oracle.assert_close(empty(x).detach(), exact_output(layer, x).detach())
        assert torch.equal(empty.fingerprint, layer.fingerprint)


def test_a_weight_that_is_loaded_after_its_update_gives_the_constants() -> None:
    layer, other = (AdaptedLinear.siva(nn.Linear(16, 12), k=4) for _ in range(2))
    draw(layer)
    base = {name: t for name, t in layer.state_dict().items() if name.startswith("base.")}
    update = {name: t for name, t in layer.state_dict().items() if name not in base}
    with torch.device("meta"):
        empty = AdaptedLinear.siva(nn.Linear(16, 12), k=4)
    empty.load_state_dict(update, strict=False, assign=True)
    with pytest.raises(RuntimeError, match="another U and V"):
        empty.load_state_dict({"base.weight": other.base.weight}, strict=False, assign=True)
    empty.load_state_dict(base, strict=False, assign=True)
    x = torch.randn(3, 16)
    oracle.assert_close(empty(x).detach(), exact_output(layer, x).detach())


def test_given_constants_become_tensors_of_their_own() -> None:
    both = torch.randn(4, 28).T
    layer = AdaptedLinear(nn.Linear(16, 12), Siva(16, 12, 4), constants={"U": both[:12], "V": both[12:]})
    assert layer.U.is_contiguous() and layer.V.is_contiguous()
    assert layer.U.untyped_storage().nbytes() == layer.U.nbytes
    both.zero_()
    assert layer.U.any() and layer.V.any()


# Tensors of other kinds, names


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tokens_of_other_kinds_are_refused_by_name() -> None:
    x = torch.randn(3, 12)
    others = {
        "sparse_csr": x.to_sparse_csr(),
        "sparse_coo": x.to_sparse(),
        "mkldnn": x.to_mkldnn(),
        "nested": torch.nested.nested_tensor([x, x[:2]]),
        "nested, jagged": torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
    }
    layers = [make_structured("circulant"), make_structured("vandermonde"), make_structured("siva")]
    layers += [make(Circulant(12, 12), strategy, torch.float32) for strategy in ("direct", "merged", "auto")]
    for name, tokens in others.items():
        for layer in layers:
            with pytest.raises(TypeError, match=f"x must be a dense tensor, got one that is {name.partition(',')[0]}"):
                layer(tokens)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sparse_weight_is_called_as_it_is() -> None:
    layer = make(Circulant(12, 8), "auto", torch.float32)
    x, _ = tokens_of(layer, 5, dtype=torch.float32)
    exact = exact_output(layer, x).detach()
    layer.base.weight = nn.Parameter(layer.base.weight.detach().to_sparse_csr(), requires_grad=False)
    assert layer.chosen(5000) == "direct"
    for _ in range(2):
        oracle.assert_close(layer(x).detach(), exact)
    with pytest.raises(ValueError, match="strategy must be direct or auto"):
        layer.strategy = "merged"


def test_tokens_go_by_the_name_that_torch_has() -> None:
    x = torch.randn(3, 12)
    for layer in (make_structured("circulant"), AdaptedLinear(nn.Linear(12, 8), Circulant(12, 8))):
        assert torch.equal(layer(input=x), layer(x))


@layer_cases
def test_messages_name_the_parameters_of_the_layer(name: str) -> None:
    layer = make_structured(name)
    names = set(layer.structure.parameter_shapes())
    with pytest.raises(ValueError) as caught:
        layer(torch.zeros(3, 99))
    message = str(caught.value)
    assert "x must have shape" in message
    spoken = re.findall(r"(?:with|and) (\w+) of shape", message)
    assert set(spoken) <= names


# Memory, checkpoints


def test_the_memory_of_a_weight_that_is_moved_away_is_given_back() -> None:
    layer = make(Siva(53, 71, 7), "merged", torch.float32).eval()
    x, g = tokens_of(layer, 5, dtype=torch.float32)
    layer(x.requires_grad_()).backward(g)
    with torch.no_grad():
        layer(x)
        layer.chosen(5, torch.bfloat16)
    state = layer.base.weight.detach().to("meta")
    layer.base.weight = nn.Parameter(state, requires_grad=False)  # as hooks do that make room
    gc.collect()
    large = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.shape == (71, 53) and t.is_cpu]
    assert large == []


def test_a_row_or_a_column_that_is_written_through_another_view_is_seen_in_a_weight_of_this_size() -> None:
    layer = make(Circulant(60, 60), "merged").eval()
    x, _ = tokens_of(layer, 3)
    view = layer.base.weight.numpy()
    with torch.no_grad():
        for index in range(60):
            for part in (view[index], view[:, index]):
                layer(x)
                part += 1
                oracle.assert_close(layer(x), exact_output(layer, x).detach())


def test_the_first_pass_of_a_checkpoint_knows_that_parameters_will_change(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prefers_merged(*arguments: object, parameter_gradients: bool, input_gradient: bool, **needs: object) -> bool:
        asked.append((parameter_gradients, input_gradient))
        return False

    monkeypatch.setattr(cost_model, "prefers_merged", prefers_merged)
    layer = make(ToeplitzLike(12, 12, 2), "auto")
    x, g = tokens_of(layer, 3)
    checkpoint(layer, x.requires_grad_(), use_reentrant=True).backward(g)
    assert asked == [(True, True)]  # once for both passes
    with torch.no_grad():
        layer.eval()(x)
    assert asked[1:] == [(False, False)]


# Checkpoints of the plain model


def _model(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 12, **options), nn.BatchNorm1d(12), nn.Linear(12, 12, **options))


def test_the_checkpoint_of_a_plain_model_is_loaded_into_the_adapted_one_and_given_back() -> None:
    plain, model = _model(), _model()
    x = torch.randn(5, 16)
    model[0] = AdaptedLinear.siva(model[0], k=4)
    model[2] = AdaptedLinear(model[2], Circulant(12, 12))
    report = convert.load_plain_state_dict(model, plain.state_dict())
    assert set(report.loaded) == set(plain.state_dict())
    assert set(report.kept) == {"0.s", "0.fingerprint", "2.c"}
    assert report.prepared == ("0",)
    torch.testing.assert_close(model(x), plain(x))
    U, V = siva.bases(plain[0].weight, k=4)
    assert torch.equal(model[0].U, U) and torch.equal(model[0].V, V)
    back = convert.plain_state_dict(model)
    assert list(back) == list(plain.state_dict())
    draw(model[0]), draw(model[2])
    plain.load_state_dict(convert.plain_state_dict(model, merged=True))
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    assert convert.load_plain_state_dict(model, back).prepared == ()  # the weights that it has
    with pytest.raises(ValueError, match="another weight for 0 than its update was trained on"):
        convert.load_plain_state_dict(model, _model().state_dict())
    layer = make(Circulant(12, 12))
    assert set(convert.plain_state_dict(layer)) == {"weight", "bias"}


def test_a_checkpoint_that_does_not_fit_is_refused_with_all_that_is_wrong_and_nothing_is_loaded() -> None:
    model = _model()
    model[2] = AdaptedLinear(model[2], Circulant(12, 12))
    state = _model().state_dict()
    state["other.weight"] = state.pop("0.weight")
    state["2.weight"] = torch.zeros(12, 16)
    before = copy.deepcopy(model.state_dict())
    match = r"missing: 0.weight; unknown: other.weight; of another shape: 2.weight \(12, 16\), wanted \(12, 12\)"
    with pytest.raises(ValueError, match=match):
        convert.load_plain_state_dict(model, state)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
