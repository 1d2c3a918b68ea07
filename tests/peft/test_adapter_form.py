"""The adapter form of SURM: its formula and counts, where it stands in a model, files, and what it refuses to be."""

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from surm_kernels.peft import HydraConfig, SurmConfig
from surm_kernels.peft._adapter_form import OUTPUT_PROJECTIONS
from tests.peft.models import MLP, model_of, output_of

STRUCTURES = {
    "circulant": {},
    "toeplitz": {},
    "kronecker": {},
    "ldr": {"rank": 2},
    "block_circulant": {"block_size": 4},
    "symmetric_toeplitz": {},
    "hankel": {},
    "circulant_diagonal": {},
    "monarch": {},
}


def adapter(**options: object) -> SurmConfig:
    return SurmConfig(form="adapter", **options)


def adapted_mlp(**options: object) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(MLP(), adapter(target_modules=["first"], init_weights=False, **options))


def by_formula(layer: nn.Module, x: Tensor, *names: str) -> Tensor:
    """X + sum of alpha GELU(W X) + b, by dense matrices."""
    outputs = layer.base_layer(x)
    y = outputs
    for name in names:
        *inner, b = [getattr(layer, container)[name].weight for container in layer.adapter_layer_names]
        W = layer.structures[name].structure.dense(*inner)
        y = y + layer.alphas[name] * F.gelu(outputs @ W.T) + b
    return y


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_the_formula_with_its_gradients(structure: str) -> None:
    layer = adapted_mlp(structure=structure, alpha=3.0, **STRUCTURES[structure]).double().base_model.model.first
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found, wanted = layer(x), by_formula(layer, x, "default")
    torch.testing.assert_close(found, wanted)
    g = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, g), torch.autograd.grad(wanted, inputs, g))


def test_gradients_of_higher_order_are_right() -> None:
    layer = adapted_mlp().double().base_model.model.first
    x = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


@pytest.mark.parametrize("bias, count", [(True, 55_296), (False, 36_864)])
@pytest.mark.parametrize("name", ["Bert", "ViT"])
def test_a_base_model_has_the_counts_of_the_paper(name: str, bias: bool, count: int) -> None:
    config = getattr(transformers, f"{name}Config")()
    with torch.device("meta"):
        adapted = get_peft_model(getattr(transformers, f"{name}Model")(config), adapter(adapter_bias=bias))
    assert adapted.get_nb_trainable_parameters()[0] == count


@pytest.mark.parametrize("model_type", OUTPUT_PROJECTIONS)
def test_two_layers_of_a_block_are_adapted_by_default(model_type: str) -> None:
    small = {
        "clip": {"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1}},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global"], 2]]},
    }
    config = transformers.AutoConfig.for_model(model_type, **small.get(model_type, {"num_hidden_layers": 2}))
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    paths = [path for path, _ in get_peft_model(model, adapter()).base_model.adapted_layers()]
    attention = [path for path in paths if "att" in path]
    blocks = 1 if model_type == "albert" else 2  # it has one, and calls it several times
    assert len(attention) == blocks and len(paths) == 2 * blocks


def test_an_unknown_architecture_is_asked_for_its_layers() -> None:
    config = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = transformers.T5Model(config)
    with pytest.raises(ValueError, match="target_modules must name the output projections .* model type 't5'"):
        get_peft_model(model, adapter())
    assert len(list(get_peft_model(model, adapter(target_modules=["o", "wo"])).base_model.adapted_layers())) == 5
    with pytest.raises(ValueError, match="target_modules must name the output projections .* model type 'custom'"):
        get_peft_model(MLP(), adapter())


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_it_starts_from_the_model_and_learns(name: str) -> None:
    model = model_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = output_of(name, model).detach()
    adapted = get_peft_model(model, adapter())
    assert torch.equal(output_of(name, adapted), wanted)

    trained = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    assert {key.split(".")[-3] for key in trained} == {"surm_r1", "surm_r2", "surm_b"}
    optimiser = torch.optim.Adam(trained.values(), 0.01)
    losses = []
    for _ in range(4):
        loss = (output_of(name, adapted) - 1).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert all(layer.surm_b["default"].weight.any() for _, layer in adapted.base_model.adapted_layers())
    with adapted.disable_adapter():
        assert torch.equal(output_of(name, adapted), wanted)
    bare = adapted.unload()
    assert torch.equal(output_of(name, bare), wanted)
    assert all(torch.equal(value, before[key]) for key, value in bare.state_dict().items())


def test_it_stands_before_residual_and_norm() -> None:
    adapted = get_peft_model(model_of("bert"), adapter(init_weights=False))
    block = adapted.base_model.model.bert.encoder.layer[0].output
    hidden, residual = torch.randn(2, 5, 48), torch.randn(2, 5, 32)
    wanted = block.LayerNorm(by_formula(block.dense, hidden, "default") + residual)
    torch.testing.assert_close(block(hidden, residual), wanted)


def test_active_adapters_add_what_each_makes_of_the_same_outputs() -> None:
    adapted = adapted_mlp(alpha=2.0)
    adapted.add_adapter("other", adapter(target_modules=["first"], structure="toeplitz", init_weights=False))
    layer = adapted.base_model.model.first
    x = torch.randn(7, 12)
    one = layer(x)
    adapted.base_model.set_adapter(["default", "other"])
    outputs = layer.base_layer(x)
    both = layer(x)
    adapted.set_adapter("other")
    torch.testing.assert_close(both, one + layer(x) - outputs)
    adapted.base_model.set_adapter(["other", "default"])
    torch.testing.assert_close(layer(x), both)
    adapted.delete_adapter("other")
    assert torch.equal(layer(x), one)


def test_few_tokens_after_training_give_the_same() -> None:
    layer = adapted_mlp().eval().requires_grad_(False).base_model.model.first
    x = torch.randn(3, 12)
    wanted = by_formula(layer, x, "default")
    for _ in range(2):  # the second from what was kept
        torch.testing.assert_close(layer(x), wanted)


def test_it_is_saved_and_loaded(tmp_path: object) -> None:
    adapted = get_peft_model(model_of("bert"), adapter(init_weights=False))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of("bert"), tmp_path)
    assert torch.equal(output_of("bert", loaded), output_of("bert", adapted))
    assert loaded.peft_config["default"].form == "adapter"


@pytest.mark.parametrize("other", [{"form": "adapter", "adapter_bias": False}, {"form": "lora"}])
def test_tensors_of_another_kind_are_refused(other: dict) -> None:
    state = peft.get_peft_model_state_dict(adapted_mlp())
    model = get_peft_model(MLP(), SurmConfig(target_modules=["first"], **other))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="surm_b.weight are not of this model"):
        peft.set_peft_model_state_dict(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tensors_of_another_width_are_refused() -> None:
    state = peft.get_peft_model_state_dict(adapted_mlp(structure="kronecker"))
    model = get_peft_model(MLP(), adapter(target_modules=["first"], structure="kronecker"))
    sizes = next(key for key in state if key.endswith("sizes"))
    with pytest.raises(ValueError, match=r"first.* must be of a layer of 16 x 16, got 32 x 8"):
        peft.set_peft_model_state_dict(model, {**state, sizes: torch.tensor([32, 8])})


def test_it_can_be_no_part_of_a_weight() -> None:
    adapted = adapted_mlp()
    before = adapted.base_model.model.first.base_layer.weight.clone()
    for merge in (
        adapted.merge_adapter,
        adapted.merge_and_unload,
        adapted.base_model.model.first.merge,
        lambda: adapted.base_model.model.first.get_delta_weight("default"),
    ):
        with pytest.raises(ValueError, match="can neither be merged nor become LoRA"):
            merge()
    assert not adapted.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion.*SurmAdapterLinear"):
        peft.convert_to_lora(adapted, 4)
    assert torch.equal(adapted.unload().first.weight, before)


def test_no_layer_is_merged_beside_one_that_cannot_be() -> None:
    adapted = get_peft_model(MLP(), SurmConfig(target_modules=["first"], init_weights=False))
    adapted.add_adapter("after", adapter(target_modules=["second"]))
    adapted.base_model.set_adapter(["default", "after"])
    with pytest.raises(ValueError, match="second: an adapter of form"):
        adapted.merge_adapter()
    assert not adapted.base_model.model.first.merged


@pytest.mark.parametrize("first, second", [("adapter", "lora"), ("lora", "adapter")])
def test_a_layer_takes_one_form(first: str, second: str) -> None:
    adapted = get_peft_model(MLP(), SurmConfig(form=first, target_modules=["second"]))
    before = list(adapted.state_dict())
    with pytest.raises(ValueError, match="second: adapters of one layer must be of one method and form"):
        adapted.add_adapter("other", SurmConfig(form=second, target_modules=["first", "second"]))
    assert list(adapted.state_dict()) == before and list(adapted.peft_config) == ["default"]
    adapted.add_adapter("other", SurmConfig(form=second, target_modules=["first"]))
    adapted.base_model.set_adapter(["default", "other"])
    adapted(torch.randn(2, 12))


def test_a_layer_takes_one_method() -> None:
    model = peft.inject_adapter_in_model(SurmConfig(target_modules=["first"]), MLP())
    with pytest.raises(
        ValueError, match="first: adapters of one layer must be of one method and form, got HydraLinear"
    ):
        peft.inject_adapter_in_model(HydraConfig(target_modules=["first", "second"]), model, adapter_name="other")
    assert type(model.second) is nn.Linear


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"target_modules": "all-linear"}, ValueError, "target_modules must name output projections"),
        ({"strategy": "merged"}, ValueError, "strategy must be"),
        ({"adapter_bias": 1}, TypeError, "adapter_bias must be"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adapter(**options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_stay_16_bits(dtype: torch.dtype) -> None:
    adapted = get_peft_model(MLP().to(dtype), adapter(target_modules=["first"], init_weights=False))
    layer = adapted.base_model.model.first
    assert layer.surm_b["default"].weight.dtype is torch.float32  # PEFT's default
    x = torch.randn(7, 12, dtype=dtype)
    y = layer(x)
    y.float().sum().backward()
    wanted = by_formula(layer.double(), x.double(), "default")
    assert y.dtype is dtype
    assert (y.double() - wanted).norm() < 2 * torch.finfo(dtype).eps * wanted.norm()


def test_autocast_gives_its_own_type() -> None:
    layer = adapted_mlp().base_model.model.first
    x = torch.randn(7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    wanted = by_formula(layer, x, "default")
    assert y.dtype is torch.bfloat16 and layer.surm_b["default"].weight.grad.dtype is torch.float32
    assert (y.float() - wanted).norm() < 2 * torch.finfo(torch.bfloat16).eps * wanted.norm()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = model_of("bert").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    adapted = get_peft_model(model, adapter(init_weights=False))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(output_of("bert", adapted).sum(), trained)
    adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
    adapted.enable_input_require_grads()
    output_of("bert", adapted).sum().backward()
    torch.testing.assert_close([p.grad for p in trained], list(wanted))


def test_it_compiles_into_one_graph() -> None:
    adapted = adapted_mlp()
    x = torch.randn(7, 12)
    torch.testing.assert_close(torch.compile(adapted, fullgraph=True, backend="aot_eager")(x), adapted(x))
