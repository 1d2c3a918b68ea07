"""Which strategy a call of an adapted layer takes: "direct", or "merged", which "auto" chooses where it is faster."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surm_kernels import _checks, cost_model
from surm_kernels._kept import Memory, no_inference_tensors, split
from surm_kernels.nn._adapted import Update
from surm_kernels.nn._base import frozen
from surm_kernels.ops import _cuda
from surm_kernels.ops._library import without_autocast
from surm_kernels.structures import Structure

STRATEGIES = ("auto", "direct", "merged")

#: Rounding to nearest in 16 bits moves a weight by about a third of the type's spacing, relative to its size. Where it
#: rounds so, `auto` merges only an update of this many spacings, of which rounding takes less than a tenth.
LEAST_SPACINGS = 4

_PROBES = 8
_MOST_DECISIONS = 256  # batches of ever other lengths are not to fill the memory


class RelativeSize:
    """The norm of `scale * W` over that of the frozen weight, estimated again when something has changed."""

    def __init__(self) -> None:
        # Each is replaced as a whole, since threads may share a layer.
        self._of_weight: tuple[Memory, float] | None = None
        self._of_update: tuple[Memory, float] | None = None
        self._signs: Tensor | None = None

    @torch.no_grad()
    def of(self, structure: Structure, scale: float, weight: Tensor, parameters: Sequence[Tensor]) -> float:
        """The ratio; 0 on devices where looking at numbers would have to wait for them."""
        if not weight.is_cpu:
            return 0.0
        of_weight = self._of_weight
        if of_weight is None or not of_weight[0].holds("norm", (weight,), ()):
            of_weight = self._of_weight = Memory("norm", (weight,), ()), weight.float().norm().item()
        constants, trained = split(structure, parameters)
        update = self._of_update
        if update is None or not update[0].holds((structure,), constants, trained):
            earlier = None if update is None else update[0]
            update = Memory((structure,), constants, trained, earlier), self._norm(structure, parameters)
            self._of_update = update
        return abs(scale) * update[1] / max(of_weight[1], torch.finfo(torch.float32).tiny)

    def _norm(self, structure: Structure, parameters: Sequence[Tensor]) -> float:
        """An estimate of that of W: E ||W z||^2 = ||W||^2 for independent signs z (Hutchinson, 1989)."""
        signs = self._signs
        if signs is None:
            shape, generator = (_PROBES, structure.in_features), torch.Generator("cpu").manual_seed(0)
            with no_inference_tensors():
                bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int64, device="cpu")
                self._signs = signs = 2 * bits.float() - 1
        with without_autocast(signs):
            products = structure.linear(signs, *(parameter.float() for parameter in parameters))
        return products.norm().item() / _PROBES**0.5

    def clear(self) -> None:
        """Forgets everything."""
        self._of_weight = self._of_update = None

    def __reduce__(self) -> tuple[type, tuple]:
        return RelativeSize, ()


class Decisions:
    """What the cost model has said of a layer's calls: to ask it again takes longer than a small kernel."""

    def __init__(self) -> None:
        # Replaced as a whole, since threads may share a layer.
        self._known: tuple[Update | None, int, dict[tuple[Any, ...], bool]] = None, 0, {}

    def prefers_merged(self, update: Update, x: Tensor, need_x: bool, need_parameters: bool) -> bool:
        """`cost_model.prefers_merged` of a call."""
        of, generation, known = self._known
        if of is not update or generation != cost_model.generation or len(known) >= _MOST_DECISIONS:
            known = {}
            self._known = update, cost_model.generation, known
        key = (x.shape[0], x.dtype, x.is_cpu, need_x, need_parameters, torch.get_num_threads())
        merged = known.get(key)
        if merged is None:
            merged = known[key] = _prefers_merged(update, x, need_x, need_parameters)
        return merged

    def __reduce__(self) -> tuple[type, tuple]:
        return Decisions, ()


def _prefers_merged(update: Update, x: Tensor, need_x: bool, need_parameters: bool) -> bool:
    return cost_model.prefers_merged(
        update.structure,
        x.shape[0],
        x.dtype,
        parameter_gradients=need_parameters,
        input_gradient=need_x,
        device_type="cpu" if x.is_cpu else x.device.type,
    )


def merges(
    update: Update,
    x: Tensor,
    weight: Tensor,
    parameters: Sequence[Tensor],
    need_x: bool,
    need_parameters: bool,
    size: RelativeSize | None,
    decisions: Decisions | None,
) -> bool:
    """Whether a call forms W0 + scale W, or takes one that is kept.

    Args:
        update: says the strategy; "auto" is decided here.
        x: tokens in rows.
        weight: W0.
        parameters: of W.
        need_x: whether a gradient of x is wanted.
        need_parameters: whether those of the parameters are, which then are about to change.
        size: what the layer knows of the update's size; None in a compiled call, which looks at no values and keeps
            nothing for the next one.
        decisions: those of the layer, likewise.
    """
    if update.strategy != "auto":
        return update.strategy == "merged"
    if not (x.is_cpu or need_parameters):
        return False  # nothing is kept on a GPU, where to look for a change is to wait
    if decisions is None:
        faster = _prefers_merged(update, x, need_x, True)
    else:
        faster = decisions.prefers_merged(update, x, need_x, need_parameters)
    if not faster or x.dtype.itemsize > 2 or update.merge_dtype is not None:
        return faster
    if need_parameters and rounds_stochastically(x.dtype, weight):
        return True
    least = LEAST_SPACINGS * torch.finfo(x.dtype).eps
    return size is not None and size.of(update.structure, update.scale, weight, parameters) >= least


def rounds_stochastically(dtype: torch.dtype, weight: Tensor) -> bool:
    """Whether a weight that is merged in a type for training is rounded by chance, so that no small update is lost.

    On a GPU it is where CUDA C++ serves: the reference would take many times as long as the merge saves.
    """
    return dtype.itemsize == 2 and (weight.is_cpu or (weight.is_cuda and _cuda.merges(weight.get_device())))


def require_strategy(strategy: Any, base: nn.Module) -> None:
    """One that there is, and that the base allows."""
    _checks.require_choice("strategy", strategy, STRATEGIES)
    if strategy == "merged" and frozen(base) is None:
        raise ValueError(
            f"strategy must be direct or auto where base is not a plain torch.nn.Linear, "
            f"got merged for {type(base).__name__}"
        )
