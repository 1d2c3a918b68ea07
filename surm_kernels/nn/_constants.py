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
            # Of its own: given ones may be parts of a tensor, which files of tensors do not take.
            own = constants[name].detach().to(device, dtype).clone(memory_format=torch.contiguous_format)
            self.register_buffer(name, own, persistent=self.save_constants)
        if names:
            self.register_buffer("fingerprint", self.structure.fingerprint(*self._constants()))

    @torch.no_grad()
    def prepare_constants(self) -> None:
        """Prepares the constants anew, from the present weight of the base."""
        self._take(self._prepared(), "", assign=False)
        self.fingerprint = self.structure.fingerprint(*self._constants())

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
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: Any
    ) -> None:
        if self.structure.constants:
            change = self._load_constants(state_dict, prefix, local_metadata.get("assign_to_params_buffers", False))
            if not change <= siva.TOLERANCE:
                errors: list[str] = lists[-1]
                errors.append(
                    f"{prefix}fingerprint says that the update was trained on another "
                    f"{' and '.join(self.structure.constants)} than this base weight gives: the update would change by "
                    f"about {100 * change:.2g} %. Load it over the same weight in the same type, or save it with "
                    f"save_constants=True."
                )
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    @torch.no_grad()
    def _load_constants(self, state: dict[str, Any], prefix: str, assign: bool) -> float:
        """Makes ours the constants that a state brings or its weight gives; how far its fingerprint is from theirs.

        Constants without values, on the meta device, become real where the state is assigned and gives them.
        """
        names, empty = self.structure.constants, self._constants()[0].is_meta
        if all(prefix + name in state for name in names):
            if not self.save_constants:  # not expected, but better than our own
                self._take(state, prefix, assign)
            return 0.0
        theirs = state.get(prefix + "fingerprint")
        if theirs is None and empty and not self.fingerprint.is_meta:
            theirs = self.fingerprint  # of an update that was loaded before its weight
        change = 0.0 if theirs is None or empty else siva.difference(self.fingerprint, theirs)
        if change <= siva.TOLERANCE and not (empty and assign):
            return change
        own, weight = frozen(self.base), state.get(prefix + "base.weight")
        if own is None or weight is None or weight.is_meta or weight.shape != own.weight.shape:
            return change
        prepared = self.structure.prepare(weight if assign else weight.to(own.weight))
        found = self.structure.fingerprint(*prepared)
        change = 0.0 if theirs is None else siva.difference(found, theirs)
        if change <= siva.TOLERANCE:
            self._take(dict(zip(names, prepared, strict=True)), "", assign)
            self.fingerprint = found if self.fingerprint.is_meta else self.fingerprint
        return change

    def _take(self, values: dict[str, Tensor], prefix: str, assign: bool) -> None:
        """Moves constants to the buffers, unless their shapes are others, which is told later."""
        names = self.structure.constants
        if any(values[prefix + name].shape != getattr(self, name).shape for name in names):
            return
        for name in names:
            value = values.pop(prefix + name).detach()
            if assign:
                setattr(self, name, value)
            else:
                getattr(self, name).copy_(value)
