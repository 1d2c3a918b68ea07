"""What an adapter will change, found on copies before anything is changed: which layers, by which structures."""

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.transformers_weight_conversion import (
    convert_peft_config_for_transformers,
    get_model_conversion_mapping,
)
from torch import Tensor, nn

from surm_kernels import siva
from surm_kernels.peft._base_layers import is_quantised, matrix_of, sizes_of
from surm_kernels.peft.config import SivaConfig, UpdateConfig
from surm_kernels.structures import Siva, Structure

#: Names of tensors and modules of our layers, which an adapter must not have: saving tells adapters by such parts.
_OURS = ("base_layer", "weight", "sizes", "fingerprint", "U", "V")


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
    found = {
        path: (module, _sizes(tuner.prefix, model, path, module))
        for path, module in _targets(tuner, model, config, state)
    }
    _tell_unmatched_patterns(config, list(found))
    return {path: _plan(config, path, module, sizes) for path, (module, sizes) in found.items()}


def require_name(model: nn.Module, adapter_name: str) -> None:
    """An adapter's name that PEFT can tell from the parts of parameters' names when it saves the other adapters."""
    if not adapter_name or "." in adapter_name:
        raise ValueError(f"adapter_name must not be empty and have no dot in it, got {adapter_name!r}")
    parts = {part for path, module in model.named_modules() if not _is_inside(model, path) for part in path.split(".")}
    parts.update(name for name, _ in _own_tensors(model))
    if adapter_name in parts or adapter_name in _OURS:
        raise ValueError(
            f"adapter_name must not be a part of a parameter's name in the model, got {adapter_name!r}: saving another "
            f"adapter would leave out what is below it"
        )


def _is_inside(model: nn.Module, path: str) -> bool:
    """Whether a path is that of a part of an adapted layer other than its base."""
    parent: Any = model
    for part in path.split("."):
        if isinstance(parent, BaseTunerLayer) and part != "base_layer":
            return True
        parent = getattr(parent, part, None)
    return False


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if not _is_inside(model, path):
            yield from module.named_parameters(recurse=False)
            yield from module.named_buffers(recurse=False)


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


def _sizes(prefix: str, model: nn.Module, path: str, module: nn.Module) -> Any:
    """Those of a target, which must be a linear layer that its parent calls and no other of our methods adapts."""
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise TypeError(
            f"target_modules must be layers that are called, got {path}: torch.nn.MultiheadAttention reads its weight "
            f"itself, so an update of it would do nothing"
        )
    method = getattr(module, "prefix", prefix)
    if method != prefix:
        raise TypeError(
            f"target_modules must be layers with adapters of one method, got {path}, which has such of "
            f"{method.removesuffix('_').upper()}"
        )
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    sizes = sizes_of(base)
    if sizes is None:
        raise TypeError(f"target_modules must be linear layers, got {type(base).__name__} for {path}")
    return sizes


def _plan(config: UpdateConfig, path: str, module: nn.Module, sizes: Any) -> Plan:
    try:
        if isinstance(config, SivaConfig):
            return _siva(config, path, module)
        return Plan(config.structure_of(path, *sizes), {})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _siva(config: SivaConfig, path: str, module: nn.Module) -> Plan:
    """Siva's bases, from the weight of the base as it was before merging."""
    base: Any = module
    weight = None
    if isinstance(module, BaseTunerLayer):
        base, weight = module.get_base_layer(), getattr(module, "unmerged", None)
        if module.merged and weight is None:
            raise ValueError("an adapter of another kind is merged into the weight; unmerge it first")
    if is_quantised(base):
        raise TypeError(f"the weight of {type(base).__name__} is quantised, and codes have no singular vectors")
    matrix = matrix_of(base, base.weight if weight is None else weight).detach()
    U, V = siva.bases(
        matrix,
        perc=config.value("perc", path),
        k=config.k,
        basis=config.basis,
        rule=config.rule,
        precision=config.precision,
        seed=config.seed,
    )
    rows, columns = matrix.shape
    structure = Siva(columns, rows, U.shape[1], config.basis, config.precision, config.seed)
    return Plan(structure, {"U": U, "V": V})


def _tell_unmatched_patterns(config: UpdateConfig, paths: list[str]) -> None:
    """Warns of overrides for layers that are not there; PEFT does so for those of rank and alpha."""
    for name, pattern in config.patterns.items():
        if name in ("rank_pattern", "alpha_pattern"):
            continue
        unmatched = [key for key in pattern if not any(_matches(key, path) for path in paths)]
        if unmatched:
            warnings.warn(f"{name}: no layer that is adapted is called {', '.join(unmatched)}", stacklevel=5)


def _matches(pattern: str, path: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", path) is not None
