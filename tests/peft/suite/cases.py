"""What of our methods PEFT's own tests try: rows like those of their lists in test_custom_models.py."""

from dataclasses import dataclass
from typing import Any

from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig


@dataclass(kw_only=True)
class SivaWithBases(SivaConfig):
    """For tests that load an adapter over another model, which without its bases SiVA refuses."""

    k: int | None = 8
    save_bases: bool = True


#: Configurations that have to do with their defaults.
CONFIGS: tuple[type, ...] = (SurmConfig, HydraConfig, SivaWithBases)

#: By the name that the tests have for it, a configuration and its options.
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "SURM circulant": (SurmConfig, {}),
    "SURM toeplitz": (SurmConfig, {"structure": "toeplitz"}),
    "SURM kronecker": (SurmConfig, {"structure": "kronecker", "alpha": 10.0}),
    "SURM ldr": (SurmConfig, {"structure": "ldr", "rank": 2}),
    "SURM block_circulant": (SurmConfig, {"structure": "block_circulant"}),
    "HyDRA toeplitz": (HydraConfig, {"splits": 2}),
    "HyDRA low_rank": (HydraConfig, {"structure": "low_rank", "splits": 2, "rank": 1}),
    "SiVA": (SivaConfig, {}),
}

#: A model of PEFT's tests and what of it is adapted.
_TARGETS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin1"], "alpha": 4.0}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0", "lin1"], "modules_to_save": ["lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"], "trainable_token_indices": {"emb": [0, 10]}}),
)
#: Kinds that try all of these; the others try the first two.
_WHOLE = ("SURM circulant", "HyDRA toeplitz", "SiVA")


def single() -> list[tuple[str, str, type, dict[str, Any]]]:
    """Name, model, configuration and options, as in TEST_CASES."""
    return [
        (f"{model} {number} {kind}", model, config, {**_fitting(options, targets), **targets})
        for kind, (config, options) in KINDS.items()
        for number, (model, targets) in enumerate(_TARGETS[: None if kind in _WHOLE else 2], 1)
    ]


def _fitting(options: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
    """The Conv1D of PEFT's model has one output, which cannot be split."""
    return {**options, "splits": 1} if "splits" in options and "conv1d" in targets["target_modules"] else options


def double() -> list[tuple[str, str, type, dict[str, Any], dict[str, Any]]]:
    """Name, method, configuration and the options of two adapters, as in MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES."""
    return [
        (
            f"{kind} {name}",
            kind.split()[0].lower(),
            config,
            {**options, "target_modules": ["lin0"], "init_weights": False},
            {**options, "target_modules": [second], "init_weights": False},
        )
        for kind, (config, options) in KINDS.items()
        for name, second in (("Same", "lin0"), ("Different", "lin1"))
    ]


def mixed() -> list[tuple[str, Any, Any]]:
    """Name and the configurations of two adapters, as in MIXED_ADAPTER_TEST_CASES."""
    return [
        (
            f"{kind} mixed adapter",
            *(config(**{**options, "target_modules": ["lin0"], "init_weights": False, "alpha": a}) for a in (8.0, 4.0)),
        )
        for kind, (config, options) in KINDS.items()
    ]
