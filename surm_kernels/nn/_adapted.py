"""The product of an adapted layer and its gradients: y = x W0^T + bias + scale x W^T with a frozen W0, or without W0.

*Direct*: the structure's kernel makes the output, and one matrix product accumulates into it. *Merged*: W0 + scale W is
formed first, then there is one matrix product. Either way the backward keeps x and the parameters and nothing else, but
for SiVA's projection of few tokens, and the parameters' gradients come from the structure, never from a dense gradient
of the weight.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels._kept import Merged, Product, merge
from surm_kernels.functional._product import cast
from surm_kernels.ops import _mode
from surm_kernels.ops._library import without_autocast
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures import Structure


@dataclass(unsafe_hash=True)  # never changed; not frozen=True, since torch.compile takes such apart
class Update:
    """How a layer is adapted.

    Attributes:
        structure: that of W.
        scale: factor of W.
        strategy: "direct", "merged" or "auto".
        merge_dtype: the type in which W0 + scale W is formed and multiplied, that of x if None.
    """

    structure: Structure
    scale: float
    strategy: str
    merge_dtype: torch.dtype | None

    def expression(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *parameters: Tensor) -> Tensor:
        """The output by differentiable operations."""
        base = bias if weight is None else torch_functional.linear(x, cast(weight, x.dtype), bias)
        return self.structure.linear(x, *parameters, base=base, scale=self.scale)

    def merged(
        self,
        x: Tensor,
        weight: Tensor,
        parameters: Sequence[Tensor],
        rounding: StochasticRounding | None = None,
    ) -> Merged:
        """W0 + scale W for tokens x, formed anew."""
        out = torch.empty(weight.shape, dtype=self.merge_dtype or x.dtype, device=weight.device)
        return Merged(merge(self.structure, self.scale, weight, parameters, out, rounding), rounding)

    def product(
        self,
        merged: Merged | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        parameters: Sequence[Tensor],
        kept: Product | None = None,
        projection: Tensor | None = None,
    ) -> Tensor:
        """The output for x (T, in_features), bias and parameters of one type; call it without recording.

        Args:
            merged: W0 + scale W, where the strategy is to multiply by that.
            x: tokens, likewise bias and parameters.
            weight: W0, None where there is none.
            bias: of the layer.
            parameters: of W.
            kept: the structure's product as it is kept for these parameters.
            projection: of x, see `Structure.projection`.
        """
        if merged is None:
            if kept is not None:
                y = kept(x, bias, self.scale)
            else:
                y = self.structure.rows(x, parameters, bias, self.scale, projection)
            return y if weight is None else y.addmm_(x, cast(weight, x.dtype).t())
        total = merged.weight
        bias = None if bias is None else cast(bias, total.dtype)
        return cast(torch_functional.linear(cast(x, total.dtype), total, bias), x.dtype)

    def gradients(
        self,
        merged: Merged | None,
        g: Tensor,
        x: Tensor,
        weight: Tensor | None,
        parameters: Sequence[Tensor],
        need_x: bool,
        need_parameters: bool,
        projection: Tensor | None = None,
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """The gradients of x and of the parameters, for tensors as in `product`; `merged` serves that of x alone.

        The projection is what the forward has kept of x for them, see `Structure.projection`.
        """
        structure, scale = self.structure, self.scale
        inner: Sequence[Tensor | None] = [None] * len(parameters)
        if need_x and merged is not None:
            if need_parameters:
                inner = structure.row_gradients(g, x, parameters, scale, False)[1:]
            total = merged.weight
            return cast(cast(g, total.dtype) @ total, x.dtype), inner
        x_gradient = None
        if need_parameters:
            x_gradient, *inner = structure.row_gradients(g, x, parameters, scale, need_x, projection)
        elif need_x:
            x_gradient = _input_gradient(structure, g, x, parameters, scale)
        if x_gradient is not None and weight is not None:
            x_gradient = _plus_product(x_gradient, g, cast(weight, x.dtype))
        return x_gradient, inner


class Adapted(torch.autograd.Function):
    """`(update, merged, x, weight, bias, *parameters)` -> `update.product(...)`, not differentiable to the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        update: Update,
        merged: Merged | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.update = update
        ctx.merged = None if merged is None else weakref.ref(merged)  # kept as long as the layer keeps it
        ctx.rounding = None if merged is None else merged.rounding
        projection = None
        with without_autocast(x):
            if merged is None and any(ctx.needs_input_grad[5:]):
                projection = update.structure.projection(x, parameters)
            y = update.product(merged, x, weight, bias, parameters, projection=projection)
        ctx.save_for_backward(x, weight, projection, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, _, need_x, _, need_bias, *needed = ctx.needs_input_grad
        update, (x, weight, projection, *parameters) = ctx.update, ctx.saved_tensors
        with without_autocast(x):
            bias_gradient = g.sum(0) if need_bias else None
            if torch.is_grad_enabled() or _mode.transforms_active() or _mode.is_batched(g):
                x_gradient, inner = _recorded_gradients(update, g, x, weight, parameters, need_x, needed)
            else:
                merged = None
                if need_x and ctx.merged is not None:
                    merged = ctx.merged() or update.merged(x, weight, parameters, ctx.rounding)
                x_gradient, inner = update.gradients(merged, g, x, weight, parameters, need_x, any(needed), projection)
        return None, None, x_gradient, None, bias_gradient, *inner


#: `Adapted.apply` of an ordinary call: that one first asks for transformations, which takes longer than a small kernel.
record: Callable[..., Tensor] = super(torch.autograd.Function, Adapted).apply


def _recorded_gradients(
    update: Update,
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
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


def _plus_product(start: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`start + left @ right`, in place where start may be a tensor of its own."""
    # torch would refuse to change a view in place that comes out of an autograd.Function.
    if start is left or start._is_view() or not start.is_contiguous():
        return torch.addmm(start, left, right)
    return start.addmm_(left, right)
