"""The differentiable operators behind the products: a product, its transpose, its pullbacks and all gradients at once.

For whoever writes a layer or an autograd.Function of their own. Tensors have the shapes of docs/architecture.md, with a
leading dimension G of independent problems; a derivative of each operator is another one, so derivatives of every order
and mode, vmap and torch.compile work. Example, the gradient of a circulant's first column without that of x:

    >>> import torch
    >>> from surm_kernels.autograd import CIRCULANT, grid, grid_pullback
    >>> x, g, c = torch.randn(1, 16, 8), torch.randn(1, 16, 8), torch.randn(1, 1, 1, 8, requires_grad=True)
    >>> y = grid(x, c, None, kind=CIRCULANT, columns=8, scale=1.0, transposed=False)
    >>> gradient = grid_pullback(g, x, kind=CIRCULANT, rows=8, columns=8, scale=1.0)
    >>> torch.allclose(gradient, torch.autograd.grad(y, c, g)[0], atol=1e-5)
    True
"""

from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.ops.diagonal import diagonal, diagonal_backward, diagonal_pullback
from surm_kernels.ops.grid import grid, grid_backward, grid_dense, grid_dense_adjoint, grid_pullback
from surm_kernels.ops.kronecker import (
    kronecker,
    kronecker_backward,
    kronecker_pullback_left,
    kronecker_pullback_right,
)
from surm_kernels.ops.ldr import ldr, ldr_backward, ldr_pullback_left, ldr_pullback_right

__all__ = [
    "CIRCULANT",
    "HANKEL",
    "SKEW_CIRCULANT",
    "TOEPLITZ",
    "diagonal",
    "diagonal_backward",
    "diagonal_pullback",
    "grid",
    "grid_backward",
    "grid_dense",
    "grid_dense_adjoint",
    "grid_pullback",
    "kronecker",
    "kronecker_backward",
    "kronecker_pullback_left",
    "kronecker_pullback_right",
    "ldr",
    "ldr_backward",
    "ldr_pullback_left",
    "ldr_pullback_right",
]
