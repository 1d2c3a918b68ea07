"""Adapters in files: what is saved, that it comes back exactly, and that what does not fit is refused unseen."""

import copy
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig, _origin
from surm_kernels.peft.layer import StructuredLinear
from surm_kernels.structures import CirculantProduct
from tests.peft.models import IDS, config_of, each_method, model_of, output_of

SURM = ("circulant", "toeplitz", "kronecker", "ldr", "block_circulant", "symmetric_toeplitz", "hankel")
#: Of a circulant product of 8 x 8 with alpha 1; files hold it.
IDENTITY = 6010819389064893477
HYDRA = ("circulant", "toeplitz", "hankel", "vandermonde", "low_rank", "toeplitz_like")
#: A configuration of every structure and of every way to choose SiVA's bases, all with an update that is not 0.
CONFIGS = {
    **{f"surm-{name}": SurmConfig(structure=name, init_weights=False) for name in (*SURM, "circulant_diagonal")},
    "surm-blocks": SurmConfig(block_size=8, init_weights=False),
    "surm-monarch": SurmConfig(structure="monarch", init_weights=False),
    **{
        f"hydra-{name}": HydraConfig(
            structure=name, rank=2 if "low" in name or "like" in name else None, init_weights=False
        )
        for name in HYDRA
    },
    "hydra-fixed": HydraConfig(fixed_fraction=0.5, pool_size=9, init_weights=False),
    **{f"siva-{basis}": SivaConfig(basis=basis, k=5, init_weights=False) for basis in ("bottom", "top", "random")},
    "siva-saved": SivaConfig(save_bases=True, init_weights=False),
}
WEIGHTS = "adapter_model.safetensors"
#: One layer of the MLP adapted, the other trained whole.
HEAD = {"target_modules": ["first"], "modules_to_save": ["second"]}


def copy_of(config: Any, **options: Any) -> Any:
    """A configuration that a model may change."""
    return type(config)(**{**config.to_dict(), **options})


def adapted(name: str, config: Any, adapter_name: str = "default", **options: Any) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(len(adapter_name))
        return get_peft_model(model_of(name), config, adapter_name=adapter_name, **options).eval()


def saved(method: str, name: str, folder: Path, **options: Any) -> Path:
    """A folder with an adapter whose update is not 0."""
    options = {"init_weights": False, **options}
    adapted(name, config_of(method, name, **options)).save_pretrained(folder)
    return folder


def numbers(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    return {
        key.replace(f".{adapter_name}.", ".*."): value
        for key, value in model.state_dict().items()
        if f".{adapter_name}." in key
    }


def require_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert wanted.keys() == found.keys() and wanted
    for key, value in wanted.items():
        assert value.dtype == found[key].dtype and torch.equal(value, found[key]), key


class Snapshot:
    """All of a model that a refused file must leave as it was."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.model = name, model
        self.before = self._now()

    def _now(self) -> dict[str, Any]:
        return {
            "modules": [(path, id(module), module.training) for path, module in self.model.named_modules()],
            "parameters": [(path, id(p), p.requires_grad) for path, p in self.model.named_parameters()],
            "state": {key: value.clone() for key, value in self.model.state_dict().items()},
            "adapters": sorted(getattr(self.model, "peft_config", {})),
            "active": getattr(self.model, "active_adapters", None),
            "targets": list(getattr(self.model, "targeted_module_names", ())),
            "output": output_of(self.name, self.model).detach(),
        }

    def require_unchanged(self) -> None:
        now = self._now()
        require_equal(now.pop("state"), self.before["state"])
        assert torch.equal(now.pop("output"), self.before["output"])
        for key, value in now.items():
            assert value == self.before[key], key


# What comes back


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_structure_comes_back_exactly(kind: str, tmp_path: Path) -> None:
    # One strategy: what is loaded is not trained, so "auto" may choose another one, which rounds otherwise.
    config = copy_of(CONFIGS[kind], target_modules=["q_proj", "v_proj", "down_proj"], strategy="direct")
    model = adapted("llama", config)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(t.numel() for key, t in tensors.items() if key.endswith(".weight")) == trained
    beside = {key.rpartition(".")[2] for key in tensors} - {"weight"}
    assert beside == {"sizes", "identity"} | ({"fingerprint"} if "siva" in kind else set()) | (
        {"U", "V"} if kind == "siva-saved" else set()
    )

    loaded = PeftModel.from_pretrained(model_of("llama"), tmp_path)
    require_equal(numbers(loaded), numbers(model))
    assert torch.equal(output_of("llama", loaded), output_of("llama", model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert type(loaded.peft_config["default"]) is type(config)
    ours, theirs = config.to_dict(), loaded.peft_config["default"].to_dict()
    assert {**ours, "inference_mode": True, "auto_mapping": None} == {**theirs, "auto_mapping": None}


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_16_bit_bases_keep_the_numbers(method: str, dtype: torch.dtype, autocast: bool, tmp_path: Path) -> None:
    base = model_of("llama").to(dtype)
    model = get_peft_model(base, config_of(method, "llama", init_weights=False), autocast_adapter_dtype=autocast)
    wanted = torch.float32 if autocast else dtype
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {wanted}
    model.eval().save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            model_of("llama").to(dtype),
            tmp_path,
            is_trainable=True,  # so that both compute alike
            autocast_adapter_dtype=autocast,
            low_cpu_mem_usage=low,
        ).eval()
        require_equal(numbers(loaded), numbers(model))
        assert torch.equal(output_of("llama", loaded), output_of("llama", model))


@each_method
def test_low_cpu_mem_usage_is_exact_and_trains(method: str, tmp_path: Path) -> None:
    folder = saved(method, "llama", tmp_path)
    wanted = PeftModel.from_pretrained(model_of("llama"), folder)
    model = PeftModel.from_pretrained(model_of("llama"), folder, low_cpu_mem_usage=True, is_trainable=True)
    model.load_adapter(folder, "other", low_cpu_mem_usage=True)
    require_equal(numbers(model), numbers(wanted))
    require_equal(numbers(model, "other"), numbers(wanted))
    output_of("llama", model).square().mean().backward()
    gradients = [p.grad for key, p in model.named_parameters() if ".default." in key]
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients)


@each_method
def test_several_adapters_are_saved_apart_and_loaded_under_other_names(method: str, tmp_path: Path) -> None:
    one = config_of(method, "llama", init_weights=False)
    two = config_of(method, "llama", init_weights=False, alpha=2.0, target_modules=["k_proj", "up_proj"])
    model = adapted("llama", one, "one")
    model.add_adapter("two", two)
    model.set_adapter("two")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "alone", selected_adapters=["two"])
    assert sorted(path.name for path in tmp_path.glob("*/*.safetensors")) == [WEIGHTS] * 2
    wanted = output_of("llama", model)

    loaded = PeftModel.from_pretrained(model_of("llama"), tmp_path / "two", adapter_name="en")
    assert torch.equal(output_of("llama", loaded), wanted)
    result = loaded.load_adapter(tmp_path / "one", "v2")
    assert not result.missing_keys and not result.unexpected_keys
    require_equal(numbers(loaded, "en"), numbers(model, "two"))
    require_equal(numbers(loaded, "v2"), numbers(model, "one"))
    assert torch.equal(output_of("llama", loaded), wanted)
    loaded.set_adapter("v2")
    model.set_adapter("one")
    assert torch.equal(output_of("llama", loaded), output_of("llama", model))


@each_method
def test_loading_for_training_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    model = adapted("mlp", config_of(method, "mlp", init_weights=False))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of("mlp"), tmp_path, is_trainable=True)
    assert [key for key, p in loaded.named_parameters() if p.requires_grad] == [
        key for key, p in model.named_parameters() if p.requires_grad
    ]
    for m in (model, loaded):
        optimiser = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1)
        output_of("mlp", m).square().sum().backward()
        optimiser.step()
    require_equal(numbers(loaded), numbers(model))


@each_method
def test_a_head_that_is_trained_whole_comes_back(method: str, tmp_path: Path) -> None:
    model = adapted("bert", config_of(method, "bert", init_weights=False, task_type="SEQ_CLS"))
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of("bert"), tmp_path)
    require_equal(numbers(loaded), numbers(model))
    assert torch.equal(output_of("bert", loaded), output_of("bert", model))


@each_method
@pytest.mark.parametrize("which", ["all", "{}_only"])
def test_biases_that_are_trained_come_back(method: str, which: str, tmp_path: Path) -> None:
    model = adapted("mlp", config_of(method, "mlp", init_weights=False, bias=which.format(method)))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                assert parameter.requires_grad
                parameter.add_(1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of("mlp"), tmp_path)
    assert torch.equal(output_of("mlp", loaded), output_of("mlp", model))


@each_method
def test_trainable_tokens_come_back(method: str, tmp_path: Path) -> None:
    model = adapted("llama", config_of(method, "llama", init_weights=False, trainable_token_indices=[1, 3]))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "trainable_tokens_delta" in key:
                parameter.add_(1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of("llama"), tmp_path)
    assert torch.equal(output_of("llama", loaded), output_of("llama", model))


@each_method
def test_auto_models_find_base_and_adapter(method: str, tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config_of(method, "llama", init_weights=False, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "adapter")
    wanted = output_of("llama", model)
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(output_of("llama", loaded), wanted)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(output_of("llama", plain), wanted)


@each_method
def test_transformers_own_adapters_are_the_same(method: str, tmp_path: Path) -> None:
    folder = saved(method, "llama", tmp_path / "theirs")
    wanted = output_of("llama", PeftModel.from_pretrained(model_of("llama"), folder))
    model = model_of("llama")
    info = model.load_adapter(str(folder))
    assert not info.missing_keys and not info.unexpected_keys
    assert torch.equal(output_of("llama", model), wanted)
    model.disable_adapters()
    assert torch.equal(output_of("llama", model), output_of("llama", model_of("llama")))
    model.enable_adapters()
    model.add_adapter(config_of(method, "llama", init_weights=False), "second")
    second = output_of("llama", model)
    assert not torch.allclose(second, wanted, atol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / WEIGHTS).exists()
    assert (tmp_path / "ours" / "README.md").read_text(encoding="utf-8").count("import surm_kernels.peft") == 1
    assert torch.equal(output_of("llama", PeftModel.from_pretrained(model_of("llama"), tmp_path / "ours")), second)
    model.set_adapter("default")
    assert torch.equal(output_of("llama", model), wanted)
    model.delete_adapter("second")
    assert not any("second" in key for key in model.state_dict())
    assert torch.equal(output_of("llama", model), wanted)


def _train(model: nn.Module, folder: Path, **options: Any) -> transformers.Trainer:
    """Four steps, of which the second and the last are saved and the worse one is taken for the best."""
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(32, (8, 5), generator=generator)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:2])
    trainer.train(**options)
    return trainer


@each_method
def test_a_trainer_saves_resumes_and_takes_the_best(method: str, tmp_path: Path) -> None:
    whole = _train(adapted("llama", config_of(method, "llama")), tmp_path / "whole")
    middle, last = (tmp_path / "whole" / f"checkpoint-{step}" for step in (2, 4))
    for checkpoint in (middle, last):
        assert (checkpoint / WEIGHTS).exists() and not (checkpoint / "adapter_model.bin").exists()
        assert (checkpoint / "README.md").read_text(encoding="utf-8").count("import surm_kernels.peft") == 1
    assert whole.state.best_model_checkpoint == str(middle)
    require_equal(numbers(whole.model), numbers(PeftModel.from_pretrained(model_of("llama"), middle)))

    resumed = _train(
        adapted("llama", config_of(method, "llama")), tmp_path / "resumed", resume_from_checkpoint=str(middle)
    )
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    wanted, found = load_file(last / WEIGHTS), load_file(tmp_path / "resumed" / "checkpoint-4" / WEIGHTS)
    require_equal(found, wanted)


@each_method
def test_the_readme_says_what_to_import(method: str, tmp_path: Path) -> None:
    model = adapted("llama", config_of(method, "llama"))
    (tmp_path / "README.md").write_text("---\ntags:\n- mine\n---\nMy model card.\n", encoding="utf-8")
    for _ in range(2):
        model.save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.count("import surm_kernels.peft") == 1
        assert "My model card." in text and f"KeyError: '{method.upper()}'" in text


# What is refused


def _missing(tensors: dict[str, Tensor]) -> None:
    del tensors[sorted(k for k in tensors if k.endswith(".weight"))[-1]]


def _without_sizes(tensors: dict[str, Tensor]) -> None:
    del tensors[next(k for k in tensors if k.endswith(".sizes"))]


def _surplus(tensors: dict[str, Tensor]) -> None:
    key = next(k for k in tensors if k.endswith(".weight"))
    tensors[key.replace("second", "third").replace("first", "third")] = torch.ones(3)


def _integer(tensors: dict[str, Tensor]) -> None:
    key = sorted(k for k in tensors if k.endswith(".weight"))[-1]
    tensors[key] = torch.ones(tensors[key].shape, dtype=torch.int64)


def _misshapen(tensors: dict[str, Tensor]) -> None:
    key = sorted(k for k in tensors if k.endswith(".weight"))[-1]
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def _other_width(tensors: dict[str, Tensor]) -> None:
    key = sorted(k for k in tensors if k.endswith(".sizes"))[-1]
    tensors[key] = tensors[key] + 1


def _not_a_number(tensors: dict[str, Tensor]) -> None:
    key = sorted(k for k in tensors if k.endswith(".sizes"))[-1]
    tensors[key] = tensors[key].double()


def _nothing(tensors: dict[str, Tensor]) -> None:
    tensors.clear()


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "missing": (_missing, "are missing"),
    "without sizes": (_without_sizes, "are missing"),
    "surplus": (_surplus, "are not of this adapter"),
    "integer": (_integer, "must be of a type like"),
    "misshapen": (_misshapen, "must have shape"),
    "other width": (_other_width, "must be of a layer of"),
    "sizes of another type": (_not_a_number, "must be of a type like"),
    "nothing": (_nothing, "are missing"),
}


def require_refused(
    method: str, folder: Path, message: str, name: str = "mlp", raised: Any = ValueError, **options: Any
) -> None:
    """By every way of PEFT to load, with the model as it was."""
    for low in (False, True):
        base = Snapshot(name, model_of(name))
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(base.model, folder, low_cpu_mem_usage=low)
        base.require_unchanged()
        assert not hasattr(base.model, "peft_config")
    model = adapted(name, config_of(method, name, init_weights=False, **options))
    before = Snapshot(name, model)
    for adapter in ("fresh", "default"):
        for trainable in (False, True):
            with pytest.raises(ValueError if adapter == "fresh" else raised, match=message):
                model.load_adapter(folder, adapter, is_trainable=trainable)
            before.require_unchanged()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = Snapshot(name, model)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(folder, "fresh", is_trainable=True)
    before.require_unchanged()


@each_method
@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_files_are_refused(method: str, kind: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    spoil, message = SPOILT[kind]
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS)
    require_refused(method, folder, message)


@each_method
@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_cut_files_are_refused(method: str, kept: int, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    require_refused(method, folder, "is damaged or cut short|header|not fully covered", raised=SafetensorError)


@each_method
def test_a_missing_head_is_refused(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path, **HEAD)
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(key for key in tensors if key.endswith("second.bias"))]
    save_file(tensors, folder / WEIGHTS)
    require_refused(method, folder, "second.bias", raised=KeyError, **HEAD)


@each_method
def test_a_misshapen_head_is_refused(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path, **HEAD)
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if key.endswith("second.bias"))
    tensors[key] = tensors[key][:2].clone()
    save_file(tensors, folder / WEIGHTS)
    require_refused(method, folder, "must have shape", **HEAD)


@each_method
def test_missing_biases_are_refused(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path, bias="all")
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(key for key in tensors if key.endswith("bias"))]
    save_file(tensors, folder / WEIGHTS)
    require_refused(method, folder, "are missing|only 1 adapter with bias", bias="all")


@each_method
def test_weights_of_the_base_are_refused(method: str, tmp_path: Path) -> None:
    """A head that the adapter does not train would change the model under every adapter."""
    adapted("mlp", config_of(method, "mlp", **HEAD)).save_pretrained(tmp_path)
    model = adapted("mlp", config_of(method, "mlp", target_modules=["first"], init_weights=False))
    before = Snapshot("mlp", model)
    with pytest.raises(ValueError, match="are not of this adapter"):
        peft.set_peft_model_state_dict(model, load_file(tmp_path / WEIGHTS))
    before.require_unchanged()


@each_method
def test_biases_and_a_head_come_back_beside_another_adapter(method: str, tmp_path: Path) -> None:
    options = {"init_weights": False, **HEAD}
    model = adapted("mlp", config_of(method, "mlp", bias="all", **options))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert not any("modules_to_save" in key or "original_module" in key for key in tensors)
    loaded = adapted("mlp", config_of(method, "mlp", **options), "one")
    loaded.load_adapter(tmp_path, "two")
    loaded.set_adapter("two")
    assert torch.equal(output_of("mlp", loaded), output_of("mlp", model))


@each_method
def test_the_file_of_another_structure_is_refused(method: str, tmp_path: Path) -> None:
    options = {
        "surm": {"structure": "symmetric_toeplitz"},
        "hydra": {"structure": "vandermonde", "splits": 2},
        "siva": {"k": 3},
    }[method]
    ours = saved(method, "mlp", tmp_path / "ours")
    other = saved(method, "mlp", tmp_path / "other", **options)
    shutil.copy(other / WEIGHTS, ours / WEIGHTS)
    require_refused(method, ours, "do not fit")


@each_method
def test_the_file_of_another_width_is_refused(method: str, tmp_path: Path) -> None:
    """Sizes of the layers tell it where no tensor has another shape."""
    options = {"hydra": {"pool_size": 20}, "siva": {"k": 4}, "surm": {}}[method]
    model = nn.ModuleDict({"first": nn.Linear(12, 12), "second": nn.Linear(16, 4)})
    get_peft_model(model, config_of(method, "mlp", init_weights=False, **options)).save_pretrained(tmp_path)
    require_refused(method, tmp_path, "first.* must be of a layer of 16 x 12, got 12 x 12")


def test_siva_refuses_another_weight(tmp_path: Path) -> None:
    base = model_of("mlp")
    with torch.no_grad():
        base.second.weight.add_(torch.randn(base.second.weight.shape))
    get_peft_model(base, config_of("siva", "mlp", k=4, init_weights=False)).save_pretrained(tmp_path)
    require_refused("siva", tmp_path, "second.* says that the adapter was trained on another weight", k=4)


@each_method
def test_a_pickle_is_refused(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    base = Snapshot("mlp", model_of("mlp"))
    with pytest.raises(ValueError, match=r"adapter_model.bin alone"):
        PeftModel.from_pretrained(base.model, folder)
    base.require_unchanged()
    with pytest.raises(ValueError, match=r"adapter_model.bin alone"):
        type(config_of(method, "mlp")).from_pretrained(folder)


@each_method
def test_saving_a_pickle_is_warned_of(method: str, tmp_path: Path) -> None:
    model = adapted("mlp", config_of(method, "mlp"))
    with pytest.warns(match="refused when it is loaded"):
        model.save_pretrained(tmp_path, safe_serialization=False)


@each_method
def test_a_configuration_that_was_read_before_changes_nothing(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    wanted = output_of("mlp", PeftModel.from_pretrained(model_of("mlp"), folder))
    config = peft.PeftConfig.from_pretrained(folder)
    assert torch.equal(output_of("mlp", PeftModel.from_pretrained(model_of("mlp"), folder, config=config)), wanted)
    tensors = load_file(folder / WEIGHTS)
    _missing(tensors)
    save_file(tensors, folder / WEIGHTS)
    base = Snapshot("mlp", model_of("mlp"))
    with pytest.raises(ValueError, match="are missing"):
        PeftModel.from_pretrained(base.model, folder, config=peft.PeftConfig.from_pretrained(folder))
    base.require_unchanged()


@each_method
def test_an_adapter_that_waits_for_its_tensors_is_copied_and_pickled(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    model = get_peft_model(model_of("mlp"), type(config_of(method, "mlp")).from_pretrained(folder)).eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output_of("mlp", twin), output_of("mlp", model))
        twin.load_adapter(folder, "default")
        assert torch.equal(output_of("mlp", twin), output_of("mlp", PeftModel.from_pretrained(model_of("mlp"), folder)))


@each_method
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version must be at most 1, got 2"),
        ({"format_version": "x"}, "format_version must be an int, got str"),
        ({"alpha": "x"}, "alpha must be a real number"),
        ({"bias": "some"}, "bias must be one of"),
        ({"novelty": 1}, "has no option novelty, got 1"),
    ],
)
def test_configurations_that_are_not_understood_are_refused(
    method: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = saved(method, "mlp", tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    model = Snapshot("mlp", adapted("mlp", config_of(method, "mlp", init_weights=False)))
    with pytest.raises((ValueError, TypeError), match=message):
        model.model.load_adapter(folder, "fresh")
    model.require_unchanged()
    base = Snapshot("mlp", model_of("mlp"))
    with pytest.raises((ValueError, TypeError), match=message):
        PeftModel.from_pretrained(base.model, folder)
    base.require_unchanged()


@each_method
def test_a_corrupted_configuration_is_refused(method: str, tmp_path: Path) -> None:
    folder = saved(method, "mlp", tmp_path)
    (folder / "adapter_config.json").write_text('{"peft_type": "SU')
    base = Snapshot("mlp", model_of("mlp"))
    with pytest.raises(json.JSONDecodeError):
        PeftModel.from_pretrained(base.model, folder)
    base.require_unchanged()


@each_method
def test_a_refused_file_does_not_end_training(method: str, tmp_path: Path) -> None:
    """An adapter that was loaded and trained since is no fresh one."""
    folder = saved(method, "mlp", tmp_path)
    model = PeftModel.from_pretrained(model_of("mlp"), folder, is_trainable=True)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    tensors = load_file(folder / WEIGHTS)
    _missing(tensors)
    output_of("mlp", model).square().sum().backward()
    optimiser.step()
    before = Snapshot("mlp", model)
    with pytest.raises(ValueError, match="are missing"):
        peft.set_peft_model_state_dict(model, tensors)
    before.require_unchanged()
    optimiser.zero_grad()
    output_of("mlp", model).square().sum().backward()
    optimiser.step()
    assert not torch.equal(output_of("mlp", model), before.before["output"])


@each_method
def test_transformers_refuses_what_it_can(method: str, tmp_path: Path) -> None:
    """Its loader asks no tuner, but every tensor that it sets says whose it is."""
    folder = saved(method, "llama", tmp_path)
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if key.endswith(".sizes"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, folder / WEIGHTS)
    model = model_of("llama")
    with pytest.raises(ValueError, match="must be of a layer of"):
        model.load_adapter(str(folder))
    model.delete_adapter("default")
    assert torch.equal(output_of("llama", model), output_of("llama", model_of("llama")))


def test_transformers_refuses_sivas_other_weight(tmp_path: Path) -> None:
    folder = saved("siva", "llama", tmp_path)
    model = model_of("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.normal_()
    with pytest.raises(ValueError, match="another weight"):
        model.load_adapter(str(folder))


# SiVA's bases


def test_saved_bases_serve_another_weight(tmp_path: Path) -> None:
    folder = saved("siva", "mlp", tmp_path, save_bases=True)
    source = PeftModel.from_pretrained(model_of("mlp"), folder)
    wanted = [layer.get_delta_weight("default") for layer in source.modules() if isinstance(layer, StructuredLinear)]
    for low in (False, True):
        with torch.no_grad():
            base = model_of("mlp")
            base.first.weight.copy_(torch.eye(16, 12))
            base.second.weight[:, 0].add_(3)
        loaded = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=low)
        found = [layer.get_delta_weight("default") for layer in loaded.modules() if isinstance(layer, StructuredLinear)]
        assert len(found) == 2 and all(map(torch.equal, found, wanted))


def test_the_fingerprint_stays_exact_in_16_bits(tmp_path: Path) -> None:
    folder = saved("siva", "mlp", tmp_path)
    model = PeftModel.from_pretrained(model_of("mlp"), folder)
    wanted = {key: value for key, value in numbers(model).items() if key.endswith("fingerprint")}
    rounded = model.to(torch.bfloat16)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    require_equal({k: v for k, v in numbers(rounded).items() if k.endswith("fingerprint")}, wanted)
    assert all(value.dtype == torch.float32 for value in wanted.values())
    rounded.save_pretrained(tmp_path / "rounded")
    again = PeftModel.from_pretrained(model_of("mlp"), tmp_path / "rounded")
    assert torch.isfinite(output_of("mlp", again)).all()


def test_siva_on_a_meta_base_waits_for_its_weight() -> None:
    with torch.device("meta"):
        base = model_of("mlp")
    model = get_peft_model(base, SivaConfig(target_modules=["first", "second"], k=4))
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters() if p.requires_grad}
    assert set(shapes.values()) == {(4,)}


@each_method
def test_nothing_is_said_of_good_files(method: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's own
        folder = saved(method, "llama", tmp_path)
        model = PeftModel.from_pretrained(model_of("llama"), folder)
        model.load_adapter(folder, "second")
        model(input_ids=IDS)


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        (HydraConfig, {"seed": 1}, {"seed": 0}),
        (HydraConfig, {"structure": "hankel", "pool_size": 60}, {"pool_size": 60}),
        (HydraConfig, {"splits": 2, "pool_size": 60}, {"pool_size": 60}),
        (SurmConfig, {"form": "adapter", "adapter_bias": False}, {}),
        (SurmConfig, {"alpha": 5.0}, {}),
        (SurmConfig, {"structure": "toeplitz"}, {"structure": "toeplitz", "alpha": 2.0}),
    ],
)
def test_another_options_tensors_of_the_same_shapes_are_refused(
    kind: Any, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path
) -> None:
    targets = ["q_proj", "o_proj"]
    config = kind(init_weights=False, target_modules=targets, **theirs)
    get_peft_model(model_of("llama"), config).save_pretrained(tmp_path)
    model = get_peft_model(model_of("llama"), kind(target_modules=targets, **ours))
    wanted = output_of("llama", model)
    with pytest.raises(ValueError, match=r"identity says .* another structure, option or alpha"):
        model.load_adapter(str(tmp_path), "default")
    assert torch.equal(output_of("llama", model), wanted)
    loaded = PeftModel.from_pretrained(model_of("llama"), tmp_path)
    assert not torch.equal(output_of("llama", loaded), wanted)


def test_the_identity_of_an_update_is_the_same_everywhere() -> None:
    assert _origin.identity(CirculantProduct(8, 8), 1.0) == IDENTITY
    assert _origin.identity(CirculantProduct(8, 8), 2.0) != IDENTITY
    assert _origin.identity(CirculantProduct(8, 8, 4), 1.0) != IDENTITY
