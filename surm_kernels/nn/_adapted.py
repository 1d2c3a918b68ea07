"""The product of an adapted layer and its gradients: y = x W0^T + bias + scale x W^T with a frozen W0.

*Direct*: the structure's kernel makes the output, and one matrix product accumulates into it. *Merged*: W0 + scale W is
formed first, then there is one matrix product. Either way the backward keeps x and the parameters and nothing else, and
the parameters' gradients come from the structure, never from a dense gradient of the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional
from torch.utils import _pytree

from surm_kernels import cost_model
from surm_kernels.functional._product import cast
from surm_kernels.nn._kept import MergedWeight, Product
from surm_kernels.ops._differentiable import _transforms_active
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops.generated import _is_batched
from surm_kernels.structures import Structure


@dataclass(unsafe_hash=True)  # never changed; not frozen=True, since torch.compile takes such apart
class Update:
    """How a layer is adapted.

    Attributes:
        structure: that of W.
        scale: factor of W.
        strategy: "direct", "merged" or "auto".
        merge_dtype: the type in which W0 + scale W is formed and multiplied, that of x if None.
        cache: keeps it between calls; None where they are traced.
    """

    structure: Structure
    scale: float
    strategy: str
    merge_dtype: torch.dtype | None
    cache: MergedWeight | None = field(compare=False)

    def merges(self, x: Tensor, need_x: bool, need_parameters: bool) -> bool:
        """Whether W0 + scale W is formed for tokens x and gradients like these, as far as speed says."""
        if self.strategy == "auto":
            return cost_model.prefers_merged(
                self.structure,
                x.shape[0],
                x.dtype,
                parameter_gradients=need_parameters,
                input_gradient=need_x,
                device_type=x.device.type,
            )
        return self.strategy == "merged"

    def expression(self, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor) -> Tensor:
        """The output by differentiable operations."""
        base = torch_functional.linear(x, cast(weight, x.dtype), bias)
        return self.structure.linear(x, *parameters, base=base, scale=self.scale)

    def product(
        self,
        merged: bool,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameters: Sequence[Tensor],
        kept: Product | None = None,
    ) -> Tensor:
        """The output for x (T, in_features), bias and parameters of one type; call it without recording.

        `kept` is the structure's product as it is kept for these parameters.
        """
        if not merged:
            if kept is None:
                y = self.structure.linear(x, *parameters, base=bias, scale=self.scale)
            else:
                y = kept(x, bias, self.scale)
            return _plus_product(y, x, cast(weight, x.dtype).mT, (x, *parameters))
        total = self._merged_weight(x.dtype, weight, parameters)
        bias = None if bias is None else cast(bias, total.dtype)
        return cast(torch_functional.linear(cast(x, total.dtype), total, bias), x.dtype)

    def gradients(
        self,
        merged: bool,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        parameters: Sequence[Tensor],
        need_x: bool,
        need_parameters: bool,
        claim: int | None = None,
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """The gradients of x and of the parameters, for tensors as in `product`.

        `claim` is on the merged weight of the forward, which serves here as long as it is the last one formed.
        """
        structure, scale = self.structure, self.scale
        inner: Sequence[Tensor | None] = [None] * len(parameters)
        if merged:
            if need_parameters:
                inner = structure.gradients(g, x, *parameters, scale=scale, input_gradient=False)[1:]
            if not need_x:
                return None, inner
            total = self.cache.claimed(claim) if self.cache is not None and claim is not None else None
            if total is None:
                total = self._merged_weight(x.dtype, weight, parameters)
            return cast(cast(g, total.dtype) @ total, x.dtype), inner
        if need_parameters:
            x_gradient, *inner = structure.gradients(g, x, *parameters, scale=scale, input_gradient=need_x)
        else:
            x_gradient = _input_gradient(structure, g, x, parameters, scale)
        if x_gradient is not None:
            x_gradient = _plus_product(x_gradient, g, cast(weight, x.dtype), (g, *parameters))
        return x_gradient, inner

    def _merged_weight(self, dtype: torch.dtype, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        inside = self.merge_dtype or dtype
        if self.cache is not None:
            return self.cache.of(self.structure, self.scale, inside, weight, parameters)
        out = torch.empty(weight.shape, dtype=inside, device=weight.device)
        return self.structure.merge(weight, *parameters, scale=self.scale, out=out)


_pytree.register_constant(Update)  # torch.compile takes it as it is


class Adapted(torch.autograd.Function):
    """`(update, merged, x, weight, bias, *parameters)` -> `update.product(...)`, not differentiable to the weight."""

    @staticmethod
    def forward(
        ctx: Any, update: Update, merged: bool, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.update, ctx.merged = update, merged
        ctx.save_for_backward(x, weight, *parameters)
        with without_autocast(x):
            y = update.product(merged, x, weight, bias, parameters)
        ctx.claim = None if update.cache is None else update.cache.claim()
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, _, need_x, _, need_bias, *needed = ctx.needs_input_grad
        update, (x, weight, *parameters) = ctx.update, ctx.saved_tensors
        with without_autocast(x):
            bias_gradient = g.sum(0) if need_bias else None
            if torch.is_grad_enabled() or _transforms_active() or _is_batched(g):
                x_gradient, inner = _recorded_gradients(update, g, x, weight, parameters, need_x, needed)
            else:
                x_gradient, inner = update.gradients(
                    ctx.merged, g, x, weight, parameters, need_x, any(needed), ctx.claim
                )
        return None, None, x_gradient, None, bias_gradient, *inner


def traced(update: Update, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor) -> Tensor:
    """`Adapted` as torch.compile sees it: a call whose inside it does not look at, but differentiates.

    The size of the update cannot be looked at, so 16-bit weights are not merged unless that is demanded.
    """
    need_x, need_parameters = x.requires_grad, any(parameter.requires_grad for parameter in parameters)
    rounded = x.dtype.itemsize == 2 and update.merge_dtype is None and update.strategy == "auto"
    merged = not rounded and update.merges(x, need_x, need_parameters)
    return Adapted.apply(replace(update, cache=None), merged, x, weight, bias, *parameters)


def _recorded_gradients(
    update: Update,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    parameters: Sequence[Tensor],
    need_x: bool,
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of the plain expression, which autograd can differentiate again and torch can batch."""
    wanted = [need_x, *needed]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [x, *parameters] if create_graph else [t.detach().requires_grad_() for t in (x, *parameters)]
        y = update.expression(tensors[0], weight, None, *tensors[1:])
    inputs = [t for t, need in zip(tensors, wanted, strict=True) if need]
    found = iter(torch.autograd.grad(y, inputs, g, create_graph=create_graph, materialize_grads=True))
    x_gradient, *inner = [next(found) if need else None for need in wanted]
    return x_gradient, inner


def _input_gradient(structure: Structure, g: Tensor, x: Tensor, parameters: Sequence[Tensor], scale: float) -> Tensor:
    """That of x alone."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = structure.linear(leaf, *(p.detach() for p in parameters), scale=scale)
    return torch.autograd.grad(y, leaf, g)[0]


def _plus_product(start: Tensor, left: Tensor, right: Tensor, others: Sequence[Tensor]) -> Tensor:
    """`start + left @ right`, in place where start is a tensor of its own."""
    storage = start.untyped_storage()._cdata  # fake tensors have it, unlike data_ptr
    own = start.is_contiguous() and all(other.untyped_storage()._cdata != storage for other in others)
    return start.addmm_(left, right) if own else torch.addmm(start, left, right)
