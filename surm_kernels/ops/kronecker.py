"""The product with a Kronecker matrix W(a, b) = a ⊗ b, its transpose and its pullbacks, closed under differentiation.

W is p r x q s for a of p x q and b of r x s: numpy.kron(a, b). Every tensor has a leading dimension G of independent
problems, which carries vmap.
"""

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import MultilinearForm
from surm_kernels.ops._primitive import Primitive, Work
from surm_kernels.reference.ops import kronecker as reference


def _kronecker_fake(x: Tensor, a: Tensor, b: Tensor, base: Tensor | None, scale: float, transposed: bool) -> Tensor:
    outputs, inputs = a.shape[1] * b.shape[1], a.shape[2] * b.shape[2]
    if transposed:
        outputs, inputs = inputs, outputs
    torch._check(x.shape[-1] == inputs)
    return x.new_empty(x.shape[0], x.shape[1], outputs)


def _kronecker_pullback_left_fake(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], g.shape[-1] // b.shape[1], x.shape[-1] // b.shape[2])


def _kronecker_pullback_right_fake(g: Tensor, x: Tensor, a: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], g.shape[-1] // a.shape[1], x.shape[-1] // a.shape[2])


def _kronecker_backward_fake(g: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


KRONECKER = "kronecker(Tensor x, Tensor a, Tensor b, Tensor? base, float scale, bool transposed) -> Tensor"
PULLBACK_LEFT = "kronecker_pullback_left(Tensor g, Tensor x, Tensor b, float scale) -> Tensor"
PULLBACK_RIGHT = "kronecker_pullback_right(Tensor g, Tensor x, Tensor a, float scale) -> Tensor"
BACKWARD = "kronecker_backward(Tensor g, Tensor x, Tensor a, Tensor b, float scale) -> (Tensor, Tensor, Tensor)"

_kronecker = define(KRONECKER, _kronecker_fake, reference.kronecker, cuda=_problems.kronecker)
_kronecker_pullback_left = define(
    PULLBACK_LEFT,
    _kronecker_pullback_left_fake,
    reference.kronecker_pullback_left,
    cuda=_problems.kronecker_pullback_left,
)
_kronecker_pullback_right = define(
    PULLBACK_RIGHT,
    _kronecker_pullback_right_fake,
    reference.kronecker_pullback_right,
    cuda=_problems.kronecker_pullback_right,
)
_kronecker_backward = define(
    BACKWARD, _kronecker_backward_fake, reference.kronecker_backward, cuda=_problems.kronecker_backward
)


class _Form(MultilinearForm):
    """Arguments a (1, p, q) and b (1, r, s)."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        (_, p, q), (_, r, s) = (argument.shape for argument in w.arguments)
        return p * r, q * s

    def dense(self, w: Primitive) -> Tensor:
        a, b = (widened(argument.squeeze(0)) for argument in w.arguments)
        return (a[:, None, :, None] * b[:, None, :]).flatten(2).flatten(0, 1).to(w.arguments[0].dtype)

    def merge(self, w: Primitive, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        if key is not None or not (weight.is_contiguous() and out.is_contiguous()):
            return False
        (a, b) = (widened(argument) for argument in w.arguments)
        (_, p, q), (_, r, s) = a.shape, b.shape
        blocks = out.view(p, r, q, s)
        torch.addcmul(weight.view(p, r, q, s), a.view(p, 1, q, 1), b.view(1, r, 1, s), value=scale, out=blocks)
        return True

    def work(self, w: Primitive) -> Work:
        (_, p, q), (_, r, s) = (argument.shape for argument in w.arguments)
        return Work(min(q * s * r + r * q * p, q * s * p + p * s * r), p * r * q * s)


# scale <g, x (a ⊗ b)^T>
form = _Form(
    "Kronecker",
    (
        lambda base, _, x, a, b, scale: _kronecker(x, a, b, base, scale, False),
        lambda base, g, _, a, b, scale: _kronecker(g, a, b, base, scale, True),
        lambda _base, g, x, _, b, scale: _kronecker_pullback_left(g, x, b, scale),
        lambda _base, g, x, a, _, scale: _kronecker_pullback_right(g, x, a, scale),
    ),
    {0: lambda g, x, a, b, scale: _kronecker_backward(g, x, a, b, scale)},
)


def kronecker(x: Tensor, a: Tensor, b: Tensor, base: Tensor | None, scale: float, transposed: bool) -> Tensor:
    """`base + scale * x @ torch.kron(a, b).T`, `x @ torch.kron(a, b)` when transposed."""
    if transposed:
        return form.partial(1, base, x, None, a, b, scale)
    return form.partial(0, base, None, x, a, b, scale)


def kronecker_pullback_left(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ torch.kron(a, b).T>` with respect to a."""
    return form.partial(2, None, g, x, None, b, scale)


def kronecker_pullback_right(g: Tensor, x: Tensor, a: Tensor, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ torch.kron(a, b).T>` with respect to b."""
    return form.partial(3, None, g, x, a, None, scale)


def kronecker_backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ torch.kron(a, b).T>` with respect to x, a and b."""
    return form.gradients_at(0, g, x, a, b, scale)
