"""What an adapted layer computes, whoever owns its parameters: a layer of ours, or of PEFT with several adapters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surm_kernels import _checks
from surm_kernels._kept import KeptProduct, MergedWeight, Product
from surm_kernels.functional._product import cast
from surm_kernels.nn._adapted import Update, record
from surm_kernels.nn._base import compute_dtype, frozen
from surm_kernels.nn._compiled import traced
from surm_kernels.nn._strategy import Decisions, RelativeSize, merges, rounds_stochastically
from surm_kernels.ops import _mode
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops._outputs import in_shape
from surm_kernels.structures import Structure

#: Up to this many tokens a product by a spectrum that is kept is faster by more than a tenth.
FEW_TOKENS = 16


class AdaptedProduct:
    """`base(x) + scale * x @ W.T` for a frozen base and an update of it, and what is kept of it between calls.

    An update may be another one in every call; what was kept of the one before then goes.
    """

    def __init__(self) -> None:
        self._merged, self._kept, self._size = MergedWeight(), KeptProduct(), RelativeSize()
        self._decisions = Decisions()

    def __call__(self, update: Update, base: nn.Module, x: Tensor, stored: Sequence[Tensor], training: bool) -> Tensor:
        """(..., in_features) to (..., out_features).

        Args:
            update: structure, scale and strategy.
            base: the frozen layer.
            x: tokens.
            stored: the parameters of W with its constants, in the structure's order, in the types they are kept in.
            training: whether the layer is in training mode.
        """
        _checks.require_strided("x", x)
        tensors, structure = frozen(base), update.structure
        if tensors is None or tensors.weight.requires_grad or not _is_fusable(x, structure):
            return self.added(update, base(x), x, stored, training)
        weight, bias = tensors
        if x.dim() == 0 or x.shape[-1] != structure.in_features:
            _checks.require_features(x, structure.in_features, {"base.weight": weight})
        dtype = compute_dtype(x, weight)
        flat = x.dim() == 2  # then views would only cost their nodes in the graph
        rows = x if flat else x.reshape(-1, structure.in_features)
        parameters = stored
        if not _all_of(dtype, x, bias, stored):
            rows, bias = cast(rows, dtype), None if bias is None else cast(bias, dtype)
            parameters = [cast(parameter, dtype) for parameter in stored]
        if torch.compiler.is_compiling():
            # Not a decorator, which would import Dynamo, and Triton with it, for everybody.
            frozen_tensors = (weight,) if bias is None else (weight, bias)
            y = torch._dynamo.nonstrict_trace(traced)(update, training, rows, frozen_tensors, *parameters)
        else:
            y = self._call(update, rows, weight, bias, stored, parameters, training)
        return y if flat else in_shape(y, *x.shape[:-1], structure.out_features)

    def _call(
        self,
        update: Update,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stored: Sequence[Tensor],
        parameters: Sequence[Tensor],
        training: bool,
    ) -> Tensor:
        """The output for tokens in rows, with the parameters as they are stored and in the type of x."""
        recording = torch.is_grad_enabled()
        need_x = need_parameters = False
        # In training, what is not recorded is the first pass of a checkpoint: the parameters are about to change.
        if recording or training:
            need_x, need_parameters = x.requires_grad, _any_requires_grad(stored)
        merged = None
        if merges(update, x, weight, parameters, need_x, need_parameters, self._size, self._decisions):
            dtype = update.merge_dtype or x.dtype
            stochastic = need_parameters and rounds_stochastically(dtype, weight)
            merged = self._merged.of(update.structure, update.scale, dtype, weight, parameters, stochastic)
        if recording and (need_parameters or need_x or (bias is not None and bias.requires_grad)):
            return record(update, merged, x, weight, bias, *parameters)
        with torch.no_grad(), without_autocast(x):
            kept = None if need_parameters or merged is not None else self._kept_product(update, x, parameters)
            return update.product(merged, x, weight, bias, parameters, kept)

    def added(self, update: Update, y: Tensor, x: Tensor, parameters: Sequence[Tensor], training: bool) -> Tensor:
        """`y + scale * x @ W.T` for an output y of any base, any recording and transformation."""
        plain = not _checks.autocasts(x)
        if plain:
            parameters = [cast(parameter, x.dtype) for parameter in parameters]
        if plain and _mode.is_ordinary(x) and type(y) is Tensor:
            tensors = (x, y, *parameters)
            changing = (torch.is_grad_enabled() or training) and any(t.requires_grad for t in tensors)
            if not changing and all(t.dtype is x.dtype for t in tensors):
                kept = self._kept_product(update, x, parameters)
                if kept is not None:
                    rows, start = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
                    return in_shape(kept(rows, start, update.scale), *y.shape)
        return update.structure.linear(x, *parameters, base=y, scale=update.scale)

    def _kept_product(self, update: Update, x: Tensor, parameters: Sequence[Tensor]) -> Product | None:
        """The update's product with what it needs of its parameters computed once, where that is worth it."""
        if not x.is_cpu or x.numel() > FEW_TOKENS * update.structure.in_features:
            return None
        return self._kept.of(update.structure, parameters)

    def weight(self, update: Update, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """`weight + scale * W`, rounded once, a tensor of its own; recorded where the parameters are."""
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (weight, *parameters))
        if recorded or not _mode.is_ordinary(weight):
            with without_autocast(weight):
                wide = update.structure.wide_dense(*parameters)
            return torch.add(weight, wide, alpha=update.scale).to(weight.dtype)
        dtype = update.merge_dtype or weight.dtype
        merged = self._merged.present(update.structure, update.scale, dtype, weight, parameters)
        if merged is not None:
            return merged.weight.to(weight.dtype, copy=True)
        return update.structure.merge(weight, *parameters, scale=update.scale)

    @torch.no_grad()
    def chosen(
        self,
        update: Update,
        base: nn.Module,
        stored: Sequence[Tensor],
        tokens: int,
        dtype: torch.dtype | None = None,
        gradients: bool = True,
    ) -> str:
        """The strategy, "direct" or "merged", of a call with so many tokens, by default in the type of the weight."""
        tensors = frozen(base)
        if tensors is None:
            return "direct"
        weight = tensors.weight
        x = torch.empty(tokens, 0, dtype=dtype or weight.dtype, device=weight.device)
        parameters = [cast(parameter, x.dtype) for parameter in stored]
        merged = merges(update, x, weight, parameters, gradients, gradients, self._size, self._decisions)
        return "merged" if merged else "direct"

    def clear(self) -> None:
        """Gives the memory back; the next call that wants it takes it again."""
        self._merged.clear()
        self._kept.clear()
        self._size.clear()


def _all_of(dtype: torch.dtype, x: Tensor, bias: Tensor | None, parameters: Sequence[Tensor]) -> bool:
    """Whether all have this type: to ask each of them to take it takes longer."""
    for parameter in parameters:
        if parameter.dtype is not dtype:
            return False
    return x.dtype is dtype and (bias is None or bias.dtype is dtype)


def _any_requires_grad(tensors: Sequence[Tensor]) -> bool:
    for tensor in tensors:  # noqa: SIM110 - a generator takes longer than the rest
        if tensor.requires_grad:
            return True
    return False


def _is_fusable(x: Tensor, structure: Structure) -> bool:
    """Whether this call may be one function of base and update; else each is called by itself, under autograd."""
    if torch.compiler.is_compiling():
        return not (torch.compiler.is_exporting() or structure.holds_tensors or _mode.transforms_active())
    return _mode.is_ordinary(x)
