"""The form of a matrix of low rank: W = B A, by the platform's matrix products."""

import torch
from torch import Tensor

from surm_kernels.ops._library import without_autocast
from surm_kernels.ops._primitive import Form, Primitive, Work


class _Form(Form):
    """Arguments A (r, n) and B (m, r)."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        A, B = w.arguments
        return B.shape[0], A.shape[1]

    def product(self, w: Primitive, x: Tensor, base: Tensor | None, scale: float) -> Tensor:
        A, B = w.arguments
        middle = x.squeeze(0) @ A.mT
        if base is None:
            return _scaled(middle, B.mT, scale).unsqueeze(0)
        return torch.addmm(base.squeeze(0), middle, B.mT, alpha=scale).unsqueeze(0)

    def dense(self, w: Primitive) -> Tensor:
        A, B = w.arguments
        with without_autocast(A):
            return B @ A

    def gradients(
        self, w: Primitive, g: Tensor, x: Tensor, scale: float, input_gradient: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Those of A and x share a product."""
        (A, B), rows, cotangents = w.arguments, x.squeeze(0), g.squeeze(0)
        with without_autocast(x):
            right, left = rows @ A.mT, cotangents @ B
            x_gradient = _scaled(left, A, scale).unsqueeze(0) if input_gradient else None
            return x_gradient, [_scaled(left.mT, rows, scale), _scaled(cotangents.mT, right, scale)]

    def merge(self, w: Primitive, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        """In one matrix product where all types agree."""
        A, B = w.arguments
        if out is weight or {t.dtype for t in (weight, A, B, out)} not in ({torch.float32}, {torch.float64}):
            return False
        torch.addmm(weight, B, A, alpha=scale, out=out)
        return True

    def work(self, w: Primitive) -> Work:
        (m, n), rank = w.sizes, w.arguments[0].shape[0]
        return Work(rank * (m + n), rank * m * n)


form = _Form()


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right`, rounded once."""
    return torch.addmm(left.new_zeros(1), left, right, beta=0, alpha=scale)
