"""Finds and loads the compiled library; without it, warns once and leaves the reference in its place.

`available` says whether the compiled kernels serve and `reason` why they do not; `instruction_set` is the one the CPU
kernels use and `cuda_architectures` what GPU kernels were compiled for, both empty without the library.
"""

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

from surm_kernels import _environment


def library_path() -> Path | None:
    """The compiled library beside this file, if it was built."""
    return next(iter(sorted(Path(__file__).parent.glob("_C*.so"))), None)


def _load(path: Path | None) -> str | None:
    """Loads the library; returns what kept it from serving, None if nothing did."""
    backend = _environment.read("SURM_KERNELS_BACKEND")
    for name in ("SURM_KERNELS_ISA", "SURM_KERNELS_GPU_PRECISION"):
        _environment.read(name)  # the library reads them too; a bad value is refused here, whatever serves
    if backend == "reference":
        return "SURM_KERNELS_BACKEND=reference"
    failure = f"no compiled library (_C*.so) in {Path(__file__).parent}"
    if path is not None:
        try:
            torch.ops.load_library(str(path))
            return None
        except (OSError, RuntimeError) as error:
            failure = f"{path.name} does not load: {error}"
    if backend == "extension":
        raise ImportError(f"SURM_KERNELS_BACKEND=extension, but {failure}")
    warnings.warn(
        f"surm_kernels runs on its slow PyTorch reference: {failure}. "
        "Reinstall with a C++ compiler, or set SURM_KERNELS_BACKEND=reference to silence this.",
        RuntimeWarning,
        stacklevel=2,
    )
    return failure


def _ask(path: Path | None, function: str) -> str:
    """What a function of the library that takes nothing and returns text says."""
    if path is None or not available:
        return ""
    call = getattr(ctypes.CDLL(str(path)), function)
    call.restype = ctypes.c_char_p
    answer: str = call().decode()
    if answer.startswith("error: "):
        raise ValueError(answer.removeprefix("error: "))
    return answer


def why_no_cuda() -> str:
    """Why the library has no kernels in CUDA C++, empty if it has."""
    if reason is not None:
        return reason
    return "" if cuda_architectures else "nvcc was not found when the library was built, or SURM_KERNELS_CUDA was 0"


@cache
def number(function: str, *arguments: int) -> int:
    """What a function of the library that takes and returns whole numbers says."""
    call = getattr(ctypes.CDLL(str(_path)), function)
    call.restype = ctypes.c_int64
    return int(call(*map(ctypes.c_int64, arguments)))


_path = library_path()
reason: str | None = _load(_path)
available: bool = reason is None
instruction_set: str = _ask(_path, "surm_kernels_instruction_set")
cuda_architectures: str = _ask(_path, "surm_kernels_cuda_architectures")
