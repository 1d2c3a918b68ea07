"""Tests that need a GPU; `benchmarks/gpu.sh` runs them where there is one, with every backend.

With SURM_KERNELS_TEST_DEVICE=cpu those that can be are rehearsed on the CPU, so that they do not rot in between.
"""

import os

import torch

DEVICE = torch.device(os.environ.get("SURM_KERNELS_TEST_DEVICE") or "cuda")
MISSING = "" if DEVICE.type == "cpu" or torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def tune_nothing() -> None:
    """Has Triton's kernels take the first of their configurations: tests look at values, and tuning takes minutes."""
    from surm_kernels import triton as kernels

    if kernels.available:
        import triton

        from surm_kernels.triton import _tuning

        _tuning.tuned = lambda configs, key, prune: triton.autotune(configs[:1], key=key)
