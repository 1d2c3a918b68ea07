"""How an operator is called: through autograd only when somebody asks for a derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surm_kernels.ops import _mode


def differentiable(operator: Any, traced: Any, eager: Any) -> Callable[..., Any]:
    """The function that calls `operator`, recording for autograd where that is needed.

    Args:
        operator: knows nothing of autograd.
        traced: the autograd.Function torch.compile and torch.export see; it has no jvp, which they cannot trace.
        eager: the same Function with a jvp.
    """
    # Function.apply first binds default arguments, which costs more than a small kernel.
    apply = super(torch.autograd.Function, eager).apply

    def call(*arguments: Any) -> Any:
        if _mode.is_compiling():
            if _mode.transforms_active():  # Dynamo would differentiate the operator without this Function: to zero
                raise NotImplementedError("torch.func transforms inside torch.compile; compile the function they take")
            recorded = torch.is_grad_enabled() and _requires_grad(arguments)
            return traced.apply(*_distinct(arguments)) if recorded else operator(*arguments)
        if _mode.transforms_active():
            return eager.apply(*arguments)
        if not (_mode.in_forward_mode() or (torch.is_grad_enabled() and _requires_grad(arguments))):
            return operator(*arguments)
        return apply(*arguments)

    return call


def _requires_grad(arguments: tuple[Any, ...]) -> bool:
    for argument in arguments:  # noqa: SIM110 - a generator would cost more than a small kernel
        if isinstance(argument, Tensor) and argument.requires_grad:
            return True
    return False


def _distinct(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments with views in place of repetitions: Dynamo gives a tensor passed twice wrong gradients."""
    distinct: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor) and any(argument is earlier for earlier in distinct):
            argument = argument.view_as(argument)
        distinct.append(argument)
    return distinct


def leading(info: Any, dimension: int | None, t: Tensor | None) -> Tensor | None:
    """t with its vmapped dimension in front, or an expanded one put there."""
    if t is None:
        return None
    return t.expand(info.batch_size, *t.shape) if dimension is None else t.movedim(dimension, 0)


def fold(info: Any, dimensions: tuple[Any, ...], *tensors: Tensor | None) -> list[Any]:
    """The vmapped dimension of each tensor made part of the leading one, which counts independent problems."""
    moved = (leading(info, dimension, t) for dimension, t in zip(dimensions, tensors, strict=False))
    return [None if t is None else t.flatten(0, 1) for t in moved]


def unfold(info: Any, t: Tensor) -> Tensor:
    """Undoes `fold` for a result."""
    return t.unflatten(0, (info.batch_size, -1))
