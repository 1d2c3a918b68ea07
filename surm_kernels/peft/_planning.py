"""What an adapter will change, found on copies before anything is changed: which layers, by which structures."""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.transformers_weight_conversion import (
    convert_peft_config_for_transformers,
    get_model_conversion_mapping,
)
from torch import Tensor, nn

from surm_kernels._decompositions import bases_of, decomposing
from surm_kernels.peft._base_layers import matrix_of, sizes_of
from surm_kernels.peft._base_weight import gathered_weight
from surm_kernels.peft.config import HydraConfig, SivaConfig, SurmConfig, UpdateConfig
from surm_kernels.peft.layer import StructuredLinear
from surm_kernels.structures import Siva, Structure

#: Names of tensors and modules of our layers and of PEFT's wrappers, which an adapter must not have: saving tells
#: adapters by such parts.
_OURS = ("base_layer", "weight", "sizes", "identity", "fingerprint", "U", "V", "unmerged")
_PEFTS = ("base_model", "model", "modules_to_save", "original_module", "token_adapter", "trainable_tokens_delta")

#: Of which PEFT asks for those that a task has, there or not.
_HEADS = ("classifier", "score", "qa_outputs")


class Plan(NamedTuple):
    """Of one layer."""

    structure: Structure
    constants: dict[str, Tensor]


def plans(tuner: Any, model: nn.Module, adapter_name: str, state: dict[str, Tensor] | None) -> dict[str, Plan]:
    """By path, what an adapter makes of every layer that it targets.

    Args:
        tuner: that of PEFT, which knows how names are matched, with the adapter's configuration.
        model: to be adapted; it and the configuration stay as they are.
        adapter_name: of the adapter.
        state: tensors whose names say which layers are targeted, in place of the configuration.

    Raises:
        ValueError: the adapter's name, a size or an option does not fit; it names the layer's path.
        TypeError: a target is no linear layer.
    """
    require_name(model, adapter_name)
    config: UpdateConfig = tuner.peft_config[adapter_name]
    kind = tuner.layer_class(config)
    found = {path: (m, _sizes(model, path, m, kind)) for path, m in _targets(tuner, model, config, state)}
    _tell_unmatched_patterns(config, list(found))
    if found:  # of none PEFT tells
        _tell_unmatched_names(config, [path for path, _ in model.named_modules()])
    with decomposing(len(found)) if isinstance(config, SivaConfig) else nullcontext():
        planned = {path: _plan(config, path, module, sizes) for path, (module, sizes) in found.items()}
    _require_apart(tuner, planned)
    return planned


def require_name(model: nn.Module, adapter_name: str) -> None:
    """An adapter's name that PEFT can tell from the parts of parameters' names when it saves the other adapters."""
    if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
        raise ValueError(f"adapter_name must not be empty and have no dot in it, got {adapter_name!r}")
    if adapter_name in (*_OURS, *_PEFTS) or adapter_name in _own_names(model):
        raise ValueError(
            f"adapter_name must not be a part of a parameter's name in the model, got {adapter_name!r}: saving another "
            f"adapter would leave out what is below it"
        )


def _require_apart(tuner: Any, planned: dict[str, Plan]) -> None:
    """No adapter called as a container of the trained tensors of all adapters."""
    parameters = {name for plan in planned.values() for name in plan.structure.parameter_shapes()}
    containers = {tuner.prefix + name for name in (*parameters, "fixed")}
    for adapter_name in tuner.peft_config:
        if adapter_name in containers:
            raise ValueError(
                f"adapter_name must not be a part of a parameter's name in the model, got {adapter_name!r}"
            )


def _own_names(module: nn.Module) -> Iterator[str]:
    """Of the parameters, buffers and modules of a model, without what adapters have added."""
    yield from (name for name, _ in module.named_parameters(recurse=False))
    yield from (name for name, _ in module.named_buffers(recurse=False))
    for name, child in module.named_children():
        is_added = (isinstance(module, BaseTunerLayer) and name != "base_layer") or (
            isinstance(module, AuxiliaryTrainingWrapper) and name != "original_module"
        )
        if not is_added:
            yield name
            yield from _own_names(child)


def _targets(
    tuner: Any, model: nn.Module, config: UpdateConfig, state: dict[str, Tensor] | None
) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of every layer that PEFT will hand over to be adapted."""
    adapted = [path + "." for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    own = [(p, m) for p, m in model.named_modules() if p and not p.startswith(tuple(adapted))]
    if state is not None:
        paths = {key.rsplit("." + tuner.prefix, 1)[0].removeprefix("_orig_mod.") for key in state}
        yield from ((path, module) for path, module in own if path.removeprefix("_orig_mod.") in paths)
        return
    config = copy.deepcopy(config)
    if hasattr(getattr(model, "config", None), "model_type"):
        convert_peft_config_for_transformers(config, model=model, conversions=get_model_conversion_mapping(model))
    config = tuner._prepare_adapter_config(config, tuner.get_model_config(model))
    config = _maybe_include_all_linear_layers(config, model)
    yield from ((path, module) for path, module in own if tuner._check_target_module_exists(config, path))


def _require_called(model: nn.Module, path: str, kind: type[StructuredLinear]) -> None:
    """A layer whose parent calls it, or reads a weight that can have the update in it."""
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise TypeError(
            f"target_modules must be layers that are called, got {path}: torch.nn.MultiheadAttention reads its weight "
            f"itself, so an update of it would do nothing"
        )
    fast = isinstance(parent, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled()
    if fast and not kind.in_one_product:
        raise TypeError(
            f"target_modules must be layers that are called, got {path}: torch.nn.TransformerEncoderLayer reads its "
            f"weight itself in evaluation, unless torch.backends.mha.set_fastpath_enabled(False) is called before"
        )


def _sizes(model: nn.Module, path: str, module: nn.Module, kind: type[StructuredLinear]) -> Any:
    """Those of a target, which must be a linear layer that its parent calls and no adapter of another kind is on."""
    _require_called(model, path, kind)
    _require_kind(path, module, kind)
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    sizes = sizes_of(base)
    if sizes is None:
        raise TypeError(f"target_modules must be linear layers, got {type(base).__name__} for {path}")
    return sizes


def _require_kind(path: str, module: nn.Module, wanted: type[nn.Module]) -> None:
    """A layer that has no adapter of ours yet, or some of the same method and form."""
    if isinstance(module, StructuredLinear) and type(module) is not wanted:
        raise ValueError(
            f"{path}: adapters of one layer must be of one method and form, got {wanted.__name__} beside "
            f"{type(module).__name__}"
        )


def _plan(config: UpdateConfig, path: str, module: nn.Module, sizes: Any) -> Plan:
    try:
        if isinstance(config, SivaConfig):
            return _siva(config, path, module)
        assert isinstance(config, (SurmConfig, HydraConfig))
        return Plan(config.structure_of(path, *sizes), {})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _siva(config: SivaConfig, path: str, module: nn.Module) -> Plan:
    """Siva's bases, from the weight of the base as it was before merging."""
    matrix = None
    base: Any = module
    if isinstance(module, BaseTunerLayer):
        base, weight = module.get_base_layer(), getattr(module, "unmerged", None)
        if module.merged and weight is None:
            raise ValueError("an adapter of another kind is merged into the weight; unmerge it first")
        matrix = None if weight is None else matrix_of(base, weight)
    U, V = bases_of(
        gathered_weight(base) if matrix is None else matrix,
        perc=config.value("perc", path),
        k=_count(config, path),
        basis=config.basis,
        rule=config.rule,
        precision=config.precision,
        seed=config.seed,
    )
    rows, columns = len(U), len(V)
    structure = Siva(columns, rows, U.shape[1], config.basis, config.precision, config.seed)
    return Plan(structure, {"U": U, "V": V})


def _count(config: SivaConfig, path: str) -> int | None:
    """k as configured, or as it is in a file that has the bases."""
    saved = config.saved_shapes.get(f"base_model.model.{path}.siva_fixed.U")
    return config.k if saved is None else saved[-1]


def _tell_unmatched_patterns(config: UpdateConfig, paths: list[str]) -> None:
    """Warns of overrides for layers that are not there; PEFT does so for those of rank and alpha."""
    for name, pattern in config.patterns.items():
        if name in ("rank_pattern", "alpha_pattern"):
            continue
        unmatched = [key for key in pattern if not any(_matches(key, path) for path in paths)]
        if unmatched:
            warnings.warn(f"{name}: no layer that is adapted is called {', '.join(unmatched)}", stacklevel=5)


def _tell_unmatched_names(config: UpdateConfig, paths: list[str]) -> None:
    """Warns of layers and modules that are named one by one and are not there, where others are."""
    for name in ("target_modules", "modules_to_save"):
        given = getattr(config, name)
        wanted = set(given or ()) - set(_HEADS) if not isinstance(given, str) else set()
        missing = sorted(key for key in wanted if not any(f".{path}".endswith(f".{key}") for path in paths))
        if missing:
            warnings.warn(f"{name}: the model has no module called {', '.join(missing)}", stacklevel=5)


def _matches(pattern: str, path: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", path) is not None
