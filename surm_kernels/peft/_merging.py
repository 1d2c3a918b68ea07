"""Adding updates to the weight of a base: in float32 at least, rounded once, with a word on what rounding took."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surm_kernels._widening import widened
from surm_kernels.nn._adapted import Update
from surm_kernels.peft._base_layers import is_quantised, matrix_of

#: A report is made where rounding removes more than this share of an update.
_WORTH_A_WORD = 0.01


def delta(base: nn.Module, update: Update, tensors: Sequence[Tensor]) -> Tensor:
    """scale W in the layout of the base's weight, in float32 at least."""
    return matrix_of(base, update.scale * update.structure.wide_dense(*tensors)).contiguous()


@torch.no_grad()
def merged(base: nn.Module, weight: Tensor, update: Update, tensors: Sequence[Tensor]) -> tuple[Tensor, float | None]:
    """`weight + scale W` as a new tensor like the weight, rounded once, and the share of scale W that rounding removed.

    The share is `|rounded - exact| / |scale W|`, None where the weight has 32 bits or more.
    """
    wide = [widened(tensor) for tensor in tensors]
    if weight.dtype.itemsize > 2 and matrix_of(base, weight) is weight:
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        return update.structure.merge(weight, *wide, scale=update.scale, out=out), None
    change = delta(base, update, wide)
    exact = weight.to(change.dtype) + change
    rounded = exact.to(weight.dtype)
    if weight.dtype.itemsize > 2:
        return rounded, None
    size = change.norm()
    return rounded, ((rounded.to(change.dtype) - exact).norm() / size).item() if size else 0.0


def require_mergeable(base: nn.Module) -> None:
    """A base whose weight is a parameter of numbers; codes of a quantised one cannot be added to."""
    if isinstance(getattr(base, "weight", None), Tensor) and "weight" not in base._parameters:
        raise ValueError(
            f"the weight of {type(base).__name__} is computed from other tensors, as weight_norm does, and what is "
            f"merged into it would be lost at the next call"
        )
    if is_quantised(base):
        raise ValueError(
            f"the weight of {type(base).__name__} is quantised, and merging would quantise the update with it: load "
            f"the base in 16 bits to merge"
        )


def owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Path and module of all that have a weight, by the weight's identity."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            found.setdefault(id(weight), []).append((path, module))
    return found


def require_own(base: nn.Module, owners: dict[int, list[tuple[str, nn.Module]]]) -> None:
    """A base whose weight no other module has, as an embedding does that is tied to the head."""
    others = [path for path, module in owners[id(base.weight)] if module is not base]
    if others:
        raise ValueError(
            f"the weight is that of {others[0]} as well, which merging would change: untie them first, as by loading "
            f"the model with tie_word_embeddings=False"
        )


def require_finite(weight: Tensor, adapter_names: Sequence[str]) -> None:
    """A merged weight without NaN and infinity."""
    if not weight.isfinite().all():
        raise ValueError(
            f"NaNs detected in the merged weights. The adapter {', '.join(adapter_names)} seems to be broken"
        )


def report(layers: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """By path of a merged layer, the share of its update that rounding to 16 bits removed; warns of large ones."""
    shares = {path: layer.rounded_away for path, layer in layers if layer.rounded_away is not None}
    if shares and max(shares.values()) > _WORTH_A_WORD:
        worst = max(shares, key=shares.__getitem__)
        median = sorted(shares.values())[len(shares) // 2]
        warnings.warn(
            f"Merging into 16 bits rounded away {100 * median:.2g} % of the update in the median layer and "
            f"{100 * shares[worst]:.2g} % in {worst}, the worst. An adapter that is not merged loses nothing.",
            stacklevel=3,
        )
    return shares
