"""Launching a tuned kernel: on the tensor's device, with a key of shapes rounded to powers of two and of the kind of
device, one config where Triton interprets."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor


def tuned(configs: list[triton.Config], key: list[str], prune: Callable[..., list[triton.Config]] | None = None) -> Any:
    """triton.autotune, with the first config alone where there is nothing to measure: in the interpreter.

    The first call for a key on a kind of device measures and so synchronises: make it before a CUDA graph is captured.
    """
    chosen = configs[:1] if triton.knobs.runtime.interpret else configs
    early = {"early_config_prune": prune} if prune else None

    def decorated(kernel: Any) -> Any:
        tuner = triton.autotune(chosen, key=key, prune_configs_by=early, do_bench=_measure)(kernel)
        tuner.cache = _ByKindOfDevice()
        return tuner

    return decorated


class _ByKindOfDevice(dict[Any, Any]):
    """What an autotuner found, by its own key and by the kind of device: the key has arguments and types alone."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__((_kind(), key))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__((_kind(), key))

    def __setitem__(self, key: Any, config: Any) -> None:
        super().__setitem__((_kind(), key), config)


def _kind() -> str:
    """That of the current device, on which Triton launches."""
    return "" if triton.knobs.runtime.interpret else _name(torch.cuda.current_device())


@cache
def _name(device: int) -> str:
    return torch.cuda.get_device_name(device)


def _measure(call: Callable[[], object], quantiles: Any) -> Any:
    return measure(call, quantiles)  # which tests replace


def measure(call: Callable[[], object], quantiles: Any) -> Any:
    """Times a call; refuses while a CUDA graph is captured, which waiting for the device would spoil."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "surm_kernels: the first call of a Triton kernel for a class of sizes measures how to run it; make one "
            "ordinary call before a CUDA graph is captured"
        )
    return triton.runtime.driver.active.get_benchmarker()(call, quantiles=quantiles)


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
