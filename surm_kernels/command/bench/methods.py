"""What is compared: our products and the ways users have to compute the same, or to adapt a weight, today."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surm_kernels import dense, functional
from surm_kernels.command.bench.measure import Results, compare_all, compare_nothing

LORA_RANK = 8

Product = Callable[..., Tensor]  # (x, *parameters) -> output


class Unavailable(Exception):
    """A rival cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Method:
    """A way to compute a product of tokens x with a matrix.

    Attributes:
        name: as tables show it.
        load: gives the product, or raises Unavailable.
        parameters: what the product trains, from the parameter of our structure.
        comparable: what of (output, gradient of x, gradients of parameters) has to equal ours.
        through_float32: 16-bit tensors are converted to float32 and back, since the product does not take them.
        most_features: the largest size worth measuring, None for any.
        in_quick: whether `--quick` measures it as well.
    """

    name: str
    load: Callable[[], Product]
    parameters: Callable[[Tensor], tuple[Tensor, ...]] = lambda c: (c,)
    comparable: Callable[[Results], Sequence[Tensor | None]] = compare_all
    through_float32: bool = False
    most_features: int | None = None
    in_quick: bool = True

    def product(self, dtype: torch.dtype) -> Product:
        """The product for tensors of a type."""
        product = self.load()
        if self.through_float32 and dtype in (torch.bfloat16, torch.float16):
            return lambda x, *parameters: product(x.float(), *(p.float() for p in parameters)).to(dtype)
        return product


def torch_fft_circulant(x: Tensor, c: Tensor) -> Tensor:
    """The circulant product as torch's users write it."""
    return torch.fft.irfft(torch.fft.rfft(c) * torch.fft.rfft(x), c.shape[-1])


def torch_fft_block_circulant(x: Tensor, c: Tensor) -> Tensor:
    """The same for blocks (M, K, b), summed over K in the frequency domain."""
    blocks = torch.fft.rfft(x.unflatten(-1, (-1, c.shape[-1])))
    spectrum = torch.einsum("...kf,mkf->...mf", blocks, torch.fft.rfft(c))
    return torch.fft.irfft(spectrum, c.shape[-1]).flatten(-2)


@functools.cache
def _peft_c3a() -> Product:
    try:
        from peft.tuners.c3a.layer import BlockCircularConvolution
    except ImportError as error:
        raise Unavailable(f"no comparison with PEFT C3A: {error} (pip install peft)") from None
    product: Product = BlockCircularConvolution.apply
    return product


def _peft_kernel(c: Tensor) -> Tensor:
    """PEFT's kernel of a block circulant matrix: the first row of each block. The map is its own inverse."""
    return c.view(-1, c.shape[-2] if c.dim() == 3 else 1, c.shape[-1]).flip(-1).roll(1, -1).contiguous()


def _compare_peft(results: Results) -> Sequence[Tensor | None]:
    """PEFT's output and kernel gradient; its input gradient is wrong for blocks larger than 2 and is left out."""
    if len(results) == 1:
        return results
    output, _, kernel_gradient = results
    return output, None, _peft_kernel(kernel_gradient).flatten()


def _compare_peft_blocks(results: Results) -> Sequence[Tensor | None]:
    output, _, kernel_gradient = results
    return output, None, _peft_kernel(kernel_gradient)


def _lora_parameters(c: Tensor) -> tuple[Tensor, ...]:
    """The factors of a square update of rank 8."""
    features = c.shape[-1]
    generator = torch.Generator().manual_seed(0)
    shapes = ((LORA_RANK, features), (features, LORA_RANK))
    return tuple((torch.randn(shape, generator=generator) / features**0.5).to(c.device, c.dtype) for shape in shapes)


def _compare_dense(results: Results) -> Sequence[Tensor | None]:
    """A dense weight has the same output and input gradient, and a gradient of its own."""
    return [*results[:2], *([None] * len(results[2:]))]


def _dense_matrix(c: Tensor) -> tuple[Tensor, ...]:
    return (dense.circulant(c),)


def _given(product: Any) -> Callable[[], Product]:
    return lambda: product


OURS = "surm_kernels"
TORCH_FFT = "torch.fft"
PEFT_C3A = "PEFT C3A"
LORA = f"LoRA r={LORA_RANK}"
CLONE = "x.clone()"

CIRCULANT = Method(OURS, _given(functional.circulant_linear))
BLOCK_CIRCULANT = Method(OURS, _given(functional.block_circulant_linear))
FFT_CIRCULANT = Method(TORCH_FFT, _given(torch_fft_circulant), through_float32=True)
FFT_BLOCK_CIRCULANT = Method(TORCH_FFT, _given(torch_fft_block_circulant), through_float32=True)
C3A = Method(PEFT_C3A, _peft_c3a, lambda c: (_peft_kernel(c),), _compare_peft, through_float32=True)
C3A_BLOCKS = Method(PEFT_C3A, _peft_c3a, lambda c: (_peft_kernel(c),), _compare_peft_blocks, through_float32=True)
LOW_RANK = Method(LORA, _given(lambda x, a, b: (x @ a.T) @ b.T), _lora_parameters, compare_nothing)
DENSE = Method("dense", _given(lambda x, w: x @ w.T), _dense_matrix, _compare_dense, most_features=4096, in_quick=False)
COPY = Method(CLONE, _given(torch.clone), lambda c: (), compare_nothing)
