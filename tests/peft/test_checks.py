"""What does not fit is told before a model is changed: names of adapters, targets, sizes, and configurations."""

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import nn

from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig
from tests.peft.models import METHODS, config_of, each_method, model_of, output_of
from tests.peft.test_files import Snapshot

# Names of adapters

REFUSED = ("", "a.b", "weight", "U", "base_layer", "sizes", "first", "bias", "model", "modules_to_save", "unmerged")


@each_method
@pytest.mark.parametrize("adapter_name", [*REFUSED, "{}_fixed"])
def test_names_that_would_lose_tensors_are_refused(method: str, adapter_name: str) -> None:
    adapter_name = adapter_name.format(method)
    base = Snapshot("mlp", model_of("mlp"))
    for make in (get_peft_model, lambda model, config, name: inject_adapter_in_model(config, model, name)):
        with pytest.raises(ValueError, match="adapter_name must not"):
            make(base.model, config_of(method, "mlp"), adapter_name)
        base.require_unchanged()
        assert not hasattr(base.model, "peft_config")
    adapted = Snapshot("mlp", get_peft_model(model_of("mlp"), config_of(method, "mlp", init_weights=False)))
    with pytest.raises(ValueError, match="adapter_name must not"):
        adapted.model.add_adapter(adapter_name, config_of(method, "mlp"))
    adapted.require_unchanged()


@each_method
def test_parts_of_deep_paths_are_refused(method: str) -> None:
    base = Snapshot("llama", model_of("llama"))
    for name in ("layers", "0", "self_attn", "q_proj", "lm_head", "embed_tokens"):
        with pytest.raises(ValueError, match="adapter_name must not be a part of"):
            get_peft_model(base.model, config_of(method, "llama"), name)
    base.require_unchanged()


@each_method
def test_ordinary_names_are_accepted_beside_each_other(method: str, tmp_path: Path) -> None:
    names = ["default", "adapter_1", "en", "v2", "surm", "hydra_de", "my-task", "2", "best weights"]
    adapted = get_peft_model(model_of("mlp"), config_of(method, "mlp", init_weights=False), names[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter name '.*' should not be contained in the prefix")
        for name in names[1:]:
            adapted.add_adapter(name, config_of(method, "mlp", init_weights=False))
    adapted.save_pretrained(tmp_path)
    wanted = peft.get_peft_model_state_dict(adapted, adapter_name="default").keys()
    assert len(wanted) >= 4
    for name in names:
        assert peft.get_peft_model_state_dict(adapted, adapter_name=name).keys() == wanted, name


def test_a_name_is_refused_where_a_later_structure_has_it() -> None:
    adapted = get_peft_model(model_of("mlp"), config_of("surm", "mlp", structure="circulant"), "surm_t1")
    before = Snapshot("mlp", adapted)
    with pytest.raises(ValueError, match="got 'surm_t1'"):
        adapted.add_adapter("other", config_of("surm", "mlp", structure="toeplitz"))
    before.require_unchanged()


@each_method
def test_an_adapter_is_made_anew_under_its_name(method: str) -> None:
    """As in a notebook whose cell runs twice, of which PEFT warns."""
    options = {"target_modules": ["first"], "modules_to_save": ["second"]}
    model = model_of("mlp")
    get_peft_model(model, config_of(method, "mlp", **options))
    with pytest.warns(match="for a second time|Already found"):
        again = get_peft_model(model, config_of(method, "mlp", init_weights=False, **options))
    assert not torch.equal(output_of("mlp", again), output_of("mlp", model_of("mlp")))


# Targets and sizes

SIZES: dict[str, tuple[str, dict[str, Any], str]] = {
    "block size": ("surm", {"structure": "block_circulant", "block_size": 8}, "first.*block_size"),
    "block size of one layer": (
        "surm",
        {"structure": "block_circulant", "block_size_pattern": {"second": 3}},
        "second.*block_size",
    ),
    "splits": ("hydra", {"splits": 5}, "first.*splits"),
    "pool": ("hydra", {"pool_size_pattern": {"second": 10**6}}, "second.*pool_size"),
    "count": ("siva", {"k": 9}, "second.*k must be at most 8"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_do_not_fit_leave_the_model(kind: str) -> None:
    method, options, message = SIZES[kind]
    _require_refused(method, options, message)


@each_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["first", "activation"]}, "linear layers, got ReLU for activation"),
        ({"target_modules": ["first", "table"]}, "linear layers, got Embedding for table"),
        ({"target_modules": ["first", "norm"]}, "linear layers, got LayerNorm for norm"),
        ({"target_modules": ["first", "out_proj"]}, "attention.out_proj: .*MultiheadAttention"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": ["first"], "exclude_modules": ["first"]}, "excluded"),
    ],
)
def test_targets_that_cannot_be_adapted_leave_the_model(method: str, options: dict[str, Any], message: str) -> None:
    model = model_of("mlp")
    model.activation, model.table, model.norm = nn.ReLU(), nn.Embedding(4, 4), nn.LayerNorm(4)
    model.attention = nn.MultiheadAttention(4, 2)
    _require_refused(method, options, message, model)


def _require_refused(method: str, options: dict[str, Any], message: str, model: nn.Module | None = None) -> None:
    """By every way to make an adapter, with model and configuration as they were."""
    model = model_of("mlp") if model is None else model
    model.second.weight.requires_grad_(False)
    errors = (TypeError, ValueError)
    base, config = Snapshot("mlp", model), config_of(method, "mlp", **options)
    fields = copy.deepcopy(vars(config))
    with pytest.raises(errors, match=message):
        inject_adapter_in_model(config, model)
    base.require_unchanged()
    assert vars(config) == fields and not hasattr(model, "peft_config")
    with pytest.raises(errors, match=message):
        get_peft_model(model, config)
    base.require_unchanged()
    adapted = get_peft_model(model, config_of(method, "mlp", init_weights=False, target_modules=["first"]))
    before = Snapshot("mlp", adapted)
    with pytest.raises(errors, match=message):
        adapted.add_adapter("other", config)
    before.require_unchanged()
    for name in ("other", "default"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            with pytest.raises(errors, match=message):
                inject_adapter_in_model(config, adapted.base_model.model, name)
        before.require_unchanged()
        assert adapted.peft_config["default"] is not config


@each_method
def test_a_refused_adapter_of_transformers_can_be_added_again(method: str) -> None:
    model = model_of("llama")
    base = Snapshot("llama", model)
    with pytest.raises(TypeError, match="Embedding for model.embed_tokens"):
        model.add_adapter(config_of(method, "llama", target_modules=["q_proj", "embed_tokens"]))
    base.require_unchanged()
    model.add_adapter(config_of(method, "llama", init_weights=False))
    assert not torch.equal(output_of("llama", model), base.before["output"])


@each_method
def test_a_failure_half_way_is_undone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as running out of memory while layers are made."""
    from surm_kernels.peft.layer import StructuredLinear

    real, calls = StructuredLinear.update_layer, []

    def fail(layer: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(layer)
        if len(calls) % 2 == 0:
            raise MemoryError
        real(layer, *args, **kwargs)

    base = Snapshot("mlp", model_of("mlp"))
    adapted = Snapshot("mlp", get_peft_model(model_of("mlp"), config_of(method, "mlp", init_weights=False)))
    monkeypatch.setattr(StructuredLinear, "update_layer", fail)
    with pytest.raises(MemoryError):
        get_peft_model(base.model, config_of(method, "mlp"))
    base.require_unchanged()
    with pytest.raises(MemoryError):
        adapted.model.add_adapter("other", config_of(method, "mlp"))
    adapted.require_unchanged()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("surm", {"alpha_pattern": {"nowhere": 2.0}}),
        ("surm", {"structure": "ldr", "rank_pattern": {"nowhere": 2}}),
        ("surm", {"structure": "block_circulant", "block_size_pattern": {"nowhere": 4}}),
        ("hydra", {"pool_size_pattern": {"nowhere": 4}}),
        ("hydra", {"alpha_pattern": {"nowhere": 2.0}}),
        ("siva", {"perc_pattern": {"nowhere": 0.5}}),
    ],
)
def test_patterns_that_match_nothing_are_told(method: str, options: dict[str, Any]) -> None:
    with pytest.warns(match=f"{next(name for name in options if name != 'structure')}.*nowhere"):
        get_peft_model(model_of("mlp"), config_of(method, "mlp", **options))


@each_method
@pytest.mark.parametrize("name", ["target_modules", "modules_to_save"])
def test_names_that_match_nothing_are_told(method: str, name: str) -> None:
    options = {"target_modules": ["first"], name: ["first" if name == "target_modules" else "second", "nowhere"]}
    with pytest.warns(match=f"{name}.*nowhere"):
        get_peft_model(model_of("mlp"), config_of(method, "mlp", **options))


@each_method
def test_layers_are_chosen_by_the_names_in_a_file(method: str) -> None:
    source = get_peft_model(model_of("mlp"), config_of(method, "mlp", target_modules=["first"], init_weights=False))
    state = {k.removeprefix("base_model.model."): v for k, v in peft.get_peft_model_state_dict(source).items()}
    model = model_of("mlp")
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        inject_adapter_in_model(config_of(method, "mlp"), model, state_dict=state)
    peft.set_peft_model_state_dict(model, state)
    assert torch.equal(output_of("mlp", model), output_of("mlp", source))
    with pytest.raises(ValueError, match="are missing"):
        peft.set_peft_model_state_dict(model, dict(list(state.items())[1:]))
    assert torch.equal(output_of("mlp", model), output_of("mlp", source))


# Configurations

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("surm", {"structure": "x"}, ValueError, "structure must be one of circulant, .*, got 'x'"),
    ("surm", {"init": "x"}, ValueError, "init must be one of paper, repo, got 'x'"),
    ("surm", {"init": "repo", "structure": "toeplitz"}, ValueError, "init must be 'paper' for structure 'toeplitz'"),
    ("surm", {"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    ("surm", {"block_size": 2.0}, TypeError, "block_size must be an int, got float"),
    ("surm", {"block_size": True}, TypeError, "block_size must be an int, got bool"),
    (
        "surm",
        {"block_size": 4, "structure": "toeplitz"},
        ValueError,
        "block_size must be None for structure 'toeplitz'",
    ),
    ("surm", {"rank": 4}, ValueError, "rank must be None for structure 'circulant', got 4"),
    ("surm", {"rank": 0, "structure": "ldr"}, ValueError, "rank must be at least 1, got 0"),
    ("surm", {"form": "x"}, ValueError, "form must be one of lora, adapter, got 'x'"),
    ("surm", {"adapter_bias": 1}, TypeError, "adapter_bias must be True or False, got 1"),
    ("surm", {"block_size_pattern": {"a": "x"}}, TypeError, "block_size must be an int, got str"),
    ("hydra", {"structure": "x"}, ValueError, "structure must be one of .*, got 'x'"),
    ("hydra", {"splits": 0}, ValueError, "splits must be at least 1, got 0"),
    ("hydra", {"splits": "x"}, TypeError, "splits must be an int, got str"),
    ("hydra", {"pool_size": 0}, ValueError, "pool_size must be at least 1, got 0"),
    ("hydra", {"pool_size_pattern": {"a": 2.5}}, TypeError, "pool_size must be an int, got float"),
    ("hydra", {"fixed_fraction": 2}, ValueError, "fixed_fraction must be .*, got 2"),
    ("hydra", {"fixed_fraction": "x"}, TypeError, "fixed_fraction must be a real number, got str"),
    ("hydra", {"rank": 2}, ValueError, "rank must be None"),
    ("hydra", {"seed": "x"}, TypeError, "seed must be an int, got str"),
    ("siva", {"perc": "x"}, TypeError, "perc must be a real number, got str"),
    ("siva", {"perc": True}, TypeError, "perc must be a real number, got bool"),
    ("siva", {"perc": 0}, ValueError, "perc must be above 0 and at most 1, got 0"),
    ("siva", {"perc": float("nan")}, ValueError, "perc must be finite, got nan"),
    ("siva", {"perc_pattern": {"a": 2}}, ValueError, "perc must be above 0 and at most 1, got 2"),
    ("siva", {"rule": "x"}, ValueError, "rule must be one of variance, sum, got 'x'"),
    ("siva", {"basis": "x"}, ValueError, "basis must be one of bottom, top, random, got 'x'"),
    ("siva", {"k": -1}, ValueError, "k must be at least 1, got -1"),
    ("siva", {"k": "x"}, TypeError, "k must be an int, got str"),
    ("siva", {"save_bases": "yes"}, TypeError, "save_bases must be True or False, got 'yes'"),
    ("siva", {"precision": "x"}, ValueError, "precision must be one of float64, float32, got 'x'"),
    ("siva", {"seed": 1.5}, TypeError, "seed must be an int, got float"),
]
WRONG_OF_ALL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"alpha": True}, TypeError, "alpha must be a real number, got bool"),
    ({"alpha": "x"}, TypeError, "alpha must be a real number, got str"),
    ({"alpha": float("inf")}, ValueError, "alpha must be finite, got inf"),
    ({"alpha_pattern": {"a": None}}, TypeError, "alpha must be a real number, got NoneType"),
    ({"alpha_pattern": [1]}, TypeError, r"alpha_pattern must be a dict .*, got \[1\]"),
    ({"alpha_pattern": {1: 2.0}}, TypeError, "alpha_pattern must be a dict"),
    ({"init_weights": "no"}, TypeError, "init_weights must be True or False, got 'no'"),
    ({"bias": "x"}, ValueError, "bias must be one of none, all, .*_only, got 'x'"),
    ({"bias": ["all"]}, ValueError, r"bias must be one of none, all, .*_only, got \['all'\]"),
    ({"strategy": "x"}, ValueError, "strategy must be one of .*, got 'x'"),
    ({"target_modules": 5}, TypeError, "target_modules must be a string or a list of strings, got 5"),
    ({"target_modules": [5]}, TypeError, r"target_modules must be a string or a list of strings, got \[5\]"),
    ({"exclude_modules": 5}, TypeError, "exclude_modules must be a string or a list of strings, got 5"),
    ({"modules_to_save": "head"}, TypeError, "modules_to_save must be a list of strings, got 'head'"),
    (
        {"layers_to_transform": 1, "target_modules": "a.*"},
        ValueError,
        "layers_to_transform must be None where .* got 1",
    ),
    ({"layers_to_transform": "x"}, TypeError, "layers_to_transform must be an int or a list of ints, got 'x'"),
    ({"layers_pattern": "h"}, ValueError, "layers_pattern must be None without layers_to_transform, got 'h'"),
    ({"task_type": "x"}, ValueError, "x"),
    ({"format_version": 2}, ValueError, "format_version must be at most 1, got 2"),
    ({"format_version": 0}, ValueError, "format_version must be at least 1, got 0"),
    ({"blok_size": 2}, TypeError, "has no option blok_size, got 2"),
    ({"blok_size": None}, TypeError, "blok_size"),
]


@pytest.mark.parametrize(("method", "options", "error", "message"), WRONG)
def test_options_beyond_what_is_allowed_are_told(
    method: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        METHODS[method](**options)


@each_method
@pytest.mark.parametrize(("options", "error", "message"), WRONG_OF_ALL)
def test_options_of_all_methods_are_told(
    method: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        METHODS[method](**options)


COMMON: dict[str, Any] = {
    "exclude_modules": ["b"],
    "modules_to_save": ["head"],
    "alpha": 2.5,
    "alpha_pattern": {"a.b": 0.5},
    "init_weights": False,
    "strategy": "direct",
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
    "base_model_name_or_path": "somewhere",
    "revision": "main",
    "trainable_token_indices": [1, 2],
}
FULL = {
    "surm": SurmConfig(
        structure="block_circulant",
        block_size=4,
        block_size_pattern={"a": 2},
        form="adapter",
        adapter_bias=False,
        bias="surm_only",
        target_modules=["q", "v"],
        layers_to_transform=[1, 2],
        layers_pattern=["h"],
        **COMMON,
    ),
    "surm-ldr": SurmConfig(structure="ldr", rank=2, rank_pattern={"a": 3}, target_modules="a.*", **COMMON),
    "surm-repo": SurmConfig(init="repo", target_modules="all-linear", **COMMON),
    "hydra": HydraConfig(
        structure="low_rank",
        splits=2,
        pool_size=5,
        pool_size_pattern={"a": 6},
        fixed_fraction=0.25,
        rank=2,
        rank_pattern={"a": 3},
        seed=7,
        bias="all",
        target_modules=["q"],
        **COMMON,
    ),
    "siva": SivaConfig(
        perc=0.5,
        perc_pattern={"a": 0.25},
        rule="sum",
        k=3,
        basis="random",
        save_bases=True,
        precision="float32",
        seed=9,
        bias="siva_only",
        target_modules=("q",),
        **COMMON,
    ),
}


@pytest.mark.parametrize("kind", FULL)
def test_configurations_come_back_whole(kind: str, tmp_path: Path) -> None:
    config = FULL[kind]
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format_version"] == 1
    for cls in (type(config), peft.PeftConfig):
        found = cls.from_pretrained(tmp_path)
        assert type(found) is type(config) and found == config and found.to_dict() == config.to_dict()
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(twin) is type(config) and twin == config and twin is not config
        assert twin.patterns == config.patterns and twin.peft_type is config.peft_type
    different = type(config)(**{**config.to_dict(), "alpha": 3.0})
    assert different != config
    assert peft.get_peft_config(config.to_dict()) == config


@each_method
def test_a_configuration_alone_in_a_folder_is_accepted(method: str, tmp_path: Path) -> None:
    config_of(method, "mlp").save_pretrained(tmp_path)
    config = METHODS[method].from_pretrained(tmp_path)
    assert get_peft_model(model_of("mlp"), config).peft_config["default"] is config


@each_method
def test_options_of_newer_pefts_that_are_not_in_use_are_left_out(method: str, tmp_path: Path) -> None:
    config_of(method, "mlp").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "novelty": None}))
    with pytest.warns(match="novelty"):
        assert METHODS[method].from_pretrained(tmp_path) == config_of(method, "mlp")


@pytest.mark.parametrize("value", [["circulant"], 3, None])
def test_a_structure_that_is_no_name_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"structure must be one of circulant, .*, got"):
        SurmConfig(structure=value)
