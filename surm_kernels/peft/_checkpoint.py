"""What the tensors of an adapter must be to be loaded, and putting a model back where they are not."""

from collections.abc import Iterable, Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from surm_kernels.peft import _origin
from surm_kernels.peft.config import UpdateConfig
from surm_kernels.peft.layer import StructuredLinear

_PREFIX = "base_model.model."
_FSDP = "_fsdp_wrapped_module."  # in names of modules, not of their state
_SHOWN = 3  # names in a message


class Trainability:
    """Which parameters of a module are trainable, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]

    def restore(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


class Before:
    """A model before an adapter, to be put back where the adapter is refused."""

    def __init__(self, tuner: Any, model: nn.Module, adapter_name: str) -> None:
        self.adapter_name = adapter_name
        self._tuner, self._model = tuner, model
        self._had = any(adapter_name in _adapters_of(layer) for _, layer in _tuner_layers(model))
        self._trainability = Trainability(model)
        self._targeted = list(tuner.targeted_module_names)

    def restore(self) -> None:
        """Takes the adapter off; one that the model had before under the same name stays."""
        if not self._had:
            _remove(self._model, self.adapter_name)
        self._trainability.restore()
        self._tuner.targeted_module_names[:] = self._targeted
        self._tuner.peft_config.pop(self.adapter_name, None)
        if not self._tuner.peft_config:
            vars(self._model).pop("peft_config", None)
            if vars(self._model).get("_hf_peft_config_loaded"):  # of transformers' own adapters
                self._model._hf_peft_config_loaded = False  # type: ignore[assignment]


def _remove(model: nn.Module, adapter_name: str) -> None:
    """Takes an adapter off every layer, and layers that have no adapter then out of the model."""
    wrappers = [(p, m) for p, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    for path, wrapper in wrappers:
        left = [name for name in wrapper.active_adapters if name != adapter_name]
        wrapper.delete_adapter(adapter_name, new_active_adapters=left)
        if not wrapper._get_available_adapters():
            inner = getattr(wrapper, "token_adapter", None)
            _replace(model, path, wrapper.original_module if inner is None else inner.get_base_layer())
    for path, layer in list(_tuner_layers(model)):
        if adapter_name in _adapters_of(layer):
            layer.delete_adapter(adapter_name)
            if not _adapters_of(layer):
                _replace(model, path, layer.get_base_layer())


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _tuner_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))


def _adapters_of(layer: BaseTunerLayer) -> set[str]:
    return layer._all_available_adapter_names()


def require_modules(model: nn.Module, config: UpdateConfig, adapter_name: str) -> None:
    """Raises ValueError if the file of the configuration lacks a module that is saved whole.

    PEFT looks for these before it asks the tuner. Only the ends of names are compared, since PEFT may rename tensors.
    """
    if not config.saved_shapes:
        return
    given = {".".join(key.split(".")[-2:]) for key in config.saved_shapes}
    wanted = [f"{path}.{key}" for path, _, key, _ in _saved_whole(model, adapter_name)]
    _tell("are missing", (key for key in wanted if ".".join(key.split(".")[-2:]) not in given))


def _saved_whole(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Any, str, str]]:
    """Of modules that are trained whole: path and module, and the names of every tensor in the file and in memory."""
    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for key, name in module.adapter_state_dict_load_map(adapter_name).items():
                yield path, module, key, name


def biases_outside_wrappers(model: nn.Module, biases: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases without those of modules that are saved whole, which have them already."""
    wrappers = [path for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    wrapped = tuple(path.removeprefix(_FSDP) + "." for path in wrappers)
    return {key: value for key, value in biases.items() if not key.startswith(wrapped)}


def require_fitting(
    model: nn.Module, config: UpdateConfig, adapter_name: str, state: dict[str, Tensor], biases: Iterable[str]
) -> None:
    """Raises ValueError if tensors are not those of the adapter; one that was only made to be loaded is removed then.

    Args:
        model: with the adapter, trained or not.
        config: of the adapter.
        adapter_name: of the adapter.
        state: the tensors, by their names in the model.
        biases: names of the model's biases that the adapter trains.
    """
    tuner: Any = model.base_model if isinstance(model, PeftModel) else None
    trained = [t for m in model.modules() if isinstance(m, StructuredLinear) for t in m.trained(adapter_name)]
    try:
        _require_fitting(model, adapter_name, state, biases)
    except ValueError:
        before = getattr(tuner, "before", None)
        if before is not None and before.adapter_name == adapter_name and all(t.waits() for t in trained):
            before.restore()
        raise
    config.awaits_tensors = False
    if tuner is not None:
        tuner.before = None
    for holder in trained:
        holder.start = None


def _require_fitting(
    model: nn.Module, adapter_name: str, state: dict[str, Tensor], trained_biases: Iterable[str]
) -> None:
    everything = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    wanted = _filter_state_dict_by_key_prefixes(everything, prefixes)
    wanted |= {key: everything[key] for key in trained_biases}
    wanted |= {key: everything[key] for key in (f"{p}.{name}" for p, _, _, name in _saved_whole(model, adapter_name))}
    given = {key if key in everything else key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}
    biases = biases_outside_wrappers(model, {key: t for key, t in everything.items() if key.endswith("bias")})
    starts = _embeddings(model)
    allowed = (*wanted, *biases, *(key for key in everything if key.startswith(starts)))
    _tell("are missing", wanted.keys() - given.keys())
    _tell("are not of this adapter", given.keys() - set(allowed))
    for key, ours in wanted.items():
        _require_origin(key, ours, given)
    for key, theirs in given.items():
        ours = everything[key]
        if theirs.shape != ours.shape:
            raise ValueError(f"{_origin.START}: {key} must have shape {tuple(ours.shape)}, got {tuple(theirs.shape)}")
        if theirs.is_floating_point() != ours.is_floating_point():
            raise ValueError(f"{_origin.START}: {key} must be of a type like {ours.dtype}, got {theirs.dtype}")


def _embeddings(model: nn.Module) -> tuple[str, ...]:
    """Starts of the names of embeddings, which PEFT saves where they were made larger."""
    found = [getattr(model, f"get_{kind}_embeddings", lambda: None)() for kind in ("input", "output")]
    return tuple(path + "." for path, module in model.named_modules() if any(module is each for each in found))


def _require_origin(key: str, ours: Tensor, given: dict[str, Tensor]) -> None:
    """The same sizes of layers and structures, and the same bases unless the tensors bring theirs."""
    place, _, name = key.rpartition(".")
    theirs = given[key]
    if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
        return
    if name == "sizes":
        _origin.require_sizes(place, ours, theirs)
    if name == "identity":
        _origin.require_identity(key, ours, theirs)
    if name == "fingerprint" and not all(f"{place}.{basis}" in given for basis in ("U", "V")):
        _origin.require_fingerprint(key, ours, theirs)


def _tell(what: str, keys: Iterable[str]) -> None:
    names = sorted(keys)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{_origin.START}: {', '.join(names[:_SHOWN])}{more} {what}")
