"""Merging adapters into the weights: rounded once, undone bit for bit, all layers or none, and what came of it told."""

import copy
import gc
import warnings
from collections.abc import Iterator

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from surm_kernels.peft.layer import StructuredLinear
from tests.peft.models import METHODS, config_of, each_method, model_of, output_of

each_merging = pytest.mark.parametrize("unload", [False, True], ids=["merge_adapter", "merge_and_unload"])
ignore_doubled = pytest.mark.filterwarnings("ignore:Already following adapters were merged")
ignore_unmerging = pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged")


def adapted_of(method: str, name: str, dtype: torch.dtype = torch.float32, **options: object) -> PeftModel:
    """With an update that shows."""
    config = config_of(method, name, init_weights=False, **{"alpha": 20.0, **options})
    return get_peft_model(model_of(name).to(dtype), config)


def weights_of(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the weights of the layers that are adapted."""
    return {path: layer.get_base_layer().weight.detach().clone() for path, layer in model.base_model.adapted_layers()}


def updates_of(model: PeftModel, *adapter_names: str) -> dict[str, Tensor]:
    """The sum of some adapters' updates, by layer."""
    return {
        path: sum(layer.get_delta_weight(name) for name in adapter_names)
        for path, layer in model.base_model.adapted_layers()
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for path, weight in found.items():
        assert torch.equal(weight.nan_to_num(7.0), wanted[path].nan_to_num(7.0)), path


# Rounding


@ignore_doubled
@each_method
@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_merged_weights_are_the_sum_rounded_once(method: str, name: str, dtype: torch.dtype) -> None:
    model = adapted_of(method, name, dtype)
    model.add_adapter("two", config_of(method, name, init_weights=False, alpha=30.0))
    before, updates = weights_of(model), updates_of(model, "default", "two")
    exact = {path: weight.to(updates[path].dtype) + updates[path] for path, weight in before.items()}
    for turns in ([["default", "two"]], [["default"], ["two"]]):
        for names in turns:
            model.merge_adapter(names)
        found = weights_of(model)
        for path, weight in found.items():
            assert weight.dtype is dtype and not torch.equal(weight, before[path])
            if dtype.itemsize == 2:
                assert torch.equal(weight, exact[path].to(dtype)), path
            else:
                torch.testing.assert_close(weight, exact[path])
        model.unmerge_adapter()
        assert_same(weights_of(model), before)


@each_method
@each_merging
def test_what_rounding_removed_is_told(method: str, unload: bool) -> None:
    model = adapted_of(method, "mlp", torch.bfloat16, alpha=0.1)
    before, updates = weights_of(model), updates_of(model, "default")
    shares = {}
    for path, weight in before.items():
        exact = weight.float() + updates[path]
        shares[path] = ((exact.bfloat16().float() - exact).norm() / updates[path].norm()).item()
    with pytest.warns(UserWarning, match=r"rounded away .* in the median layer and .* the worst"):
        model.merge_and_unload() if unload else model.merge_adapter()
    assert max(shares.values()) > 0.1
    assert model.base_model.rounding == pytest.approx(shares)


@each_method
def test_nothing_is_told_where_rounding_removed_next_to_nothing(method: str) -> None:
    model = adapted_of(method, "mlp")
    assert model.base_model.rounding is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_adapter()
    assert model.base_model.rounding == {}


def test_a_layer_that_is_merged_no_more_is_not_in_the_report() -> None:
    model = adapted_of("surm", "mlp", torch.float16)
    model.add_adapter("two", config_of("surm", "mlp", target_modules=["second"], init_weights=False, alpha=20.0))
    model.merge_adapter()
    assert set(model.base_model.rounding) == {"first", "second"}
    model.unmerge_adapter()
    model.merge_adapter(["two"])
    assert set(model.base_model.rounding) == {"second"}


# There and back


@each_method
@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float32), ("gpt2", torch.bfloat16)])
def test_ten_rounds_leave_no_trace_and_the_parameters_are_the_same_objects(
    method: str, name: str, dtype: torch.dtype
) -> None:
    model = adapted_of(method, name, dtype)
    before, wanted = weights_of(model), output_of(name, model)
    parameters = dict(model.named_parameters())
    optimiser = torch.optim.Adam(parameters.values(), 0.1)
    output_of(name, model).square().mean().backward()
    for _ in range(10):
        model.merge_adapter()
        merged = weights_of(model)
        assert all(not torch.equal(merged[path], weight) for path, weight in before.items())
        assert all(layer.get_base_layer().weight.is_contiguous() for _, layer in model.base_model.adapted_layers())
        model.unmerge_adapter()
        assert_same(weights_of(model), before)
    assert torch.equal(output_of(name, model), wanted)
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    optimiser.step()
    assert {id(parameter) for parameter in optimiser.state} == {
        id(parameter) for parameter in parameters.values() if parameter.requires_grad
    }


@each_method
@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2", "opt"])
def test_merged_and_unloaded_models_compute_the_same(method: str, name: str) -> None:
    model = adapted_of(method, name)
    wanted = output_of(name, model)
    assert not torch.allclose(wanted, output_of(name, model_of(name)), atol=1e-4)
    model.merge_adapter()
    merged = weights_of(model)
    torch.testing.assert_close(output_of(name, model), wanted, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    torch.testing.assert_close(output_of(name, plain), wanted, rtol=1e-4, atol=1e-5)
    assert_same({path: plain.get_submodule(path).weight.detach() for path in merged}, merged)
    assert plain.state_dict().keys() == model_of(name).state_dict().keys()


@each_method
def test_merging_twice_changes_nothing_and_says_so(method: str) -> None:
    model = adapted_of(method, "llama", torch.bfloat16)
    model.merge_adapter()
    merged = weights_of(model)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert_same(weights_of(model), merged)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    assert torch.equal(output_of("llama", model), output_of("llama", adapted_like(model, method, "llama")))


def adapted_like(model: PeftModel, method: str, name: str) -> PeftModel:
    """A model with the same adapter, that was never merged."""
    other = adapted_of(method, name, model.dtype)
    peft.set_peft_model_state_dict(other, peft.get_peft_model_state_dict(model))
    return other


@each_method
def test_a_merged_model_that_is_unloaded_without_merging_is_the_base(method: str) -> None:
    model = adapted_of(method, "llama", torch.bfloat16)
    before = weights_of(model)
    model.merge_adapter()
    plain = model.unload()
    assert_same({path: plain.get_submodule(path).weight.detach() for path in before}, before)


# All or none


@each_method
@each_merging
def test_a_nan_in_the_last_layer_leaves_every_weight_as_it_was(method: str, unload: bool) -> None:
    model = adapted_of(method, "llama", torch.bfloat16)
    *_, (path, last) = model.base_model.adapted_layers()
    last.trained("default")[0].weight.data.view(-1)[0] = float("nan")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merge = model.merge_and_unload if unload else model.merge_adapter
    with pytest.raises(ValueError, match=f"{path}: NaNs detected in the merged weights. The adapter default"):
        merge(safe_merge=True)
    assert_same(model.state_dict(), before)
    assert not any(layer.merged for _, layer in model.base_model.adapted_layers())


@each_method
@each_merging
def test_names_that_no_adapter_has_are_refused(method: str, unload: bool) -> None:
    model = adapted_of(method, "mlp")
    before = weights_of(model)
    merge = model.merge_and_unload if unload else model.merge_adapter
    with pytest.raises(ValueError, match="adapter_names must be of default, got 'other'"):
        merge(adapter_names=["default", "other"])
    with pytest.raises(TypeError, match="adapter_names should be a list of strings"):
        merge(adapter_names="default")
    assert_same(weights_of(model), before)


# What is done to a merged model


@ignore_unmerging
@each_method
def test_adapters_come_and_go_while_others_are_merged(method: str) -> None:
    model = adapted_of(method, "llama")
    alone, before = output_of("llama", model), weights_of(model)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.add_adapter("two", config_of(method, "llama", init_weights=False, alpha=10.0))
    assert_same(weights_of(model), before)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"Cannot delete adapter\(s\) \['default'\] while they are merged"):
        model.delete_adapter("default")
    model.set_adapter("two")
    assert_same(weights_of(model), before)
    alike = get_peft_model(model_of("llama"), config_of(method, "llama", init_weights=False, alpha=10.0))
    peft.set_peft_model_state_dict(alike, peft.get_peft_model_state_dict(model, adapter_name="two"))
    assert torch.equal(output_of("llama", model), output_of("llama", alike))  # of SiVA, with bases of the bare weight
    model.merge_adapter(["default"])
    model.delete_adapter("two")
    torch.testing.assert_close(output_of("llama", model), alone)


@each_method
def test_switched_off_a_merged_model_is_the_base(method: str) -> None:
    model = adapted_of(method, "llama")
    wanted = output_of("llama", model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(output_of("llama", model), output_of("llama", model_of("llama")))
    assert torch.equal(output_of("llama", model), wanted)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@each_method
def test_a_head_that_is_tied_to_the_embedding_is_warned_of(method: str) -> None:
    model = adapted_of(method, "gpt2", target_modules=["lm_head"])
    with pytest.warns(UserWarning, match=r"tied_target_modules=\['lm_head'\]"):
        model.merge_adapter()


@each_method
def test_a_merged_model_is_copied_moved_and_converted(method: str) -> None:
    model = adapted_of(method, "mlp")
    before = weights_of(model)
    model.merge_adapter()
    other = copy.deepcopy(model)
    assert torch.equal(output_of("mlp", other), output_of("mlp", model))
    other.double().unmerge_adapter()
    assert_same(weights_of(other), {path: weight.double() for path, weight in before.items()})
    model.unmerge_adapter()
    assert_same(weights_of(model), before)


@each_method
def test_what_is_merged_under_inference_mode_is_trained_on(method: str) -> None:
    model = adapted_of(method, "mlp")
    with torch.inference_mode():
        model.merge_adapter()
    x = torch.randn(3, 12, requires_grad=True)
    model(x).sum().backward()
    first, second = model.base_model.model.first, model.base_model.model.second
    mask = (first(x) > 0).float()
    torch.testing.assert_close(x.grad, (mask * second.base_layer.weight.sum(0)) @ first.base_layer.weight)


# Changes that a layer has to see


@each_method
@pytest.mark.parametrize("strategy", ["auto", "direct", "merged"])
def test_layers_follow_every_change(method: str, strategy: str) -> None:
    model = adapted_of(method, "mlp", alpha=1.0, strategy=strategy)
    layer = model.base_model.model.first
    x = torch.randn(40, 12)

    def assert_follows() -> None:
        for tokens in (x.to(layer.weight.dtype), x[:1].to(layer.weight.dtype)):  # few tokens take another way
            dense = layer.weight.double() + layer.get_delta_weight("default").double()
            wanted = tokens.double() @ dense.T + layer.bias.double()
            tolerance = 3e-2 if tokens.dtype == torch.bfloat16 else 1e-5
            for _ in range(2):
                torch.testing.assert_close(layer(tokens).double(), wanted, rtol=tolerance, atol=tolerance)

    with torch.no_grad():
        assert_follows()
        parameter = layer.trained("default")[0].weight
        parameter.mul_(2)
        assert_follows()
        parameter.data = parameter.data * 1.5
        assert_follows()
        parameter.data.view(-1)[0] += 1
        assert_follows()
        layer.base_layer.weight.data *= 0.5
        assert_follows()
        state = {key: value * 0.9 if value.is_floating_point() else value for key, value in model.state_dict().items()}
        model.load_state_dict({key: v for key, v in state.items() if "fingerprint" not in key}, strict=False)
        assert_follows()
        parameter.numpy()[...] *= 0.9
        layer.refresh()
        assert_follows()
        for dtype in (torch.float64, torch.bfloat16, torch.float32):
            model.to(dtype)
            assert_follows()


# Memory


class Wide(nn.Module):
    """Of a shape that no other tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(53, 71) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers)


@pytest.fixture
def young_objects() -> Iterator[None]:
    """Objects from before the test are not looked at, which would take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def weights_in_memory() -> int:
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.shape == (71, 53)]
    return len({t.untyped_storage().data_ptr() for t in tensors})


@each_method
def test_no_more_weights_are_kept_than_there_have_to_be(
    method: str, young_objects: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"hydra": {"splits": 1}, "siva": {"k": 3}}.get(method, {})
    config = METHODS[method](target_modules=r"layers\.\d", strategy="merged", init_weights=False, **options)
    model = get_peft_model(Wide(), config).eval()
    x = torch.randn(3, 53)
    with torch.no_grad():
        model(x)
        assert weights_in_memory() == 8
        for _, layer in model.base_model.adapted_layers():
            layer.refresh()
        assert weights_in_memory() == 4
        model.merge_adapter()
        assert weights_in_memory() == 8
        model.unmerge_adapter()
        assert weights_in_memory() == 4
        model(x)

    unload, counts = StructuredLinear.unload_and_optionally_merge_module, []

    def counted(layer: StructuredLinear, *arguments: object, **named: object) -> nn.Module:
        base = unload(layer, *arguments, **named)
        counts.append(weights_in_memory())
        return base

    monkeypatch.setattr(StructuredLinear, "unload_and_optionally_merge_module", counted)
    plain = model.merge_and_unload()
    assert counts == [7, 6, 5, 4], "what was kept for products goes layer by layer, and so does the old weight"
    assert weights_in_memory() == 4 and plain(x).shape == (3, 71)
