"""Mixed batches: every row of a call has an adapter of its own, or none, as `adapter_names` says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from surm_kernels.peft._batch import BASE, Batch
from surm_kernels.peft.layer import adapted

_SHOWN = 10  # names of adapters that there are, in a message


@contextmanager
def hooks(tuner: Any, *args: Any, adapter_names: Sequence[str] | None = None, **options: Any) -> Iterator[None]:
    """Hands a `Batch` to every adapted layer, for the calls of this thread.

    Args:
        tuner: that of PEFT.
        args: of the model's forward or generate.
        adapter_names: the adapter of every row, "__base__" for none; nothing is done where it is None.
        options: of the model's forward or generate.

    Raises:
        TypeError: adapter_names is no list of str.
        ValueError: an adapter is not there, the model is in training mode, or adapters are merged.
    """
    if adapter_names is None:
        yield
        return
    _require_names(tuner, adapter_names)
    modules = list(adapted(tuner.model))
    _require_inference(tuner, modules)
    hook = _hook(Batch(adapter_names, _repeats(options)))
    handles: list[RemovableHandle] = []
    try:
        handles.extend(module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(batch: Batch) -> Any:
    thread = get_ident()

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if get_ident() != thread:
            return None
        names: Any = batch
        if isinstance(module, AuxiliaryTrainingWrapper):  # PEFT's own; it wants a list, of names that it has
            names = [name if name in module._adapters else BASE for name in batch.names(len(args[0]))]
        return args, {**kwargs, "adapter_names": names}

    return give


def _require_names(tuner: Any, names: Any) -> None:
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"adapter_names must be a list of str, got {names!r}")
    there = tuner.peft_config
    unknown = [repr(name) for name in dict.fromkeys(names) if name != BASE and name not in there]
    if unknown:
        more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        raise ValueError(
            f"adapter_names must be among {', '.join(list(there)[:_SHOWN])}{more} and {BASE}, got {', '.join(unknown)}"
        )


def _require_inference(tuner: Any, modules: Sequence[nn.Module]) -> None:
    """With PEFT's own messages, which its users know."""
    if tuner.training or any(module.training for module in modules):
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode. Call eval() first.")
    if any(module.merged_adapters for module in modules):
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )


def _repeats(options: dict[str, Any]) -> int:
    """How many rows generate() makes of one."""
    config = options.get("generation_config")
    given = (options.get(n, getattr(config, n, None)) for n in ("num_beams", "num_return_sequences"))
    return max((n for n in given if isinstance(n, int)), default=1)
