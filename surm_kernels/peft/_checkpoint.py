"""What the tensors of an adapter must be to be loaded, and putting a model back where they are not."""

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from torch import Tensor, nn

from surm_kernels import siva
from surm_kernels.peft.config import UpdateConfig
from surm_kernels.peft.layer import StructuredLinear

_PREFIX = "base_model.model."
_SHOWN = 3  # names in a message


class Trainability:
    """Which parameters of a model are trainable, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


def require_fitting(model: nn.Module, config: UpdateConfig, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Raises ValueError if tensors are not those of the adapter; one that was only made to be loaded is removed then.

    Args:
        model: with the adapter, trained or not.
        config: of the adapter.
        adapter_name: of the adapter.
        state: the tensors, by their names in the model.
    """
    trained = [t for m in model.modules() if isinstance(m, StructuredLinear) for t in m.trained(adapter_name)]
    try:
        _require_fitting(model, adapter_name, state)
    except ValueError:
        tuner = model.base_model if isinstance(model, PeftModel) else None
        if isinstance(tuner, BaseTuner) and config.awaits_tensors and all(t.waits() for t in trained):
            undo(tuner, tuner.model, adapter_name)
        raise
    config.awaits_tensors = False
    for holder in trained:
        holder.start = None


def _require_fitting(model: nn.Module, adapter_name: str, state: dict[str, Tensor]) -> None:
    everything = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    wanted = _filter_state_dict_by_key_prefixes(everything, prefixes)
    given = {key if key in everything else key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}
    _tell("are missing", (key for key in wanted if key not in given))
    _tell("are not of this model", (key for key in given if key not in everything))
    for key, ours in wanted.items():
        theirs = given[key]
        if theirs.shape != ours.shape:
            raise ValueError(f"{_start()}: {key} must have shape {tuple(ours.shape)}, got {tuple(theirs.shape)}")
        if theirs.is_floating_point() != ours.is_floating_point():
            raise ValueError(f"{_start()}: {key} must be of a type like {ours.dtype}, got {theirs.dtype}")
    for key, ours in wanted.items():
        if key.endswith(".sizes") and not ours.is_meta and ours.tolist() != given[key].tolist():
            raise ValueError(
                f"{_start()}: {key.rpartition('.')[0]} must be of a layer of {_by(ours)}, got {_by(given[key])}"
            )
        if key.endswith(".fingerprint"):
            _require_fingerprint(key, ours, given)


def _require_fingerprint(key: str, ours: Tensor, given: dict[str, Tensor]) -> None:
    """The same bases, by their fingerprint, unless the tensors bring theirs."""
    place = key.removesuffix("fingerprint")
    if ours.is_meta or all(place + name in given for name in ("U", "V")):
        return
    change = siva.difference(ours, given[key])
    if not change <= siva.TOLERANCE:
        raise ValueError(
            f"{_start()}: {key} says that the adapter was trained on another weight than this model has: the update "
            f"would change by about {100 * change:.2g} %. Load it over the same weights in the type of training, or "
            f"save it with save_bases=True."
        )


def undo(tuner: Any, model: nn.Module, adapter_name: str) -> None:
    """Takes an adapter off the model; with the last one the model is as it was before the first."""
    tuner.peft_config.pop(adapter_name, None)
    for path, layer in [(p, m) for p, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        if adapter_name in layer._all_available_adapter_names():
            layer.delete_adapter(adapter_name)
        if not layer._all_available_adapter_names():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if not tuner.peft_config:
        model.__dict__.pop("peft_config", None)
        if tuner._trainable_before is not None:
            tuner._trainable_before.restore()


def _start() -> str:
    return "the adapter's tensors do not fit"


def _by(sizes: Tensor) -> str:
    return " x ".join(map(str, sizes.tolist()))


def _tell(what: str, keys: Iterable[str]) -> None:
    names = sorted(keys)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{_start()}: {', '.join(names[:_SHOWN])}{more} {what}")
