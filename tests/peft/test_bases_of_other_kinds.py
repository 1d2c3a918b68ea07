"""Layers that are no plain torch.nn.Linear: called as they are, merged where that is right, else refused by path."""

from collections.abc import Callable, Iterator

import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from transformers.pytorch_utils import Conv1D

from surm_kernels.peft import SurmConfig
from tests.peft.models import METHODS, config_of, each_method, model_of, output_of


class Block(nn.Module):
    """A layer of any kind and a plain one after it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.last = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(x)))


class Doubling(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Codes(nn.Linear):
    """A stand-in for quantised layers: a subclass of torch.nn.Linear whose weight holds integers."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        steps = self.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (self.weight.detach() / steps).round().to(torch.int8)
        self.register_buffer("steps", steps)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight * self.steps).to(x.dtype), self.bias)


class DoublingHook(ModelHook):
    """One of accelerate's, which puts another forward into the module."""

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return 2 * output


def hooked() -> nn.Module:
    layer = nn.Linear(64, 128)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def wrapped_by_accelerate() -> nn.Module:
    return add_hook_to_module(nn.Linear(64, 128), DoublingHook())


def bits8() -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes", reason="layers of 8 bits need bitsandbytes: pip install bitsandbytes")
    layer = bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False)
    layer.load_state_dict(nn.Linear(64, 128).state_dict())
    return layer.to("cpu")  # which quantises


def bits4() -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes", reason="layers of 4 bits need bitsandbytes: pip install bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 128, compute_dtype=torch.float32)
    layer.load_state_dict(nn.Linear(64, 128).state_dict())
    return layer.to("cpu")


def torchao_int8() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="weights of torchao need it: pip install torchao")
    layer = nn.Linear(64, 128)
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    return layer


CALLED = {
    "conv1d": lambda: Conv1D(128, 64),
    "subclass": lambda: Doubling(64, 128),
    "hooked": hooked,
    "accelerate": wrapped_by_accelerate,
    "parametrised": lambda: parametrizations.weight_norm(nn.Linear(64, 128)),
    "codes": lambda: Codes(64, 128),
    "bitsandbytes 8": bits8,
    "bitsandbytes 4": bits4,
    "torchao int8": torchao_int8,
}
QUANTISED = ("codes", "bitsandbytes 8", "bitsandbytes 4", "torchao int8")


def block_of(kind: str) -> Block:
    torch.manual_seed(0)
    return Block(CALLED[kind]())


def adapted_block(kind: str, method: str = "surm", **options: object) -> PeftModel:
    block = block_of(kind)
    return get_peft_model(block, METHODS[method](target_modules=["layer"], init_weights=False, **options))


def cases() -> Iterator[object]:
    """SiVA decomposes what codes stand for, which the stand-in does not tell."""
    for kind in CALLED:
        yield from (pytest.param(kind, m, id=f"{kind}-{m}") for m in METHODS if (kind, m) != ("codes", "siva"))


@pytest.mark.parametrize("kind, method", list(cases()))
def test_it_is_called_as_it_is_and_the_update_added(kind: str, method: str) -> None:
    adapted = adapted_block(kind, method)
    layer = adapted.base_model.model.layer
    update = layer.get_delta_weight("default")
    update = update if kind == "conv1d" else update.T
    x = torch.randn(5, 64, requires_grad=True)
    found, wanted = layer(x), layer.base_layer(x) + x @ update
    g = torch.randn_like(found)
    torch.testing.assert_close(found, wanted)
    trained = [p for p in layer.parameters() if p.requires_grad]
    of_x, *others = torch.autograd.grad(found, [x, *trained], g)
    torch.testing.assert_close(of_x, torch.autograd.grad(wanted, x, g)[0])
    assert others and all(gradient.any() for gradient in others)


@pytest.mark.parametrize("kind", QUANTISED)
def test_codes_are_saved_around_and_never_merged_into(kind: str, tmp_path: object) -> None:
    adapted = adapted_block(kind).eval()  # bitsandbytes computes otherwise in training
    x = torch.randn(5, 64)
    wanted = adapted(x)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(ValueError, match="layer: the weight of .* is quantised"):
            merge()
    assert torch.equal(adapted(x), wanted)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(block_of(kind), tmp_path)(x), wanted)
    assert torch.equal(adapted.unload()(x), block_of(kind).eval()(x))


def test_codes_of_an_unknown_kind_have_no_singular_vectors() -> None:
    with pytest.raises(TypeError, match="layer: the weight of Codes must be .* got Parameter of torch.int8"):
        adapted_block("codes", "siva")


@pytest.mark.parametrize("make", [weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_is_computed_is_not_merged_into(make: Callable) -> None:
    adapted = get_peft_model(Block(make(nn.Linear(64, 128))), SurmConfig(target_modules=["layer"], init_weights=False))
    x = torch.randn(5, 64)
    wanted = adapted(x)
    with pytest.raises(ValueError, match="layer: the weight of .* is computed from other tensors"):
        adapted.merge_adapter()
    assert torch.equal(adapted(x), wanted)


@each_method
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_conv1d_is_told_layer_by_layer(method: str) -> None:
    config = config_of(method, "gpt2", target_modules=["c_attn", "c_fc", "lm_head"], init_weights=False)
    adapted = get_peft_model(model_of("gpt2"), config)  # the head is a torch.nn.Linear
    adapted.add_adapter("other", config_of(method, "gpt2", target_modules=["c_attn"], init_weights=False))
    adapted.base_model.set_adapter(["default", "other"])
    for _, layer in adapted.base_model.adapted_layers():
        assert layer.get_delta_weight("default").shape == layer.get_base_layer().weight.shape
    wanted = output_of("gpt2", adapted)
    weights = {path: layer.get_base_layer().weight for path, layer in adapted.base_model.adapted_layers()}
    with pytest.raises(ValueError, match="lm_head: the weight is that of transformer.wte as well"):
        adapted.merge_adapter()
    assert torch.equal(output_of("gpt2", adapted), wanted)

    adapted.delete_adapter("default")
    wanted = output_of("gpt2", adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(output_of("gpt2", adapted), wanted)
    for path, layer in adapted.base_model.adapted_layers():
        assert layer.get_base_layer().weight is weights[path]
        assert layer.get_base_layer().weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_tied_head_learns_and_leaves_the_embedding_alone() -> None:
    model = model_of("gpt2")
    embedding = model.transformer.wte.weight.clone()
    adapted = get_peft_model(model, SurmConfig(target_modules=["lm_head"], init_weights=False))
    head = adapted.base_model.model.lm_head
    assert head.weight is model.transformer.wte.weight
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(head(hidden), hidden @ (embedding + head.get_delta_weight("default")).T)
    with pytest.raises(ValueError, match="lm_head: .* untie them first"):
        adapted.merge_and_unload()
    assert torch.equal(model.transformer.wte.weight, embedding)


def refused() -> dict[str, tuple[nn.Module, str]]:
    return {
        "embedding": (nn.Embedding(8, 16), "linear layers, got Embedding for inner.part"),
        "norm": (nn.LayerNorm(16), "linear layers, got LayerNorm for inner.part"),
        "convolution": (nn.Conv2d(3, 16, 2), "linear layers, got Conv2d for inner.part"),
        "bilinear": (nn.Bilinear(16, 16, 8), "linear layers, got Bilinear for inner.part"),
        "recurrent": (nn.LSTM(16, 16), "linear layers, got LSTM for inner.part"),
        "attention": (nn.MultiheadAttention(16, 2), "linear layers, got MultiheadAttention for inner.part"),
        "out_proj": (nn.MultiheadAttention(16, 2), "called, got inner.part.out_proj: torch.nn.MultiheadAttention"),
    }


@each_method
@pytest.mark.parametrize("name", refused())
def test_what_is_no_linear_layer_is_refused_before_any_change(name: str, method: str) -> None:
    module, message = refused()[name]
    model = nn.ModuleDict({"first": nn.Linear(64, 128), "inner": nn.ModuleDict({"part": module})})
    before = {key: id(value) for key, value in model.named_modules()}
    target = name if hasattr(module, name) else "part"
    with pytest.raises(TypeError, match=message):
        get_peft_model(model, METHODS[method](target_modules=["first", target]))
    assert {key: id(value) for key, value in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_behind_a_layer_that_is_read_in_evaluation_is_refused() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    config = SurmConfig(form="adapter", target_modules=["linear2"])
    with pytest.raises(TypeError, match="called, got linear2: torch.nn.TransformerEncoderLayer"):
        get_peft_model(model, config)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert [path for path, _ in get_peft_model(model, config).base_model.adapted_layers()] == ["linear2"]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@each_method
@pytest.mark.parametrize("name", ["mlp", "llama", "gpt2"])
def test_at_full_rank_it_is_exact_as_lora(method: str, name: str) -> None:
    adapted = get_peft_model(model_of(name), config_of(method, name, init_weights=False, alpha=20.0))
    config, state = peft.convert_to_lora(adapted, rank=1.0)
    as_lora = get_peft_model(model_of(name), config).eval()
    peft.set_peft_model_state_dict(as_lora, state)
    wanted = output_of(name, adapted)
    assert not torch.allclose(wanted, output_of(name, model_of(name)), atol=1e-3)
    torch.testing.assert_close(output_of(name, as_lora), wanted, rtol=1e-4, atol=1e-5)


def test_what_lora_of_a_rank_loses_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    adapted = get_peft_model(model_of("llama"), SurmConfig(init_weights=False))
    ranks = (2, 8, 32)
    shares = adapted.lora_losses(ranks=ranks)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == list(ranks) == list(shares)
    assert shares[2] > shares[8] > shares[32] == 0

    _, state = peft.convert_to_lora(adapted, rank=8)
    lost = total = 0.0
    for path, layer in adapted.base_model.adapted_layers():
        A, B = (state[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        update = layer.get_delta_weight("default")
        lost += (update - B @ A).square().sum().item()
        total += update.square().sum().item()
    assert shares[8] == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_only_what_is_there_can_become_lora() -> None:
    adapted = get_peft_model(model_of("llama"), SurmConfig())
    assert adapted.lora_losses(ranks=(4,)) == {4: 0.0}  # of an update that is 0
    with pytest.raises(ValueError, match="adapter_name must be one of the model's adapters, got 'other'"):
        adapted.lora_losses("other")
    after = get_peft_model(model_of("llama"), SurmConfig(form="adapter"))
    with pytest.raises(ValueError, match="can neither be merged nor become LoRA"):
        after.lora_losses()
