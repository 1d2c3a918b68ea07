"""Adapted models in the tools that people use: compilers, checkpointing, autocast, copies, generate, Trainer."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import transformers
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import oracle
from tests.peft.models import IDS, METHODS, MLP, config_of, each_method, model_of, output_of
from tests.test_threads import at_once

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def adapted_of(method: str, name: str, **options: object) -> PeftModel:
    """With an update that shows."""
    return get_peft_model(model_of(name), config_of(method, name, init_weights=False, **{"alpha": 20.0, **options}))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """Of what is trained; they are taken off the model."""
    output.square().mean().backward()
    found = {name: parameter.grad for name, parameter in trained(model).items()}
    assert found and all(gradient is not None and gradient.any() for gradient in found.values())
    model.zero_grad()
    return found


def assert_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert oracle.error(gradient, wanted[name].double()) < 1e-4, name


# Compiled, exported


@pytest.mark.parametrize(("method", "name"), [("surm", "llama"), ("hydra", "mlp"), ("siva", "gpt2")])
def test_an_adapted_model_compiles_whole_and_trains(method: str, name: str) -> None:
    torch._dynamo.reset()
    model = adapted_of(method, name)
    wanted = output_of(name, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = output_of(name, compiled)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert_gradients(gradients(model, found), gradients(model, wanted))


@each_method
def test_switching_adapters_of_a_compiled_model_breaks_no_graph_and_compiles_once_a_choice(method: str) -> None:
    torch._dynamo.reset()
    model = adapted_of(method, "mlp")
    model.add_adapter("two", config_of(method, "mlp", init_weights=False, alpha=10.0))
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    outputs, counts = [], []
    with torch.no_grad():
        for names in (["default"], ["two"], ["default", "two"], []) * 2:
            if names:
                model.base_model.set_adapter(names)
                outputs.append(output_of("mlp", compiled))
                torch.testing.assert_close(outputs[-1], output_of("mlp", model), rtol=1e-4, atol=1e-4)
            else:
                with model.disable_adapter():
                    outputs.append(output_of("mlp", compiled))
                torch.testing.assert_close(outputs[-1], output_of("mlp", model_of("mlp")))
            counts.append(counter.frame_count)
    assert counts[-1] == counts[3] <= 4
    for i, output in enumerate(outputs[:4]):
        assert torch.equal(output, outputs[i + 4])
        assert not any(torch.allclose(output, other, atol=1e-4) for other in outputs[:i])


@each_method
def test_a_compiled_model_follows_merging(method: str) -> None:
    torch._dynamo.reset()
    model = adapted_of(method, "mlp")
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    wanted = output_of("mlp", model)
    for _ in range(3):
        for change in (model.merge_adapter, model.unmerge_adapter):
            change()
            torch.testing.assert_close(output_of("mlp", compiled), wanted, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


@each_method
@pytest.mark.parametrize("name", ["llama", "mlp"])
def test_an_adapted_model_is_exported(method: str, name: str) -> None:
    model = adapted_of(method, name)
    arguments, named = ((torch.randn(5, 12),), {}) if name == "mlp" else ((), {"input_ids": IDS, "use_cache": False})
    program = torch.export.export(model, arguments, named).module()
    found, wanted = program(*arguments, **named), model(*arguments, **named)
    if name == "llama":
        found, wanted = found.logits, wanted.logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# Training


@each_method
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(method: str, use_reentrant: bool) -> None:
    model = adapted_of(method, "llama").train()
    wanted = gradients(model, output_of("llama", model))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert_gradients(gradients(model, output_of("llama", model)), wanted)


@each_method
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_autocast_gives_the_types_of_the_base_and_float32_gradients(method: str, name: str) -> None:
    model, plain = adapted_of(method, name, alpha=1.0), model_of(name)
    dtypes: dict[bool, list[torch.dtype]] = {True: [], False: []}
    for path, layer in model.base_model.adapted_layers():
        layer.register_forward_hook(lambda _, x, y: dtypes[True].append(y.dtype))
        plain.get_submodule(path).register_forward_hook(lambda _, x, y: dtypes[False].append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = output_of(name, model), output_of(name, plain)
    assert found.dtype == wanted.dtype and dtypes[True] == dtypes[False] == [torch.bfloat16] * len(dtypes[True])
    torch.testing.assert_close(found.float(), output_of(name, model), rtol=5e-2, atol=5e-3)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model, found.float()).values())


@each_method
def test_the_backward_keeps_the_input_and_the_parameters_of_a_layer_and_nothing_else(method: str) -> None:
    model = adapted_of(method, "mlp")
    model.add_adapter("two", config_of(method, "mlp", init_weights=False))
    layer, x = model.base_model.model.first, torch.randn(2, 50, 12, requires_grad=True)
    for names in (["default"], ["default", "two"]):
        model.base_model.set_adapter(names)
        layer(x)
        saved = places_saved_by(layer, x)
        assert saved and saved <= {t.data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}


def places_saved_by(layer: nn.Module, x: Tensor) -> set[int]:
    """The memory that a recorded call keeps for its backward."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        assert layer(x).requires_grad
    return {t.data_ptr() for t in saved}


class Rows(torch.utils.data.Dataset):
    """Sentences of a few words, of which the first says the label."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        label = index % 3
        return {"input_ids": torch.tensor([label, *range(4, 9)]), "labels": torch.tensor(label)}


@each_method
def test_trainer_trains_and_saves_the_adapter_alone(method: str, tmp_path: Path) -> None:
    options = {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS", "alpha": 2.0}
    model = get_peft_model(model_of("bert"), config_of(method, "bert", **options))
    arguments = transformers.TrainingArguments(
        tmp_path,
        num_train_epochs=12,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        logging_steps=3,
        save_strategy="steps",
        save_steps=36,  # the last
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Rows())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    (folder,) = tmp_path.glob("checkpoint-*")
    assert {path.name for path in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not list(folder.glob("pytorch_model*"))
    model.eval()
    again = PeftModel.from_pretrained(model_of("bert"), folder)
    assert torch.equal(output_of("bert", again), output_of("bert", model))


# Which parameters are trained


def flags_of(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@each_method
def test_what_is_done_to_an_adapter_leaves_the_flags_of_the_others(method: str, tmp_path: Path) -> None:
    model = adapted_of(method, "llama")
    model.save_pretrained(tmp_path)
    some = next(iter(trained(model)))
    model.get_parameter(some).requires_grad_(False)
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def trained_of(adapter_name: str) -> bool:
        """Whether all of it is trained; else none is."""
        assert all(parameter.requires_grad is flag for parameter, flag in before)
        (flag,) = {flag for name, flag in flags_of(model).items() if f".{adapter_name}." in name}
        return flag

    model.add_adapter("two", config_of(method, "llama", inference_mode=True))
    assert not trained_of("two")
    model.add_adapter("three", config_of(method, "llama", target_modules=["q_proj", "k_proj"]))
    assert not trained_of("three")
    model.load_adapter(tmp_path, "four", is_trainable=True)
    assert not trained_of("two") and not trained_of("three")
    model.set_requires_grad("two")
    assert trained_of("two") and not trained_of("three")
    model.delete_adapter("four")
    assert trained_of("two") and not trained_of("three")
    model.set_requires_grad("two", False)
    assert not trained_of("two")


@each_method
def test_activated_adapters_are_trained_unless_for_inference_and_alone(method: str) -> None:
    model = adapted_of(method, "llama")
    model.add_adapter("two", config_of(method, "llama"))
    model.set_adapter("two", inference_mode=True)
    assert not any(flags_of(model).values())
    model.set_adapter("two")
    assert {name for name, flag in flags_of(model).items() if flag} == {
        name for name in flags_of(model) if name.endswith(".two.weight")
    }


@each_method
def test_an_adapter_that_stays_active_stays_frozen_when_another_is_deleted(method: str) -> None:
    model = adapted_of(method, "llama")
    model.add_adapter("two", config_of(method, "llama"))
    model.base_model.set_adapter(["default", "two"])
    model.set_requires_grad("default", False)
    model.delete_adapter("two")
    assert not any(flags_of(model).values())


@each_method
@pytest.mark.parametrize("inference_mode", [True, False])
def test_what_was_frozen_is_frozen_after_adapters_were_off(method: str, inference_mode: bool) -> None:
    model = adapted_of(method, "bert", modules_to_save=["classifier"], inference_mode=inference_mode)
    before = flags_of(model)
    assert any(before.values()) is not inference_mode
    with model.disable_adapter():
        assert not any(flag for name, flag in flags_of(model).items() if f".{method}_" in name)
    assert flags_of(model) == before
    for switch in ("disable", "disable", "enable", "enable"):
        getattr(model.base_model, f"{switch}_adapter_layers")()
    assert flags_of(model) == before


# Copies, generation, threads


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@each_method
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save], ids=lambda call: call.__name__)
def test_copies_are_the_model_and_train_apart(method: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted_of(method, "llama")
    model.add_adapter("two", config_of(method, "llama", init_weights=False))
    wanted = output_of("llama", model)
    other = duplicate(model)
    assert torch.equal(output_of("llama", other), wanted)
    with torch.no_grad():
        for parameter in trained(other).values():
            parameter.mul_(2)
    assert not torch.allclose(output_of("llama", other), wanted)
    assert torch.equal(output_of("llama", model), wanted)
    other.set_adapter("two")
    model.set_adapter("two")
    assert torch.equal(output_of("llama", other), output_of("llama", model))


@each_method
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3}], ids=str)
def test_an_adapted_model_generates_what_the_merged_one_does(method: str, options: dict[str, object]) -> None:
    model = adapted_of(method, "llama", target_modules="all-linear", alpha=200.0)
    found = []
    assert not torch.allclose(output_of("llama", model), output_of("llama", model_of("llama")), atol=1e-2)
    for each in (model, copy.deepcopy(model).merge_and_unload()):
        torch.manual_seed(3)
        found.append(each.generate(input_ids=IDS, max_new_tokens=6, pad_token_id=0, eos_token_id=None, **options))
    assert torch.equal(found[0], found[1])


@each_method
def test_threads_share_a_model(method: str) -> None:
    model = adapted_of(method, "llama")
    for _ in range(2):
        wanted = output_of("llama", copy.deepcopy(model)).detach()
        for found in at_once(*[lambda: model(input_ids=IDS).logits] * 8):
            torch.testing.assert_close(found, wanted)
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter.mul_(1.5)


# As torch's own layers


@each_method
def test_layers_take_what_linear_layers_take(method: str) -> None:
    layer = adapted_of(method, "mlp").base_model.model.first
    linear = nn.Linear(12, 16)
    linear.weight.data = layer.base_layer.weight + layer.get_delta_weight("default")
    linear.bias = layer.bias
    assert layer.weight is layer.base_layer.weight and layer.bias is layer.base_layer.bias
    x = torch.randn(2, 12, 3).mT
    for tokens in (x, x[0], x[0, 0], x[:0], x[:, :0], x[:, ::2], x[..., :1].expand(2, 3, 12)):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                y = layer(input=tokens)
                torch.testing.assert_close(y, linear(tokens), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(y.add_(1).relu_(), linear(tokens).add(1).relu(), rtol=1e-4, atol=1e-4)
        layer(tokens).sum().backward()
    with pytest.raises((ValueError, RuntimeError), match="12"):
        layer(torch.randn(3, 13))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@each_method
def test_the_fast_path_of_a_transformer_has_the_update(method: str) -> None:
    config = METHODS[method](target_modules=["linear1", "linear2"], init_weights=False, alpha=20.0)
    model = get_peft_model(Encoder().eval(), config)
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for arguments in ((x,), (x, padding)):
        wanted = copy.deepcopy(model).merge_and_unload()(*arguments)
        base = copy.deepcopy(model).unload()(*arguments)
        assert not torch.allclose(wanted, base, atol=1e-2)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                kept = ~padding if len(arguments) == 2 else slice(None)
                torch.testing.assert_close(model(*arguments)[kept], wanted[kept], rtol=1e-4, atol=1e-4)
        with torch.no_grad(), model.disable_adapter():
            torch.testing.assert_close(model(*arguments)[kept], base[kept])
    model.merge_adapter()
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(*arguments)[kept], base[kept])


@each_method
def test_the_projection_of_attention_is_refused_by_its_path(method: str) -> None:
    model = Encoder()
    with pytest.raises(TypeError, match=r"got encoder\.layers\.0\.self_attn\.out_proj: .*MultiheadAttention reads"):
        get_peft_model(model, METHODS[method](target_modules=["linear1", "out_proj"]))
    assert not hasattr(model, "peft_config")
    assert type(model.encoder.layers[0].linear1) is nn.Linear


@each_method
def test_models_that_read_weights_of_their_layers_are_adapted(method: str) -> None:
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    model = transformers.T5EncoderModel(config)
    model = get_peft_model(model, METHODS[method](target_modules=["q", "wi", "wo"], init_weights=False, alpha=5.0))
    wanted = copy.deepcopy(model).merge_and_unload()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(model(input_ids=IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)
    for dtype in (torch.bfloat16, torch.float32):
        assert model.to(dtype)(input_ids=IDS).last_hidden_state.dtype == dtype


def test_a_layer_takes_adapters_of_one_method() -> None:
    model = model_of("llama")
    inject_adapter_in_model(config_of("surm", "llama"), model, "one")
    names = set(model.state_dict())
    with (
        pytest.warns(UserWarning, match="Already found"),
        pytest.raises(ValueError, match=r"self_attn.*beside SurmLinear"),
    ):
        inject_adapter_in_model(config_of("hydra", "llama"), model, "two")
    assert set(model.state_dict()) == names


# Without values, with other defaults


@each_method
def test_models_without_values_are_adapted_and_called(method: str) -> None:
    options = {"k": 3} if method == "siva" else {}  # perc would need the spectrum
    with torch.device("meta"):
        model = MLP()
    model = get_peft_model(model, config_of(method, "mlp", **options))
    assert all(t.is_meta for t in model.state_dict().values())
    assert model(torch.randn(5, 12, device="meta")).shape == (5, 8)
    real = adapted_of(method, "mlp")
    wanted = output_of("mlp", real)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert real(mode.from_tensor(torch.randn(5, 12))).shape == (5, 8)
    assert torch.equal(output_of("mlp", real), wanted)


@each_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_nothing_depends_on_the_default_device_or_type(method: str, dtype: torch.dtype) -> None:
    base = model_of("mlp")
    wanted = get_peft_model(model_of("mlp"), config_of(method, "mlp")).state_dict()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device("meta"):
            found = get_peft_model(base, config_of(method, "mlp")).state_dict()
    finally:
        torch.set_default_dtype(before)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.device) == (wanted[name].dtype, wanted[name].device), name
