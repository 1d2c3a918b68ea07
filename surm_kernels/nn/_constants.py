"""What the structure of an adapted layer never trains: constants in buffers, with a fingerprint to tell them apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surm_kernels import _checks, siva
from surm_kernels.nn._base import frozen
from surm_kernels.structures import Structure


class ConstantBuffers(nn.Module):
    """A module with the constants of its structure, and how they are moved, saved and loaded.

    A state without them has their fingerprint. It is refused where the fingerprint is another than ours, unless it
    brings the weight that gives its constants: then they are prepared from that.
    """

    base: nn.Module
    structure: Structure
    save_constants: bool
    fingerprint: Tensor

    def register_constants(self, given: dict[str, Tensor] | None, device: torch.device | None, dtype: Any) -> None:
        """Makes buffers of the constants that are given, or prepared from the weight of the base."""
        constants = self._prepared() if given is None else given
        shapes, names = self.structure.parameter_shapes(), self.structure.constants
        if set(constants) != set(names):
            raise ValueError(f"constants must have the names {', '.join(names) or 'none'}, got {sorted(constants)}")
        for name in names:
            _checks.require_shape(name, constants[name], shapes[name], f"as {self.structure} has it")
            self.register_buffer(name, constants[name].detach().to(device, dtype), persistent=self.save_constants)
        if names:
            self.register_buffer("fingerprint", self.structure.fingerprint(*self._constants()))

    def _prepared(self) -> dict[str, Tensor]:
        names = self.structure.constants
        if not names:
            return {}
        tensors = frozen(self.base)
        if tensors is None:
            raise ValueError(f"constants must be given where base is not a plain torch.nn.Linear, for {self.structure}")
        return dict(zip(names, self.structure.prepare(tensors.weight), strict=True))

    def _constants(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.structure.constants]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        exact = self.fingerprint if self.structure.constants else None
        super()._apply(fn, recurse)
        if exact is not None and not exact.is_meta:  # moved, but not rounded
            self.fingerprint = exact.to(self.fingerprint.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        names = self.structure.constants
        if names and all(prefix + name in state_dict for name in names):
            if not self.save_constants:  # not expected, but better than our own
                self._take_constants(state_dict, prefix)
        elif names and prefix + "fingerprint" in state_dict and not self.fingerprint.is_meta:
            change = self._change(state_dict[prefix + "fingerprint"], state_dict.get(prefix + "base.weight"))
            if not change <= siva.TOLERANCE:
                errors: list[str] = lists[-1]
                errors.append(
                    f"{prefix}fingerprint says that the update was trained on another {' and '.join(names)} than this "
                    f"base weight gives: the update would change by about {100 * change:.2g} %. Load it over the same "
                    f"weight in the same type, or save it with save_constants=True."
                )
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    @torch.no_grad()
    def _take_constants(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Moves the constants of a state to the buffers, unless their shapes are others, which is told later."""
        names = self.structure.constants
        if all(state_dict[prefix + name].shape == getattr(self, name).shape for name in names):
            for name in names:
                getattr(self, name).copy_(state_dict.pop(prefix + name))

    @torch.no_grad()
    def _change(self, fingerprint: Tensor, weight: Tensor | None) -> float:
        """How far a fingerprint is from ours, or from that of a new weight, whose constants are then taken over."""
        change = siva.difference(self.fingerprint, fingerprint)
        own = frozen(self.base)
        if change <= siva.TOLERANCE or weight is None or own is None or weight.shape != own.weight.shape:
            return change
        prepared = self.structure.prepare(weight.to(own.weight))
        change = siva.difference(self.structure.fingerprint(*prepared), fingerprint)
        if change <= siva.TOLERANCE:
            for constant, value in zip(self._constants(), prepared, strict=True):
                constant.copy_(value)
        return change
