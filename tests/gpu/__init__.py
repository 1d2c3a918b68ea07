"""Tests that need a GPU; `benchmarks/gpu.sh` runs them where there is one, with every backend.

With SURM_KERNELS_TEST_DEVICE=cpu those that can be are rehearsed on the CPU, so that they do not rot in between.
"""

import os

import torch

DEVICE = torch.device(os.environ.get("SURM_KERNELS_TEST_DEVICE") or "cuda")
MISSING = "" if DEVICE.type == "cpu" or torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def moved(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Those tensors on the device."""
    return [tensor.to(DEVICE) for tensor in tensors]


def device_serves() -> bool:
    """Whether the device is usable still; an illegal access leaves it so for no other call of the process."""
    if DEVICE.type == "cpu" or MISSING:
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def tune_nothing() -> None:
    """Has Triton's kernels take the first configuration that fits, unmeasured: tests look at values, tuning is long."""
    from surm_kernels import triton as kernels

    if not kernels.why_not():
        from surm_kernels.triton import _tuning

        _tuning.measure = lambda call, quantiles: (0.0, 0.0, 0.0)
