"""What a layer keeps, a merged weight or a spectrum, until something it was made of changes, by whatever way.

`_version` alone does not tell: an update through `.data` leaves it as it is, and inference tensors have none. So
trained parameters, which are few numbers, are compared with a copy. A frozen weight is large: it is known by its
memory, its version and a few of its values.

Threads may share a layer. What is kept is one object, never changed once others can see it, and read once in a call;
only forming a merged weight takes a lock. Its memory serves again when nobody holds the object any more.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from surm_kernels._locks import Lock
from surm_kernels.ops._library import without_autocast
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures import Structure

Product = Callable[[Tensor, Tensor | None, float], Tensor]

_SAMPLES = 64  # values that are looked at, at most


class _Frozen:
    """A large tensor that is not expected to change; its memory is not kept alive.

    Args:
        at_end: is called when nobody has the tensor any more.
    """

    def __init__(self, tensor: Tensor, at_end: Callable[[object], None] | None) -> None:
        self._tensor = weakref.ref(tensor, at_end)
        self._place: object = _place(tensor)
        # On a line across: no two values of a row or of a column, so that a change of a whole one is likely to be seen.
        steps = [-(-size // _SAMPLES) for size in tensor.shape]
        count = min((-(-size // step) for size, step in zip(tensor.shape, steps, strict=True)), default=1)
        self._line = (count,), (sum(step * stride for step, stride in zip(steps, tensor.stride(), strict=True)),)
        self._sample = tensor.as_strided(*self._line).clone()

    def is_still(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor with, as far as can be seen at little cost, the same contents."""
        if not self.is_place_of(tensor):
            return False
        if torch.equal(tensor.as_strided(*self._line), self._sample):
            return True
        self._place = None  # is to be looked at anew
        return False

    def is_place_of(self, tensor: Tensor) -> bool:
        """Whether this is the same tensor, and nobody has told of a change."""
        return self._tensor() is tensor and _place(tensor) == self._place


class Memory:
    """What tensors on the CPU held when something was made of them.

    Args:
        key: for all else that matters.
        frozen: large tensors that are not expected to change.
        trained: small ones that change all the time.
        earlier: of the same layer; what it knows of frozen tensors that did not change serves again.
        at_end: is called when nobody has the first frozen tensor any more.
    """

    _frozen: tuple[_Frozen, ...]

    def __init__(
        self,
        key: object,
        frozen: Sequence[Tensor],
        trained: Sequence[Tensor],
        earlier: "Memory | None" = None,
        at_end: Callable[[object], None] | None = None,
    ) -> None:
        self._key = key
        self._copies = [tensor.detach().clone() for tensor in trained]
        known = () if earlier is None else earlier._frozen
        if len(known) != len(frozen) or not all(k.is_place_of(t) for k, t in zip(known, frozen, strict=True)):
            known = tuple(_Frozen(t, None if index else at_end) for index, t in enumerate(frozen))
        self._frozen = known

    def holds(self, key: object, frozen: Sequence[Tensor], trained: Sequence[Tensor]) -> bool:
        """Whether nothing has changed since; on devices where looking would have to wait for them, never."""
        if self._key != key:
            return False
        for copy, tensor in zip(self._copies, trained, strict=True):
            # NaN never is the same.
            if not tensor.is_cpu or tensor.dtype is not copy.dtype or not torch.equal(tensor, copy):
                return False
        return all(known.is_still(tensor) for known, tensor in zip(self._frozen, frozen, strict=True))


class _Lent:
    """Memory that serves again when this ends."""

    __slots__ = ("_spare", "_weight")

    def __init__(self, weight: Tensor, spare: "deque[Tensor]") -> None:
        self._weight, self._spare = weight, spare

    def __del__(self) -> None:
        self._spare.append(self._weight)


class Merged:
    """A merged weight, which nobody writes to. Who multiplies by it holds this, or its memory may serve again.

    It has no `__del__` of its own: Python runs that while weak references still give the object, so another thread
    could come by a weight whose memory has been given back.
    """

    __slots__ = ("__weakref__", "_lent", "memory", "rounding", "weight")

    def __init__(
        self,
        weight: Tensor,
        rounding: StochasticRounding | None = None,
        memory: Memory | None = None,
        spare: "deque[Tensor] | None" = None,
    ) -> None:
        self.weight, self.rounding, self.memory = weight, rounding, memory
        self._lent = None if spare is None else _Lent(weight, spare)


class MergedWeight:
    """The weight W0 + scale W(parameters), formed again only when one of them has changed."""

    def __init__(self) -> None:
        self._merged: Merged | None = None
        self._times = 0  # that it was formed
        self._spare: deque[Tensor] = deque(maxlen=1)
        self._lock = Lock()

    def of(
        self,
        structure: Structure,
        scale: float,
        dtype: torch.dtype,
        weight: Tensor,
        parameters: Sequence[Tensor],
        stochastic: bool = False,
    ) -> Merged:
        """The merged weight in a type; it is not to be written to, nor saved for a backward but by a weak reference.

        Rounded to nearest or, to 16 bits, stochastically: to other sides after every change of what is trained.
        """
        key = (structure, scale, dtype, stochastic)
        constants, trained = split(structure, parameters)
        frozen = (weight, *constants)
        times = self._times
        if (merged := self._held(key, frozen, trained)) is not None:
            return merged
        with self._lock:
            if times != self._times and (merged := self._held(key, frozen, trained)) is not None:
                return merged  # another thread has formed it meanwhile
            earlier = None if self._merged is None else self._merged.memory
            self._merged = None  # a failure below leaves nothing that looks valid
            with no_inference_tensors():  # which could not be written to in training
                # Looked at before it is used: what changes in between is found by the next call.
                memory = Memory(key, frozen, trained, earlier, self._clearing()) if weight.is_cpu else None
                buffer = self._buffer(weight, dtype)
            rounding = rounding_of(structure, weight, parameters) if stochastic else None
            merge(structure, scale, weight, parameters, buffer, rounding)
            self._times += 1
            self._merged = merged = Merged(buffer, rounding, memory, self._spare if weight.is_cpu else None)
        return merged

    def present(
        self, structure: Structure, scale: float, dtype: torch.dtype, weight: Tensor, parameters: Sequence[Tensor]
    ) -> Merged | None:
        """What `of` gives, rounded to nearest, where nothing need be formed for it."""
        constants, trained = split(structure, parameters)
        return self._held((structure, scale, dtype, False), (weight, *constants), trained)

    def _held(self, key: object, frozen: Sequence[Tensor], trained: Sequence[Tensor]) -> Merged | None:
        merged = self._merged  # read once: another thread may put another one there
        if merged is None or merged.memory is None or not merged.memory.holds(key, frozen, trained):
            return None
        return merged

    def _buffer(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for the sum: that of an earlier one which nobody holds. On a GPU torch knows which stream is done."""
        try:
            spare = self._spare.pop()
        except IndexError:
            spare = None
        if spare is None or spare.dtype is not dtype or spare.shape != weight.shape or not weight.is_cpu:
            return torch.empty(weight.shape, dtype=dtype, device=weight.device)
        return spare

    def _clearing(self) -> Callable[[object], None]:
        """Gives the memory back when the frozen weight ends, as where it is moved away to make room."""
        this = weakref.ref(self)

        def clear(_: object) -> None:
            if (merged_weight := this()) is not None:
                merged_weight.clear()

        return clear

    def clear(self) -> None:
        """Gives the memory back."""
        self._spare = deque(maxlen=1)  # first: what ends now leaves its memory in the other one
        self._merged = None

    def __reduce__(self) -> tuple[type, tuple]:
        return MergedWeight, ()  # copies and pickles start empty


class KeptProduct:
    """A structure's product with parameters that do not change, as it keeps it: `Structure.kept`."""

    def __init__(self) -> None:
        self._kept: tuple[Memory, Product] | None = None
        self._nothing_of: Structure | None = None

    def of(self, structure: Structure, parameters: Sequence[Tensor]) -> Product | None:
        """The product, None where the structure keeps nothing."""
        if self._nothing_of is structure:
            return None
        key = (structure,)  # tuples see the same object without asking whether it is equal
        kept = self._kept
        if kept is not None and kept[0].holds(key, (), parameters):
            return kept[1]
        with no_inference_tensors():  # which could not serve calls that record
            memory = Memory(key, (), parameters)
            product = structure.kept(*parameters)
        if product is None:
            self._nothing_of = structure
        else:
            self._kept = memory, product
        return product

    def clear(self) -> None:
        """Gives the memory back."""
        self._kept = None

    def __reduce__(self) -> tuple[type, tuple]:
        return KeptProduct, ()


def merge(
    structure: Structure,
    scale: float,
    weight: Tensor,
    parameters: Sequence[Tensor],
    out: Tensor,
    rounding: StochasticRounding | None,
) -> Tensor:
    """out = weight + scale W(parameters), in the type of out whatever autocast says."""
    with without_autocast(weight):
        return structure.merge(weight, *parameters, scale=scale, out=out, rounding=rounding)


def rounding_of(structure: Structure, weight: Tensor, parameters: Sequence[Tensor]) -> StochasticRounding:
    """Of the sum of a weight, which its first row stands for, and a structure with these parameters."""
    return StochasticRounding.of(weight.select(0, 0), *split(structure, parameters)[1])


def split(structure: Structure, parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The constants among the parameters, and the rest."""
    if not structure.constants:
        return (), parameters
    names = tuple(structure.parameter_shapes())
    pairs = list(zip(names, parameters, strict=True))
    return [p for name, p in pairs if name in structure.constants], [
        p for name, p in pairs if name not in structure.constants
    ]


def no_inference_tensors() -> AbstractContextManager[object]:
    """A context where new tensors are ordinary ones; entering it where they are anyway would take its time."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _place(tensor: Tensor) -> tuple[object, ...]:
    """By which to tell whether a tensor has moved, or says that it was written to."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), version
