"""The product with W(u, s, v) = u diag(s) v^T, its transpose and its pullbacks, closed under differentiation.

W is m x n for u of m x k, s of k and v of n x k; its transpose is W(v, s, u). Every tensor has a leading dimension G of
independent problems, which carries vmap. SiVA trains s alone, so u and v get their gradients from plain products.
"""

import torch
from torch import Tensor

from surm_kernels._widening import widened
from surm_kernels.ops import _problems
from surm_kernels.ops._library import define, without_autocast
from surm_kernels.ops._multilinear import MultilinearForm
from surm_kernels.ops._primitive import Primitive, Work
from surm_kernels.reference.ops import diagonal as reference


def _diagonal_fake(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
    torch._check(x.shape[-1] == v.shape[1])
    return x.new_empty(x.shape[0], x.shape[1], u.shape[1])


def _diagonal_pullback_fake(g: Tensor, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], u.shape[2])


def _diagonal_backward_fake(
    g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), s.new_empty(s.shape)


DIAGONAL = "diagonal(Tensor x, Tensor u, Tensor s, Tensor v, Tensor? base, float scale) -> Tensor"
PULLBACK = "diagonal_pullback(Tensor g, Tensor x, Tensor u, Tensor v, float scale) -> Tensor"
BACKWARD = "diagonal_backward(Tensor g, Tensor x, Tensor u, Tensor s, Tensor v, float scale) -> (Tensor, Tensor)"

_diagonal = define(DIAGONAL, _diagonal_fake, reference.diagonal, cuda=_problems.diagonal)
_diagonal_pullback = define(
    PULLBACK, _diagonal_pullback_fake, reference.diagonal_pullback, cuda=_problems.diagonal_pullback
)
_diagonal_backward = define(
    BACKWARD, _diagonal_backward_fake, reference.diagonal_backward, cuda=_problems.diagonal_backward
)


def _factor_gradient(g: Tensor, x: Tensor, s: Tensor, v: Tensor, scale: float) -> Tensor:
    with without_autocast(x):
        return reference.factor_gradient(g, x, s, v, scale)


class _Form(MultilinearForm):
    """Arguments u (1, m, k), s (1, k) and v (1, n, k), of which s alone is trained."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        u, _, v = w.arguments
        return u.shape[1], v.shape[1]

    def dense(self, w: Primitive) -> Tensor:
        u, s, v = (widened(argument.squeeze(0)) for argument in w.arguments)
        with without_autocast(u):
            return ((u * s) @ v.mT).to(w.arguments[0].dtype)

    def merge(self, w: Primitive, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        """In one matrix product where all types agree."""
        u, s, v = (argument.squeeze(0) for argument in w.arguments)
        if out is weight or {t.dtype for t in (weight, u, s, v, out)} not in ({torch.float32}, {torch.float64}):
            return False
        torch.addmm(weight, u * s, v.mT, alpha=scale, out=out)
        return True

    def work(self, w: Primitive) -> Work:
        m, n = w.sizes
        terms = w.arguments[1].shape[1]
        return Work(terms * (m + n), terms * m * n)


# scale <g, x (u diag(s) v^T)^T>
form = _Form(
    "Diagonal",
    (
        lambda base, _, x, u, s, v, scale: _diagonal(x, u, s, v, base, scale),
        lambda base, g, _, u, s, v, scale: _diagonal(g, v, s, u, base, scale),
        lambda _base, g, x, _, s, v, scale: _factor_gradient(g, x, s, v, scale),
        lambda _base, g, x, u, _, v, scale: _diagonal_pullback(g, x, u, v, scale),
        lambda _base, g, x, u, s, _, scale: _factor_gradient(x, g, s, u, scale),
    ),
    {0: lambda g, x, u, s, v, scale: _diagonal_backward(g, x, u, s, v, scale)},
    places={0: (1, 3)},
)


def from_projection(projection: Tensor, u: Tensor, s: Tensor, base: Tensor | None, scale: float) -> Tensor:
    """`diagonal` of tokens whose x v is at hand; not recorded.

    Tensors have no dimension of problems, base is (m,). All by plain products, here and in `gradients_by_projection`:
    to keep tokens x k numbers from the product for the gradients makes four products of five.
    """
    scaled = (projection * (scale * widened(s))).to(projection.dtype)
    return scaled @ u.mT if base is None else torch.addmm(base, scaled, u.mT)


def gradients_by_projection(
    g: Tensor, projection: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float, input_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    """The gradients of `scale * <g, x @ W.T>` with respect to x, None unless wanted, and s; not recorded."""
    of_g = g @ u
    s_gradient = scale * (widened(of_g) * widened(projection)).sum(0)
    x_gradient = (of_g * (scale * widened(s))).to(g.dtype) @ v.mT if input_gradient else None
    return x_gradient, s_gradient.to(s.dtype)


def diagonal(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Tensor:
    """`base + scale * ((x @ v) * s) @ u.T`."""
    return form.partial(0, base, None, x, u, s, v, scale)


def diagonal_pullback(g: Tensor, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to s."""
    return form.partial(3, None, g, x, u, None, v, scale)


def diagonal_backward(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W.T>` with respect to x and s."""
    return form.gradients_at(0, g, x, u, s, v, scale)
