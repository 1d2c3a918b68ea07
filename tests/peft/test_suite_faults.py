"""Faults that PEFT's own tests found."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from tests.peft.models import METHODS, each_method


class Stack(nn.Module):
    """An embedding, two blocks called `layers` and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def adapted(method: str, **options: object) -> PeftModel:
    torch.manual_seed(0)
    config = METHODS[method](target_modules=["layers.0", "layers.1"], init_weights=False, **options)
    return get_peft_model(Stack(), config).eval()


@each_method
def test_the_models_own_attributes_are_reached_through_the_tuner(method: str) -> None:
    model = adapted(method)
    assert model.base_model.layers is model.base_model.model.layers


@each_method
def test_a_model_with_trained_tokens_is_merged_and_unloaded(method: str) -> None:
    model = adapted(method, trainable_token_indices={"embedding": [1, 3]})
    with torch.no_grad():
        model.base_model.model.embedding.token_adapter.trainable_tokens_delta["default"].add_(1)
    ids = torch.arange(10)
    wanted = model(ids)
    bare = model.merge_and_unload()
    assert type(bare.embedding) is nn.Embedding
    assert type(bare.layers[0]) is nn.Linear
    torch.testing.assert_close(bare(ids), wanted)


@each_method
def test_biases_are_saved_once_beside_a_module_that_is_saved_whole(method: str, tmp_path: Path) -> None:
    model = adapted(method, bias="all", modules_to_save=["head"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.add_(1)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Stack(), tmp_path)
    ids = torch.arange(10)
    torch.testing.assert_close(loaded(ids), model(ids))
