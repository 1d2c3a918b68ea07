"""Toeplitz-like products (low displacement rank) beside the same formula in torch.fft."""

import torch
from torch import Tensor

from surm_kernels import functional
from surm_kernels.command.bench.case import (
    OURS,
    TORCH_FFT,
    Case,
    Claim,
    MemoryCase,
    MemoryClaim,
    Method,
    given,
    points,
)
from surm_kernels.command.bench.families.circulant import twist_of

RANK = 4


def torch_fft_toeplitz_like(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The product with sum_l Z_1(left[l]) Z_-1(right[l]), summed in the frequency domain: one last transform."""
    size = x.shape[-1]
    twist = twist_of(size, x.dtype, x.device)
    twisted = torch.fft.fft(twist * x).unsqueeze(-2) * torch.fft.fft(twist * right)
    middle = (twist.conj() * torch.fft.ifft(twisted)).real
    return torch.fft.irfft((torch.fft.rfft(left) * torch.fft.rfft(middle)).sum(-2), size)


TOEPLITZ_LIKE = Method(OURS, given(functional.toeplitz_like_linear))
FFT_TOEPLITZ_LIKE = Method(TORCH_FFT, given(torch_fft_toeplitz_like), through_float32=True)

SIZES = points(768, 1024, 4096)

TRAINING = Case(
    "toeplitz-like-training",
    f"Toeplitz-like r = {RANK}, forward + backward",
    (TOEPLITZ_LIKE, FFT_TOEPLITZ_LIKE),
    given(torch_fft_toeplitz_like),
    lambda point: ((RANK, point.in_features),) * 2,
    SIZES,
    (),
    (torch.float32,),
    gradients=True,
    claims=(Claim(TORCH_FFT, 6.0, 6.0),),
)

CASES = (TRAINING,)

MEMORY_CASES = (
    MemoryCase(
        "memory-toeplitz-like",
        TRAINING,
        (TOEPLITZ_LIKE, FFT_TOEPLITZ_LIKE),
        SIZES,
        (),
        MemoryClaim(1 / 5, TORCH_FFT),
    ),
)
