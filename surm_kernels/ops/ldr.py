"""The product of low displacement rank, its transpose and its pullbacks, closed under differentiation.

W(left, right) is the n x n matrix sum over l of Z_1(left[l]) Z_-1(right[l]), times the reversal J on the right when
reflected, of which a product may use the top left part. Every tensor has a leading dimension G of independent problems,
which carries vmap.
"""

import torch
from torch import Tensor

from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import MultilinearForm
from surm_kernels.ops._primitive import Primitive, Work, transform_work
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


class _Form(MultilinearForm):
    """Arguments left and right (1, r, n); constants outputs and inputs, at most n, and reflected."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        outputs, inputs, _ = w.constants
        return outputs, inputs

    def dense(self, w: Primitive) -> Tensor:
        """As the transposed product with the rows of the identity."""
        (left, right), (outputs, inputs, reflected) = w.arguments, w.constants
        identity = torch.eye(outputs, dtype=left.dtype, device=left.device).unsqueeze(0)
        return ldr(identity, left, right, None, inputs, 1.0, True, reflected).squeeze(0)

    def work(self, w: Primitive) -> Work:
        _, rank, size = w.arguments[0].shape
        a_token = (2 * rank + 2) * transform_work(size)
        return Work(a_token, size * a_token)


# scale <g, x W(left, right)^T>
form = _Form(
    "Ldr",
    (
        lambda base, _, x, left, right, scale, outputs, _inputs, reflected: _ldr(
            x, left, right, base, outputs, scale, False, reflected
        ),
        lambda base, g, _, left, right, scale, _outputs, inputs, reflected: _ldr(
            g, left, right, base, inputs, scale, True, reflected
        ),
        lambda _base, g, x, _, right, scale, _outputs, _inputs, reflected: _ldr_pullback_left(
            g, x, right, scale, reflected
        ),
        lambda _base, g, x, left, _, scale, _outputs, _inputs, reflected: _ldr_pullback_right(
            g, x, left, scale, reflected
        ),
    ),
    {
        0: lambda g, x, left, right, scale, _outputs, _inputs, reflected: _ldr_backward(
            g, x, left, right, scale, reflected
        )
    },
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
        return form.partial(1, base, x, None, left, right, scale, x.shape[-1], width, reflected)
    return form.partial(0, base, None, x, left, right, scale, width, x.shape[-1], reflected)


def ldr_pullback_left(g: Tensor, x: Tensor, right: Tensor, scale: float, reflected: bool) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to left."""
    return form.partial(2, None, g, x, None, right, scale, g.shape[-1], x.shape[-1], reflected)


def ldr_pullback_right(g: Tensor, x: Tensor, left: Tensor, scale: float, reflected: bool) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to right."""
    return form.partial(3, None, g, x, left, None, scale, g.shape[-1], x.shape[-1], reflected)


def ldr_backward(
    g: Tensor, x: Tensor, left: Tensor, right: Tensor, scale: float, reflected: bool
) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W.T>` with respect to x, left and right."""
    return form.gradients_at(0, g, x, left, right, scale, g.shape[-1], x.shape[-1], reflected)
