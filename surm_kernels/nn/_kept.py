"""What a layer keeps, a merged weight or a spectrum, until something it was made of changes, by whatever way.

`_version` alone does not tell: an update through `.data` leaves it as it is, and inference tensors have none. So
trained parameters, which are few numbers, are compared with a copy. A frozen weight is large: it is known by its
memory, its version and a few of its values.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from surm_kernels.structures import Structure

Product = Callable[[Tensor, Tensor | None, float], Tensor]

_SAMPLES = 8  # rows and columns that are looked at


class _Frozen:
    """A large tensor that is not expected to change."""

    def __init__(self, tensor: Tensor) -> None:
        self._alias = tensor.detach()  # keeps the memory, so that no other tensor can come to lie there
        self._version = _version(tensor)
        self._sample = _sample(self._alias).clone()

    def is_still(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor with, as far as can be seen at little cost, the same contents."""
        return self.is_place_of(tensor) and torch.equal(_sample(tensor.detach()), self._sample)

    def is_place_of(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor, and nobody has told of a change."""
        known = self._alias
        return (
            tensor.data_ptr() == known.data_ptr()
            and tensor.dtype is known.dtype
            and tensor.shape == known.shape
            and tensor.stride() == known.stride()
            and _version(tensor) == self._version
        )


class _Trained:
    """A small tensor that changes all the time."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().clone()

    def is_still(self, tensor: Tensor) -> bool:
        """Whether the contents are the same; NaN never is."""
        return tensor.dtype is self._copy.dtype and torch.equal(tensor.detach(), self._copy)


class Memory:
    """What tensors on the CPU held when something was made of them."""

    def __init__(self) -> None:
        self._frozen: list[_Frozen] = []
        self._trained: list[_Trained] = []
        self._key: object = None

    def take(self, key: object, frozen: Sequence[Tensor], trained: Sequence[Tensor]) -> None:
        """Remembers the tensors, and `key` for all else that matters."""
        with _no_inference_tensors():
            # Frozen tensors are looked at anew where `holds` found a change, or something else must have happened.
            if len(self._frozen) != len(frozen) or not all(
                known.is_place_of(tensor) for known, tensor in zip(self._frozen, frozen, strict=True)
            ):
                self._frozen = [_Frozen(tensor) for tensor in frozen]
            self._trained = [_Trained(tensor) for tensor in trained]
            self._key = key

    def holds(self, key: object, frozen: Sequence[Tensor], trained: Sequence[Tensor]) -> bool:
        """Whether nothing has changed since; on devices where looking would have to wait for them, never."""
        if self._key is None or self._key != key or any(t.device.type != "cpu" for t in (*frozen, *trained)):
            return False
        for known, tensor in zip(self._trained, trained, strict=True):
            if not known.is_still(tensor):
                return False
        for known_frozen, tensor in zip(self._frozen, frozen, strict=True):
            if not known_frozen.is_still(tensor):
                self._frozen = []
                return False
        return True

    def forget(self) -> None:
        """Holds nothing from now on."""
        self._key = None


class MergedWeight:
    """The weight W0 + scale W(parameters) in one buffer, formed again only when one of them has changed."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._memory = Memory()
        self._times = 0  # that it was formed

    def of(
        self, structure: Structure, scale: float, dtype: torch.dtype, weight: Tensor, parameters: Sequence[Tensor]
    ) -> Tensor:
        """The merged weight in a type, until the next call; it is not to be written to, nor saved for a backward."""
        key = (structure, scale, dtype)
        constants, trained = split(structure, parameters)
        frozen = (weight, *constants)
        if self._buffer is not None and self._memory.holds(key, frozen, trained):
            return self._buffer
        self._memory.forget()  # a failure below leaves nothing that looks valid
        buffer = self._buffer
        if (
            buffer is None
            or buffer.dtype is not dtype
            or buffer.shape != weight.shape
            or buffer.device != weight.device
        ):
            with _no_inference_tensors():  # which could not be written to in training
                buffer = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        structure.merge(weight, *parameters, scale=scale, out=buffer)
        self._buffer = buffer
        self._times += 1
        self._memory.take(key, frozen, trained)
        return buffer

    def claim(self) -> int:
        """What gets the present buffer back from `claimed`, as a backward does."""
        return self._times

    def claimed(self, claim: int) -> Tensor | None:
        """The buffer as it was then; None where it has been formed again or given back."""
        return self._buffer if claim == self._times else None

    def clear(self) -> None:
        """Gives the memory back."""
        self._buffer, self._memory = None, Memory()
        self._times += 1

    def __reduce__(self) -> tuple[type, tuple]:
        return MergedWeight, ()  # copies and pickles start empty


class KeptProduct:
    """A structure's product with parameters that do not change, as it keeps it: `Structure.kept`."""

    def __init__(self) -> None:
        self._product: Product | None = None
        self._memory = Memory()
        self._nothing_of: Structure | None = None

    def of(self, structure: Structure, parameters: Sequence[Tensor]) -> Product | None:
        """The product, None where the structure keeps nothing."""
        if self._nothing_of is structure:
            return None
        key = (structure,)  # tuples see the same object without asking whether it is equal
        if not self._memory.holds(key, (), parameters):
            self._memory.forget()
            with _no_inference_tensors():  # which could not serve calls that record
                self._product = structure.kept(*parameters)
            if self._product is None:
                self._nothing_of = structure
            else:
                self._memory.take(key, (), parameters)
        return self._product

    def clear(self) -> None:
        """Gives the memory back."""
        self.__init__()  # type: ignore[misc]

    def __reduce__(self) -> tuple[type, tuple]:
        return KeptProduct, ()


def split(structure: Structure, parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The constants among the parameters, and the rest."""
    if not structure.constants:
        return (), parameters
    names = tuple(structure.parameter_shapes())
    pairs = list(zip(names, parameters, strict=True))
    return [p for name, p in pairs if name in structure.constants], [
        p for name, p in pairs if name not in structure.constants
    ]


def _no_inference_tensors() -> AbstractContextManager[object]:
    """A context where new tensors are ordinary ones; entering it where they are anyway would take its time."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> Tensor:
    """At most _SAMPLES x _SAMPLES values of a matrix, spread over it."""
    rows, columns = (-(-size // _SAMPLES) or 1 for size in tensor.shape)
    return tensor[::rows, ::columns]
