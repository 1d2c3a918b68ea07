"""What structures share whose map is one primitive: gradients and merging without autograd through the product."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surm_kernels.functional._product import product
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops._multilinear import Form
from surm_kernels.structures.base import Structure, widened


class Primitive(NamedTuple):
    """The form <g, x W^T> of a structure: the form's tensors but g and x, and its constants."""

    form: Form
    arguments: tuple[Tensor, ...]
    constants: tuple[Any, ...]


class PrimitiveStructure(Structure):
    """A structure with W = W(arguments) of one primitive, whose arguments are simple functions of the parameters."""

    @property
    def repeats(self) -> bool:
        """Whether values of a parameter fill several places of an argument.

        Then those of 16 bits reach the primitive in float32, so that sums of their gradients are rounded once.
        """
        return False

    @abstractmethod
    def primitive(self, *parameters: Tensor, scale: float) -> Primitive | None:
        """The primitive, its arguments by differentiable operations; None where W takes more than one."""

    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `scale * <g, x @ W.T>` by the primitive's own operators, see `Structure.gradients`."""
        inside = torch.promote_types(x.dtype, torch.float32) if self.repeats else x.dtype
        rows, cotangents = x.reshape(1, -1, self.in_features), g.reshape(1, -1, self.out_features)
        with torch.no_grad():
            primitive = self.primitive(*parameters, scale=scale)
            if primitive is not None and _are_views(primitive.arguments, parameters, inside):
                x_gradient, inner = _gradients(primitive, cotangents, rows, input_gradient)
                shaped = (t.view(parameter.shape) for t, parameter in zip(inner, parameters, strict=True))
                return None if x_gradient is None else x_gradient.view(x.shape), *shaped
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad(), without_autocast(x):
            primitive = self.primitive(*(leaf.to(inside) for leaf in leaves), scale=scale)
        if primitive is None:
            return super().gradients(g, x, *parameters, scale=scale, input_gradient=input_gradient)
        with torch.no_grad():
            x_gradient, inner = _gradients(primitive, cotangents, rows, input_gradient)
        outer = torch.autograd.grad(primitive.arguments, leaves, inner, materialize_grads=True)
        return None if x_gradient is None else x_gradient.view(x.shape), *outer

    @torch.no_grad()
    def merge(self, weight: Tensor, *parameters: Tensor, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
        """`weight + scale * W` in one pass where the primitive has a kernel for it, see `Structure.merge`."""
        primitive = self.wide_primitive(*parameters, scale=scale)
        result = torch.empty_like(weight) if out is None else out
        if primitive is None or primitive.form.merge is None or not _kernel_merges(weight, result):
            return super().merge(weight, *parameters, scale=scale, out=result)
        primitive.form.merge(weight, result, *primitive.arguments, *primitive.constants)
        return result

    def wide_primitive(self, *parameters: Tensor, scale: float) -> Primitive | None:
        """`primitive` in float32 at least."""
        return self.primitive(*(widened(parameter) for parameter in parameters), scale=scale)

    @torch.no_grad()
    def kept(self, *parameters: Tensor) -> Callable[[Tensor, Tensor | None, float], Tensor] | None:
        """The product by a spectrum computed once, where the primitive has one, see `Structure.kept`."""
        primitive = self.primitive(*parameters, scale=1.0)
        if primitive is None or primitive.form.keep is None:
            return None
        operator = primitive.form.keep(*primitive.arguments, *primitive.constants)
        return lambda x, base, scale: product(operator, x, {}, self.in_features, self.out_features, base, scale)


def _kernel_merges(weight: Tensor, out: Tensor) -> bool:
    """Whether the kernels take these types and strides."""
    types = {weight.dtype, out.dtype}
    return (len(types) == 1 or torch.float32 in types) and (out.stride(1) == 1 or out.shape[1] == 1)


def _are_views(arguments: Sequence[Tensor], parameters: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the arguments are the parameters in other shapes, so that gradients take the shapes back."""
    return len(arguments) == len(parameters) and all(
        argument.dtype is dtype and argument.numel() == parameter.numel() and argument._base is parameter
        for argument, parameter in zip(arguments, parameters, strict=True)
    )


def _gradients(primitive: Primitive, g: Tensor, x: Tensor, input_gradient: bool) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of x (None unless wanted) and of the primitive's arguments."""
    form, arguments, constants = primitive
    values = [argument.detach() for argument in arguments]
    # Two pullbacks cost more than all gradients at once, and a pullback knows only the type of x.
    if input_gradient or len(values) > 1 or values[0].dtype != x.dtype:
        x_gradient, *inner = form.gradients(0, g, x, *values, *constants)
        return x_gradient if input_gradient else None, inner
    return None, [form.partial(2, None, g, x, values[0].shape[-1], *constants)]
