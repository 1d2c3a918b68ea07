"""The product of low displacement rank, its transpose and its pullbacks, closed under differentiation.

W(left, right) is the n x n matrix sum over l of Z_1(left[l]) Z_-1(right[l]), times the reversal J on the right when
reflected, of which a product may use the top left part. Every tensor has a leading dimension G of independent problems,
which carries vmap.
"""

import torch
from torch import Tensor

from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import Form
from surm_kernels.reference.ops import ldr as reference


def _ldr_fake(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    base: Tensor | None,
    width: int,
    scale: float,
    transposed: bool,
    reflected: bool,
) -> Tensor:
    torch._check(x.shape[-1] <= left.shape[-1])
    torch._check(width <= left.shape[-1])
    return x.new_empty(x.shape[0], x.shape[1], width)


def _ldr_pullback_left_fake(g: Tensor, x: Tensor, right: Tensor, scale: float, reflected: bool) -> Tensor:
    return right.new_empty(right.shape)


def _ldr_pullback_right_fake(g: Tensor, x: Tensor, left: Tensor, scale: float, reflected: bool) -> Tensor:
    return left.new_empty(left.shape)


def _ldr_backward_fake(
    g: Tensor, x: Tensor, left: Tensor, right: Tensor, scale: float, reflected: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), left.new_empty(left.shape), right.new_empty(right.shape)


LDR = (
    "ldr(Tensor x, Tensor left, Tensor right, Tensor? base, SymInt width, float scale, bool transposed, "
    "bool reflected) -> Tensor"
)
PULLBACK_LEFT = "ldr_pullback_left(Tensor g, Tensor x, Tensor right, float scale, bool reflected) -> Tensor"
PULLBACK_RIGHT = "ldr_pullback_right(Tensor g, Tensor x, Tensor left, float scale, bool reflected) -> Tensor"
BACKWARD = (
    "ldr_backward(Tensor g, Tensor x, Tensor left, Tensor right, float scale, bool reflected) -> "
    "(Tensor, Tensor, Tensor)"
)

_ldr = define(LDR, _ldr_fake, reference.ldr, cuda=_problems.ldr)
_ldr_pullback_left = define(
    PULLBACK_LEFT, _ldr_pullback_left_fake, reference.ldr_pullback_left, cuda=_problems.ldr_pullback_left
)
_ldr_pullback_right = define(
    PULLBACK_RIGHT, _ldr_pullback_right_fake, reference.ldr_pullback_right, cuda=_problems.ldr_pullback_right
)
_ldr_backward = define(BACKWARD, _ldr_backward_fake, reference.ldr_backward, cuda=_problems.ldr_backward)

# scale <g, x W(left, right)^T>
form = Form(
    "Ldr",
    (
        lambda base, width, x, left, right, scale, reflected: _ldr(
            x, left, right, base, width, scale, False, reflected
        ),
        lambda base, g, width, left, right, scale, reflected: _ldr(g, left, right, base, width, scale, True, reflected),
        lambda _base, g, x, _, right, scale, reflected: _ldr_pullback_left(g, x, right, scale, reflected),
        lambda _base, g, x, left, _, scale, reflected: _ldr_pullback_right(g, x, left, scale, reflected),
    ),
    {0: lambda g, x, left, right, scale, reflected: _ldr_backward(g, x, left, right, scale, reflected)},
)


def ldr(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    base: Tensor | None,
    width: int,
    scale: float,
    transposed: bool,
    reflected: bool,
) -> Tensor:
    """`base + scale * x @ W.T`, `x @ W` when transposed, for the first x.shape[-1] inputs and `width` outputs of W."""
    if transposed:
        return form.partial(1, base, x, width, left, right, scale, reflected)
    return form.partial(0, base, width, x, left, right, scale, reflected)


def ldr_pullback_left(g: Tensor, x: Tensor, right: Tensor, scale: float, reflected: bool) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to left."""
    return form.partial(2, None, g, x, None, right, scale, reflected)


def ldr_pullback_right(g: Tensor, x: Tensor, left: Tensor, scale: float, reflected: bool) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to right."""
    return form.partial(3, None, g, x, left, None, scale, reflected)


def ldr_backward(
    g: Tensor, x: Tensor, left: Tensor, right: Tensor, scale: float, reflected: bool
) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W.T>` with respect to x, left and right."""
    return form.gradients(0, g, x, left, right, scale, reflected)
