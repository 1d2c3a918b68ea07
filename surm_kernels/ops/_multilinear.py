"""Multilinear forms, closed under differentiation: one pair of autograd.Functions behind every primitive.

A primitive is a form τ(g, x, θ...) = scale <g, x W(θ...)^T>, linear in each argument. Its partial derivative in
position i is an operator of the other arguments: in position 0 the product, in position 1 the transposed product, from
position 2 on the pullbacks to the parameters. The dense matrix and its adjoint are those of the form <w, W(θ)>. The
derivative of <c, partial i> with respect to argument j is partial j with c in place i, so derivatives of every order
and mode are partials again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surm_kernels.ops._differentiable import differentiable, fold, leading, unfold
from surm_kernels.ops._primitive import Form, Primitive


class Multilinear:
    """A multilinear map, known by its partial derivatives.

    Args:
        name: of its autograd.Functions.
        partials: for each position a function `(base, *arguments, *constants)`. In the place of its own argument it
            gets the size of that argument's last dimension, or None where it knows. Products have a base to add: those
            are positions 0 and 1 of a form with parameters.
        fused: for some positions a function `(*arguments, *constants)` that gives other partials in one pass.
        places: for positions of `fused`, which partials the function gives where it does not give all others.

    `partial(position, base, *arguments, *constants)` and `gradients_at(position, *arguments, *constants)` call them,
    through the autograd.Functions `Partial` and `Gradients` where somebody asks for a derivative.
    """

    def __init__(
        self,
        name: str,
        partials: Sequence[Callable[..., Tensor]],
        fused: Mapping[int, Callable[..., tuple[Tensor, ...]]] | None = None,
        places: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        self.partials = partials
        self.fused = fused or {}
        self.arity = len(partials)
        self.places = {at: tuple(place for place in range(self.arity) if place != at) for at in self.fused}
        self.places.update(places or {})
        self.Partial = type(name, (_Partial,), {})
        self.Gradients = type(f"{name}Gradients", (_Gradients,), {})
        eager = type(name, (_EagerPartial,), {}), type(f"{name}Gradients", (_EagerGradients,), {})
        # functools.partial, since a method of its own would cost more than a small kernel
        self.partial = functools.partial(differentiable(_Partial.forward, self.Partial, eager[0]), self)
        self.gradients_at = functools.partial(differentiable(_Gradients.forward, self.Gradients, eager[1]), self)

    def is_product(self, position: int) -> bool:
        return position < 2 < self.arity

    def derivative(
        self, position: int, base: Tensor | None, arguments: Sequence[Any], tangents: Sequence[Any], constants: Any
    ) -> Any:
        """`base +` the derivative of the partial in a position along the tangents of its arguments, None for zero.

        An argument that is not needed may be the size of its last dimension.
        """
        own = arguments[position]
        size = own.shape[-1] if isinstance(own, Tensor) else own
        for place, tangent in enumerate(tangents):
            if place == position or tangent is None:
                continue
            moved = [*arguments[:place], tangent, *arguments[place + 1 :]]
            moved[position] = size
            if base is None or self.is_product(position):
                base = self.partial(position, base, *moved, *constants)
            else:
                base = base + self.partial(position, None, *moved, *constants)
        return base


class MultilinearForm(Multilinear, Form):
    """The form of a primitive W: scale <g, x W(arguments)^T>, whose constants begin with the scale."""

    def product(self, w: Primitive, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return self.partial(0, base, None, x, *w.arguments, scale, *w.constants)

    def gradients(
        self, w: Primitive, g: Tensor, x: Tensor, scale: float, input_gradient: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        values = [t.detach() if t.requires_grad else t for t in w.arguments]
        trained = self.places[0][1:]
        # Two pullbacks cost more than all gradients at once, and a pullback knows only the type of x.
        if input_gradient or len(trained) > 1 or values[trained[0] - 2].dtype != x.dtype:
            x_gradient, *found = self.gradients_at(0, g, x, *values, scale, *w.constants)
        else:
            x_gradient, (place,) = None, trained
            arguments: list[Any] = [g, x, *values]
            arguments[place] = values[place - 2].shape[-1]
            found = [self.partial(place, None, *arguments, scale, *w.constants)]
        inner: list[Tensor | None] = [None] * len(values)
        for place, gradient in zip(trained, found, strict=True):
            inner[place - 2] = gradient
        return x_gradient if input_gradient else None, inner


class _Partial(torch.autograd.Function):
    """`(form, position, base, *arguments, *constants)` -> `form.partial(position, base, *arguments, *constants)`."""

    @staticmethod
    def forward(form: Multilinear, position: int, base: Tensor | None, *rest: Any) -> Tensor:
        return form.partials[position](base, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.form, ctx.position, _, *rest = inputs
        arguments, ctx.constants = list(rest[: ctx.form.arity]), rest[ctx.form.arity :]  # a tuple to Dynamo in 2.11
        if ctx.form.arity > 2:
            ctx.size, arguments[ctx.position] = arguments[ctx.position], None
            ctx.save_for_backward(*arguments)
            ctx.save_for_forward(*arguments)
        else:  # linear in its one argument, which the derivative does not need
            ctx.sizes = [t.shape[-1] if isinstance(t, Tensor) else t for t in arguments]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        form, position, constants = ctx.form, ctx.position, ctx.constants
        _, _, base_needed, *needed = ctx.needs_input_grad
        arguments = _arguments(ctx)
        wanted = tuple(place for place in range(form.arity) if needed[place])
        if form.places.get(position) == wanted:
            arguments[position] = cotangent
            gradients = _placed(form, position, form.gradients_at(position, *arguments, *constants))
        else:
            cotangents: list[Any] = [None] * form.arity
            cotangents[position] = cotangent
            gradients = [
                form.derivative(place, None, arguments, cotangents, constants) if needed[place] else None
                for place in range(form.arity)
            ]
        return None, None, cotangent if base_needed else None, *gradients, *[None] * len(constants)

    @staticmethod
    def vmap(info: Any, in_dims: Any, form: Multilinear, position: int, *rest: Any) -> tuple[Tensor, int]:
        tensors, constants = list(rest[: form.arity + 1]), rest[form.arity + 1 :]
        size, tensors[position + 1] = tensors[position + 1], None
        dims = in_dims[2 : form.arity + 3]
        shared = form.is_product(position) and all(dim is None for dim in dims[3:])
        # One matrix for the whole batch means more tokens, not more problems.
        folded = [*_more_tokens(info, dims[:3], *tensors[:3]), *tensors[3:]] if shared else fold(info, dims, *tensors)
        folded[position + 1] = size
        result = form.partial(position, *folded, *constants)
        return (result.unflatten(1, (info.batch_size, -1)), 1) if shared else (unfold(info, result), 0)


class _EagerPartial(_Partial):
    @staticmethod
    def jvp(ctx: Any, _form: Any, _position: Any, base_tangent: Any, *tangents: Any) -> Any:
        form = ctx.form
        return form.derivative(ctx.position, base_tangent, _arguments(ctx), tangents[: form.arity], ctx.constants)


class _Gradients(torch.autograd.Function):
    """`(form, position, *arguments, *constants)` -> `form.gradients_at(position, *arguments, *constants)`."""

    @staticmethod
    def forward(form: Multilinear, position: int, *rest: Any) -> tuple[Tensor, ...]:
        return form.fused[position](*rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.form, ctx.position, *rest = inputs
        arguments, ctx.constants = rest[: ctx.form.arity], rest[ctx.form.arity :]
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        form, position, constants = ctx.form, ctx.position, ctx.constants
        _, _, *needed = ctx.needs_input_grad
        along = _placed(form, position, cotangents)
        gradients = [
            form.derivative(place, None, ctx.saved_tensors, along, constants) if needed[place] else None
            for place in range(form.arity)
        ]
        return None, None, *gradients, *[None] * len(constants)

    @staticmethod
    def vmap(info: Any, in_dims: Any, form: Multilinear, position: int, *rest: Any) -> Any:
        arguments = fold(info, in_dims[2:], *rest[: form.arity])
        gradients = form.gradients_at(position, *arguments, *rest[form.arity :])
        return tuple(unfold(info, gradient) for gradient in gradients), (0,) * len(gradients)


class _EagerGradients(_Gradients):
    @staticmethod
    def jvp(ctx: Any, _form: Any, _position: Any, *tangents: Any) -> Any:
        form, arguments = ctx.form, ctx.saved_tensors
        results = []
        for place in form.places[ctx.position]:
            along = form.derivative(place, None, arguments, tangents[: form.arity], ctx.constants)
            results.append(torch.zeros_like(arguments[place]) if along is None else along)
        return tuple(results)


def _placed(form: Multilinear, position: int, partials: Sequence[Tensor]) -> list[Any]:
    """The partials of the fused function in a position, each in its place, None in the others."""
    placed: list[Any] = [None] * form.arity
    for place, partial in zip(form.places[position], partials, strict=True):
        placed[place] = partial
    return placed


def _arguments(ctx: Any) -> list[Any]:
    """What `Multilinear.derivative` takes for the arguments of a partial."""
    if ctx.form.arity == 2:
        return list(ctx.sizes)
    arguments = list(ctx.saved_tensors)
    arguments[ctx.position] = ctx.size
    return arguments


def _more_tokens(info: Any, dimensions: tuple[Any, ...], *tensors: Tensor | None) -> list[Any]:
    """The vmapped dimension of each tensor made part of the tokens."""
    moved = (leading(info, dimension, t) for dimension, t in zip(dimensions, tensors, strict=True))
    return [None if t is None else t.movedim(0, 1).flatten(1, 2) for t in moved]
