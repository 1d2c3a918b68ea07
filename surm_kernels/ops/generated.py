"""Products with matrices generated as they are multiplied: Vandermonde, Vandermonde-like, Cauchy-like.

A kind of matrix is a formula of its parameters, the first of which has one entry a row; they are not multilinear:

    vandermonde (v)              W[i, j] = v[i]^j
    vandermonde_like (v, G, H)   W[i, j] = v[i] W[i, j - 1] + (G^T H)[i, j]
    cauchy_like (v, u, G, H)     W[i, j] = (G^T H)[i, j] / (v[i] - u[j])

The operators never hold more than a panel of rows. They serve first derivatives, in eager mode and under
torch.compile; for derivatives of higher order, in forward mode and under torch.func the product is the plain
expression `x @ W.T`, which is right but keeps W and what its formula leaves for autograd.

x is (G, T, n) in any floating type; the parameters have its type or, where it has 16 bits, float32.
"""

from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.ops import _mode, _panels, _problems
from surm_kernels.ops._differentiable import _distinct, _requires_grad
from surm_kernels.ops._library import define, without_autocast
from surm_kernels.ops._primitive import Form, Primitive


def require_apart(v: Tensor, u: Tensor) -> None:
    """Refuses nodes in common where the numbers are at hand: on the CPU, not compiled, transformed or fake."""
    if v.is_cpu and _mode.has_values(v) and _mode.has_values(u):
        _checks.require_apart(v, u)


def matrix(kind: str, columns: int, *parameters: Tensor) -> Tensor:
    """W, (m, columns), by differentiable operations; call it without autocast."""
    if kind == "cauchy_like":
        v, u, G, H = parameters
        return G.mT @ H / (v[:, None] - u)
    v, *generators = parameters
    result = v[:, None] ** 0  # has v in its graph, even for one column
    if generators:
        result = result * (generators[0].mT @ generators[1])
    exact, step = v.double()[:, None], 1
    while step < columns:  # the same doubling steps as panels take; v ** j has NaN among its derivatives at v = 0
        power = (exact**step).to(v.dtype)
        if generators:
            result = result + power * torch.nn.functional.pad(result[:, :-step], (step, 0))
        else:
            result = torch.cat([result, power * result[:, : columns - step]], 1)
        step *= 2
    return result


def _plain(x: Tensor, base: Tensor | None, kind: str, scale: float, *parameters: Tensor) -> Tensor:
    """The product through W, which every transformation of torch can take."""
    with without_autocast(x):
        y = scale * (x.to(parameters[0].dtype) @ matrix(kind, x.shape[-1], *parameters).mT)
        return (y if base is None else y + base).to(x.dtype)


def _generated_fake(x: Tensor, parameters: list[Tensor], base: Tensor | None, kind: str, scale: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], parameters[0].shape[0])


def _generated_backward_fake(
    g: Tensor, x: Tensor, parameters: list[Tensor], kind: str, scale: float, need_x: bool, need_parameters: bool
) -> list[Tensor]:
    gradients = [x.new_empty(x.shape)] * need_x
    return gradients + [parameter.new_empty(parameter.shape) for parameter in parameters] * need_parameters


GENERATED = "generated(Tensor x, Tensor[] parameters, Tensor? base, str kind, float scale) -> Tensor"
BACKWARD = (
    "generated_backward(Tensor g, Tensor x, Tensor[] parameters, str kind, float scale, "
    "bool need_x, bool need_parameters) -> Tensor[]"
)

_generated = define(GENERATED, _generated_fake, _panels.generated, cuda=_problems.generated)
_generated_backward = define(
    BACKWARD, _generated_backward_fake, _panels.generated_backward, cuda=_problems.generated_backward
)


class Generated(torch.autograd.Function):
    """`(x, base, kind, scale, *parameters)` -> `base + scale * x @ W.T`."""

    @staticmethod
    def forward(x: Tensor, base: Tensor | None, kind: str, scale: float, *parameters: Tensor) -> Tensor:
        return _generated(x, parameters, base, kind, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, _, ctx.kind, ctx.scale, *parameters = inputs
        ctx.save_for_backward(x, *parameters)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, *parameters = ctx.saved_tensors
        need_x, need_base, _, _, *needed = ctx.needs_input_grad
        gradients = _generated_backward(g, x, parameters, ctx.kind, ctx.scale, need_x, any(needed))
        x_gradient = gradients[0] if need_x else None
        rest = gradients[-len(parameters) :] if any(needed) else [None] * len(parameters)
        return x_gradient, g if need_base else None, None, None, *rest


class _EagerGenerated(Generated):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        recorded = torch.is_grad_enabled()
        if not recorded and not _mode.is_batched(g):
            return Generated.backward(ctx, g)
        need_x, need_base, _, _, *needed = ctx.needs_input_grad
        with torch.enable_grad():  # views, so that a tensor that was passed twice has two gradients
            inputs = [t.view_as(t) if recorded else t.detach().requires_grad_() for t in ctx.saved_tensors]
            y = _plain(inputs[0], None, ctx.kind, ctx.scale, *inputs[1:])
        wanted = [t for t, need in zip(inputs, (need_x, *needed), strict=True) if need]
        found = iter(torch.autograd.grad(y, wanted, g, create_graph=recorded) if wanted else ())
        x_gradient, *rest = [next(found) if need else None for need in (need_x, *needed)]
        return x_gradient, g if need_base else None, None, None, *rest


# Function.apply first binds default arguments, which costs more than a small product.
_apply: Any = super(torch.autograd.Function, _EagerGenerated).apply


def _differentiable_product(x: Tensor, base: Tensor | None, kind: str, scale: float, *parameters: Tensor) -> Tensor:
    """The operator where it serves, or the plain product."""
    compiling = _mode.is_compiling()
    if _mode.transforms_active() or (not compiling and _mode.in_forward_mode()):
        return _plain(x, base, kind, scale, *parameters)
    if not (torch.is_grad_enabled() and _requires_grad((x, base, *parameters))):
        return _generated(x, parameters, base, kind, scale)
    if compiling:
        return Generated.apply(*_distinct((x, base, kind, scale, *parameters)))
    return _apply(x, base, kind, scale, *parameters)


class _Form(Form):
    """Arguments as the kind has them, in float32 or float64; constants kind and n, the number of columns."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        _, columns = w.constants
        return w.arguments[0].shape[0], columns

    def product(self, w: Primitive, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return _differentiable_product(x, base, w.constants[0], scale, *w.arguments)

    def dense(self, w: Primitive) -> Tensor:
        with without_autocast(w.arguments[0]):
            return matrix(*w.constants, *w.arguments)

    def gradients(
        self, w: Primitive, g: Tensor, x: Tensor, scale: float, input_gradient: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        arguments = [argument.detach() for argument in w.arguments]
        gradients = _generated_backward(g, x, arguments, w.constants[0], scale, input_gradient, True)
        return gradients[0] if input_gradient else None, gradients[-len(arguments) :]


form = _Form()
