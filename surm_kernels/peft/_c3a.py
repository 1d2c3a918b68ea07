"""The forward of PEFT's C3A layers (arXiv 2407.19342) on the kernel of block circulant products.

C3A keeps the first row of every block and divides the product by in_features. A circulant matrix with the first row w
is the transpose of the one with the first column w, so kernels go to the transposed product as they are stored.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import wide_type
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional._product import cast
from surm_kernels.ops._outputs import in_shape
from surm_kernels.ops.grid import grid


@functools.cache
def accelerated_forward(original: Callable[..., Tensor], chain_adapters: bool) -> Callable[..., Tensor]:
    """C3ALinear.forward with its input gradient right, in the type of x or autocast's; disabled and merged, PEFT's own.

    Args:
        original: PEFT's.
        chain_adapters: whether an active adapter gets the output of the one before it instead of x, as PEFT has it.
    """

    @functools.wraps(original)
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return original(self, x, *args, **kwargs)
        dtype = _checks.common_dtype(x)
        y = cast(self.base_layer(x, *args, **kwargs), dtype)
        x = cast(x, dtype)
        for adapter in self.active_adapters:
            if adapter not in self.c3a_kernel:
                continue
            kernel = self.c3a_kernel[adapter]
            if chain_adapters:
                x = update(x, kernel, None)
                y = y + x
            else:
                y = update(x, kernel, y)
        return y

    return forward


def update(x: Tensor, kernel: Tensor, base: Tensor | None) -> Tensor:
    """`base + x @ W.T` for the W of a C3A kernel, differentiable, rounded once, base included.

    Args:
        x: tokens, (..., K b).
        kernel: first rows times K b, (M, K, b), in the type of x or a wider one.
        base: (..., M b) in the type of x, or None for zeros.

    Returns:
        (..., M b) in the type of x.
    """
    blocks_out, blocks_in, size = kernel.shape
    outputs, inputs = blocks_out * size, blocks_in * size
    _checks.require_features(x, inputs, {"the C3A kernel": kernel})
    wide = x.dtype if kernel.dtype is x.dtype else wide_type(x.dtype)
    # A pullback knows the type of x alone, so a wider kernel whose gradient is the only one wants x as wide as itself.
    alone = torch.is_grad_enabled() and kernel.requires_grad and not x.requires_grad
    inside = wide if alone else x.dtype
    rows = cast(x.reshape(1, -1, inputs), inside)
    start = None if base is None else cast(base.reshape(1, -1, outputs), inside)
    values = cast(kernel, wide).transpose(0, 1).unsqueeze(0)
    y = cast(grid(rows, values, start, CIRCULANT, size, 1 / inputs, True), x.dtype)
    return in_shape(y, *x.shape[:-1], outputs)
