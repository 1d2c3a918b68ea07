"""The forward of PEFT's C3A layers (arXiv 2407.19342) on the kernel of block circulant products.

C3A keeps the first row of every block and divides the product by in_features. A circulant matrix with the first row w
is the transpose of the one with the first column w, so kernels go to the transposed product as they are stored. Where
base and update are one product, as in an adapted layer, first rows are turned into first columns instead.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from surm_kernels import _checks
from surm_kernels._widening import wide_type
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional._product import cast
from surm_kernels.nn._adapted import Update
from surm_kernels.nn._adapted_product import AdaptedProduct
from surm_kernels.nn._base import frozen
from surm_kernels.ops import _mode
from surm_kernels.ops._outputs import in_shape
from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.grid import grid
from surm_kernels.structures import BlockCirculant
from surm_kernels.structures.primitive import Pullback

#: What is kept between calls of PEFT's layers, which know nothing of it; empty where they are not accelerated.
products: WeakKeyDictionary[nn.Module, AdaptedProduct] = WeakKeyDictionary()


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
        if not (args or kwargs) and (kernel := _only_kernel(self, x)) is not None:
            product = products.get(self)
            if product is None:
                product = products[self] = AdaptedProduct()
            return product(_update_of(kernel.shape), self.base_layer, x, (kernel,), self.training)
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


class FirstRows(BlockCirculant):
    """The grid of circulant blocks with the first rows c of shape (M, K, b)."""

    def primitive(self, *parameters: Tensor) -> Primitive:
        (rows,) = parameters
        return super().primitive(_turned(rows))

    def factored(self, *parameters: Tensor) -> None:
        return None

    def differentiated(self, *parameters: Tensor) -> tuple[Primitive, Pullback]:
        (rows,) = parameters

        def pullback(inner: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            (columns,) = inner
            assert columns is not None
            return (_turned(columns.view(rows.shape)),)

        return self.primitive(rows), pullback


def _turned(v: Tensor) -> Tensor:
    """The first column of a circulant matrix with the first row v, and the other way round."""
    return v.flip(-1).roll(1, -1)


@functools.lru_cache(maxsize=4096)
def _update_of(shape: torch.Size) -> Update:
    """That of a kernel (M, K, b): the product over in_features."""
    blocks_out, blocks_in, size = shape
    inputs = blocks_in * size
    return Update(FirstRows(inputs, blocks_out * size, size), 1 / inputs, "auto", None)


def _only_kernel(layer: Any, x: Tensor) -> Tensor | None:
    """The kernel, where one adapter is active on a plain linear layer and all have one type: then both are one product.

    torch.compile reads the other way, which it can see through.
    """
    kernels = [layer.c3a_kernel[adapter] for adapter in layer.active_adapters if adapter in layer.c3a_kernel]
    if len(kernels) != 1 or torch.compiler.is_compiling() or not _mode.is_ordinary(x) or _checks.autocasts(x):
        return None
    tensors = frozen(layer.base_layer)
    if tensors is None or tensors.weight.requires_grad:
        return None
    return kernels[0] if x.dtype is tensors.weight.dtype is kernels[0].dtype else None


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
