"""Checkpoints of a model before its layers were adapted: loaded into the adapted model, and made of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surm_kernels.nn._base import frozen
from surm_kernels.nn.adapted_linear import AdaptedLinear


@dataclass(frozen=True)
class LoadedState:
    """What `load_plain_state_dict` did, by names.

    Attributes:
        loaded: of the plain model, what was loaded.
        kept: of the adapted model, what the plain one has not and stayed as it was: the updates.
        prepared: of layers, those whose constants were prepared anew, from another weight than before.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    prepared: tuple[str, ...]


def load_plain_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> LoadedState:
    """Loads the state of the plain model into the one with adapted layers: `layer.weight` to `layer.base.weight`.

    Strict: all of the plain model has to be there, in its shape, and nothing else; otherwise nothing is loaded. Updates
    stay as they are, and constants that a structure prepares from the weight are those of the new one.

    Args:
        model: with AdaptedLinear layers in it, or such a layer.
        state_dict: of the plain model.
        assign: as of torch.nn.Module.load_state_dict.

    Raises:
        ValueError: names or shapes do not fit, or an update was trained on the constants of another weight.
    """
    names = {key: plain for key, plain in _plain_names(model) if plain is not None}
    _require_fit(model, names, state_dict)
    renamed = {key: state_dict[plain] for key, plain in names.items()}
    others = _of_another_weight(model, renamed)
    for name, layer in others.items():
        if layer.structure.dense(*layer.structured_parameters()).any():
            raise ValueError(
                f"state_dict has another weight for {name or 'the layer'} than its update was trained on; "
                f"call its reset_parameters() first"
            )
    model.load_state_dict(renamed, strict=False, assign=assign)
    for layer in others.values():
        layer.prepare_constants()
    kept = tuple(key for key, plain in _plain_names(model) if plain is None)
    return LoadedState(tuple(names.values()), kept, tuple(others))


@torch.no_grad()
def plain_state_dict(model: nn.Module, *, merged: bool = False) -> dict[str, Tensor]:
    """The state of the plain model: of adapted layers the frozen weight, or where `merged`, that with its update.

    Args:
        model: with AdaptedLinear layers in it, or such a layer.
        merged: whether the plain model is to have the map of the adapted one.

    Raises:
        ValueError: merged, and the base of a layer is not a plain torch.nn.Linear.
    """
    state = model.state_dict()
    if merged:
        for name, layer in _adapted(model):
            state[_joined(name, "base.weight")] = layer.merged_weight()
    return {plain: state[key] for key, plain in _plain_names(model) if plain is not None}


def _adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AdaptedLinear):
            yield name, module


def _plain_names(model: nn.Module) -> Iterator[tuple[str, str | None]]:
    """Every name in the model's state with that of the plain model, None for what an update brought."""
    layers = [name for name, _ in _adapted(model)]
    for key in model.state_dict():
        if key.rpartition(".")[0] in layers:
            yield key, None
            continue
        plain = key
        for name in reversed(layers):  # inner ones first
            if plain.startswith(start := _joined(name, "base.")):
                plain = _joined(name, plain.removeprefix(start))
        yield key, plain


def _require_fit(model: nn.Module, names: Mapping[str, str], state_dict: Mapping[str, Tensor]) -> None:
    own, known = model.state_dict(), set(names.values())
    faults = {
        "missing": [plain for plain in names.values() if plain not in state_dict],
        "unknown": [key for key in state_dict if key not in known],
        "of another shape": [
            f"{plain} {tuple(state_dict[plain].shape)}, wanted {tuple(own[key].shape)}"
            for key, plain in names.items()
            if plain in state_dict and state_dict[plain].shape != own[key].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{kind}: {', '.join(entries)}" for kind, entries in faults.items() if entries)
        raise ValueError(f"state_dict must be that of the plain model, got one with {found}")


def _of_another_weight(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, AdaptedLinear]:
    """The layers with constants that a state has another weight for."""
    others = {}
    for name, layer in _adapted(model):
        tensors = frozen(layer.base)
        if not layer.structure.constants or tensors is None or tensors.weight.is_meta:
            continue
        if not torch.equal(state[_joined(name, "base.weight")].to(tensors.weight), tensors.weight):
            others[name] = layer
    return others


def _joined(name: str, rest: str) -> str:
    return f"{name}.{rest}" if name else rest
