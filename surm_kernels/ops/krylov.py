"""The block Krylov product W(v), its transpose, its pullback and its dense matrix, closed under differentiation.

W(v) is the (M b) x (K b) matrix whose block (p, q) is f-circulant with first column v[p, q], f = sign = 1 or -1.
With P(g, x) the gradient of <g, x W(v)^T> with respect to v, each derivative below is again W, W^T or P. Every tensor
has a leading dimension G of independent problems, which carries vmap.
"""

from typing import Any

import torch
from torch import Tensor

from surm_kernels.ops._differentiable import differentiable, fold, leading, unfold
from surm_kernels.ops._library import define
from surm_kernels.reference.ops import krylov as reference


def _krylov_fake(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
    _, outputs, inputs, block = v.shape
    if transposed:
        outputs, inputs = inputs, outputs
    torch._check(x.shape[-1] == inputs * block)
    return x.new_empty(x.shape[0], x.shape[1], outputs * block)


def _krylov_pullback_fake(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], g.shape[-1] // block, x.shape[-1] // block, block)


def _krylov_backward_fake(
    g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), v.new_empty(v.shape)


def _krylov_dense_fake(v: Tensor, sign: int) -> Tensor:
    groups, outputs, inputs, block = v.shape
    return v.new_empty(groups, outputs * block, inputs * block)


def _krylov_dense_adjoint_fake(w: Tensor, block: int, sign: int) -> Tensor:
    return w.new_empty(w.shape[0], w.shape[1] // block, w.shape[2] // block, block)


KRYLOV = "krylov(Tensor x, Tensor v, Tensor? base, int sign, float scale, bool transposed) -> Tensor"
PULLBACK = "krylov_pullback(Tensor g, Tensor x, SymInt block, int sign, float scale) -> Tensor"
BACKWARD = "krylov_backward(Tensor g, Tensor x, Tensor v, int sign, float scale, bool transposed) -> (Tensor, Tensor)"
DENSE = "krylov_dense(Tensor v, int sign) -> Tensor"
DENSE_ADJOINT = "krylov_dense_adjoint(Tensor w, SymInt block, int sign) -> Tensor"

_krylov = define(KRYLOV, _krylov_fake, reference.krylov)
_krylov_pullback = define(PULLBACK, _krylov_pullback_fake, reference.krylov_pullback)
_krylov_backward = define(BACKWARD, _krylov_backward_fake, reference.krylov_backward)
_krylov_dense = define(DENSE, _krylov_dense_fake, reference.krylov_dense)
_krylov_dense_adjoint = define(DENSE_ADJOINT, _krylov_dense_adjoint_fake, reference.krylov_dense_adjoint)


def _pullback(g: Tensor, x: Tensor, block: int, sign: int, scale: float, transposed: bool) -> Tensor:
    """The gradient of `scale * <g, x W(v)^T>` with respect to v, of `scale * <g, x W(v)>` when transposed."""
    output, input = (x, g) if transposed else (g, x)
    return krylov_pullback(output, input, block, sign, scale)


def _gradients(ctx: Any, g: Tensor, x: Tensor, v: Tensor, need_x: bool, need_v: bool) -> tuple[Any, Any]:
    """The gradients of x and v that are needed, by the cheapest operator that gives them."""
    if need_x and need_v:
        return krylov_backward(g, x, v, ctx.sign, ctx.scale, ctx.transposed)
    if need_x:
        return krylov(g, v, None, ctx.sign, ctx.scale, not ctx.transposed), None
    if need_v:
        return None, _pullback(g, x, v.shape[-1], ctx.sign, ctx.scale, ctx.transposed)
    return None, None


class Krylov(torch.autograd.Function):
    """`(x, v, base, sign, scale, transposed)` -> `base + scale * x @ W(v).T`, `x @ W(v)` when transposed."""

    @staticmethod
    def forward(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
        return _krylov(x, v, base, sign, scale, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, v, _, ctx.sign, ctx.scale, ctx.transposed = inputs
        ctx.save_for_backward(x, v)
        ctx.save_for_forward(x, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, v = ctx.saved_tensors
        need_x, need_v, need_base = ctx.needs_input_grad[:3]
        return *_gradients(ctx, g, x, v, need_x, need_v), g if need_base else None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, v: Tensor, base: Any, *constants: Any) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            x, v, base = fold(info, in_dims, x, v, base)
            return unfold(info, krylov(x, v, base, *constants)), 0
        # One matrix for the whole batch: more tokens, not more problems.
        batched = (leading(info, in_dims[0], x), leading(info, in_dims[2], base))
        tokens, base = (None if t is None else t.movedim(0, 1).flatten(1, 2) for t in batched)
        return krylov(tokens, v, base, *constants).unflatten(1, (info.batch_size, -1)), 1


class _EagerKrylov(Krylov):
    @staticmethod
    def jvp(ctx: Any, x_tangent: Any, v_tangent: Any, base_tangent: Any, *_: Any) -> Any:
        x, v = ctx.saved_tensors
        constants = ctx.sign, ctx.scale, ctx.transposed
        tangent = base_tangent
        if x_tangent is not None:
            tangent = krylov(x_tangent, v, tangent, *constants)
        if v_tangent is not None:
            tangent = krylov(x, v_tangent, tangent, *constants)
        return tangent


class KrylovPullback(torch.autograd.Function):
    """`(g, x, block, sign, scale)` -> the gradient of `scale * <g, x @ W(v).T>` with respect to v."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
        return _krylov_pullback(g, x, block, sign, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, ctx.block, ctx.sign, ctx.scale = inputs
        ctx.save_for_backward(g, x)
        ctx.save_for_forward(g, x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        g, x = ctx.saved_tensors
        need_g, need_x = ctx.needs_input_grad[:2]
        g_gradient = krylov(x, v, None, ctx.sign, ctx.scale, False) if need_g else None
        x_gradient = krylov(g, v, None, ctx.sign, ctx.scale, True) if need_x else None
        return g_gradient, x_gradient, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Tensor, x: Tensor, *constants: Any) -> tuple[Tensor, int]:
        return unfold(info, krylov_pullback(*fold(info, in_dims, g, x), *constants)), 0


class _EagerKrylovPullback(KrylovPullback):
    @staticmethod
    def jvp(ctx: Any, g_tangent: Any, x_tangent: Any, *_: Any) -> Any:
        g, x = ctx.saved_tensors
        constants = ctx.block, ctx.sign, ctx.scale
        if x_tangent is None:
            return krylov_pullback(g_tangent, x, *constants)
        tangent = krylov_pullback(g, x_tangent, *constants)
        return tangent if g_tangent is None else tangent + krylov_pullback(g_tangent, x, *constants)


class KrylovBackward(torch.autograd.Function):
    """`(g, x, v, sign, scale, transposed)` -> the gradients of `scale * <g, x @ W(v).T>` with respect to x and v.

    With cotangents a and c of the two, the function is `scale * (<g, a W(v)^T> + <g, x W(c)^T>)`: its gradients with
    respect to x and v are those of Krylov at (a, c), with g in the same place.
    """

    @staticmethod
    def forward(g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool) -> tuple[Tensor, Tensor]:
        return _krylov_backward(g, x, v, sign, scale, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, v, ctx.sign, ctx.scale, ctx.transposed = inputs
        ctx.save_for_backward(g, x, v)
        ctx.save_for_forward(g, x, v)

    @staticmethod
    def backward(ctx: Any, a: Tensor, c: Tensor) -> Any:
        g, x, v = ctx.saved_tensors
        need_g, need_x, need_v = ctx.needs_input_grad[:3]
        constants = ctx.sign, ctx.scale, ctx.transposed
        g_gradient = krylov(a, v, krylov(x, c, None, *constants), *constants) if need_g else None
        return g_gradient, *_gradients(ctx, g, a, c, need_x, need_v), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, g: Tensor, x: Tensor, v: Tensor, *constants: Any) -> Any:
        gradients = krylov_backward(*fold(info, in_dims, g, x, v), *constants)
        return tuple(unfold(info, gradient) for gradient in gradients), (0, 0)


class _EagerKrylovBackward(KrylovBackward):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        g, x, v = saved = ctx.saved_tensors
        constants = ctx.sign, ctx.scale, ctx.transposed
        g_tangent, *xv_tangents = (
            torch.zeros_like(s) if t is None else t for s, t in zip(saved, tangents, strict=False)
        )
        along_g = krylov_backward(g_tangent, x, v, *constants)
        along_xv = krylov_backward(g, *xv_tangents, *constants)
        return along_g[0] + along_xv[0], along_g[1] + along_xv[1]


class KrylovDense(torch.autograd.Function):
    """`(v, sign)` -> the matrix W(v)."""

    @staticmethod
    def forward(v: Tensor, sign: int) -> Tensor:
        return _krylov_dense(v, sign)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        v, ctx.sign = inputs
        ctx.block = v.shape[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return krylov_dense_adjoint(g, ctx.block, ctx.sign), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, v: Tensor, sign: int) -> tuple[Tensor, int]:
        return unfold(info, krylov_dense(*fold(info, in_dims, v), sign)), 0


class _EagerKrylovDense(KrylovDense):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return krylov_dense(tangent, ctx.sign)


class KrylovDenseAdjoint(torch.autograd.Function):
    """`(w, block, sign)` -> the sums of w along the f-circulant diagonals: the gradient of `<w, W(v)>`."""

    @staticmethod
    def forward(w: Tensor, block: int, sign: int) -> Tensor:
        return _krylov_dense_adjoint(w, block, sign)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.block, ctx.sign = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return krylov_dense(g, ctx.sign), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, w: Tensor, block: int, sign: int) -> tuple[Tensor, int]:
        return unfold(info, krylov_dense_adjoint(*fold(info, in_dims, w), block, sign)), 0


class _EagerKrylovDenseAdjoint(KrylovDenseAdjoint):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return krylov_dense_adjoint(tangent, ctx.block, ctx.sign)


krylov = differentiable(_krylov, Krylov, _EagerKrylov)
krylov_pullback = differentiable(_krylov_pullback, KrylovPullback, _EagerKrylovPullback)
krylov_backward = differentiable(_krylov_backward, KrylovBackward, _EagerKrylovBackward)
krylov_dense = differentiable(_krylov_dense, KrylovDense, _EagerKrylovDense)
krylov_dense_adjoint = differentiable(_krylov_dense_adjoint, KrylovDenseAdjoint, _EagerKrylovDenseAdjoint)
