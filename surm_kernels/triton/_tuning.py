"""Launching a tuned kernel: on the tensor's device, with a key of shapes rounded to powers of two, one config where
Triton interprets."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor


def tuned(configs: list[triton.Config], key: list[str], prune: Callable[..., list[triton.Config]] | None = None) -> Any:
    """triton.autotune, with the first config alone where there is nothing to measure: in the interpreter.

    The first call for a key measures and so synchronises: make it before a CUDA graph is captured.
    """
    chosen = configs[:1] if triton.knobs.runtime.interpret else configs
    return triton.autotune(chosen, key=key, prune_configs_by={"early_config_prune": prune} if prune else None)


def shape_class(*sizes: int) -> int:
    """One number for all shapes whose sizes have the same powers of two above them."""
    result = 0
    for size in sizes:
        result = result * 64 + (size - 1).bit_length()
    return result


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the one that Triton launches on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def with_contiguous_rows(rows: Tensor) -> Tensor:
    """The tensor itself where the values of a row are contiguous, else a copy."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def require_float32_or_less(name: str, tensor: Tensor) -> None:
    """A type these kernels compute: 16 bits or float32."""
    if tensor.dtype == torch.float64:
        raise ValueError(f"{name} must be float32, bfloat16 or float16 for a Triton kernel, got float64")
