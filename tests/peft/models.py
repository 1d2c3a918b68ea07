"""Small models of the architectures that people adapt, made on the spot, and the three methods."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig

METHODS = {"surm": SurmConfig, "hydra": HydraConfig, "siva": SivaConfig}
IDS = torch.arange(10).reshape(2, 5)


class MLP(nn.Module):
    """Two layers of unlike sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.second = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def _mlp() -> nn.Module:
    return MLP()


def _llama() -> nn.Module:
    """With fewer keys and values than queries, so that v_proj is rectangular."""
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    """With Conv1D for linear layers and a head that is tied to the embedding."""
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def _opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=32,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return transformers.OPTForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "llama": _llama,
    "gpt2": _gpt2,
    "bert": _bert,
    "vit": _vit,
    "opt": _opt,
}
#: What a configuration has to say for a model that PEFT knows no targets of.
TARGETS = {"mlp": {"target_modules": ["first", "second"]}}


def model_of(name: str) -> nn.Module:
    """The same one every time, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


def output_of(name: str, model: nn.Module) -> Tensor:
    """Of a fixed input, in the type of the model."""
    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name == "mlp":
            return model(torch.randn(5, 12).to(dtype))
        if name == "vit":
            return model(pixel_values=torch.randn(2, 3, 8, 8).to(dtype)).logits
    return model(input_ids=IDS).logits


def config_of(method: str, model: str, **options: object) -> object:
    """A configuration of a method for a model; an update that is not 0 with `init_weights=False`."""
    return METHODS[method](**{**TARGETS.get(model, {}), **options})


each_method = pytest.mark.parametrize("method", METHODS)
each_model = pytest.mark.parametrize("name", MODELS)
