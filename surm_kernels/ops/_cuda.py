"""The operators on CUDA tensors: every call goes to CUDA C++, Triton or the reference, as gpu_rule.py has it.

The choice for a problem (_problems.py) is made once; Triton is imported on the first call.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch

from surm_kernels import _environment, _extension, gpu_rule
from surm_kernels._namespace import CUDA_NAMESPACE
from surm_kernels.gpu_rule import Crossovers, Machine, Problem

Operator = Callable[..., Any]

_warned = False
_instead: Crossovers | None = None


def kernel(name: str, problem: Callable[..., Problem], reference: Operator) -> Operator:
    """What runs operator `name` for CUDA tensors; `problem` has its signature, `reference` is its last resort."""
    functions: dict[str, Operator] = {"reference": reference}

    def run(*arguments: Any) -> Any:
        backend = _backend(problem(*arguments), arguments[0].device.index)
        function = functions.get(backend)
        if function is None:
            function = functions[backend] = _function(name, backend)
        try:
            return function(*arguments)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError(*error.args) from None
        # Tables and the code of kernels lie beside what torch keeps for later, and gives back for tensors alone.
        torch.cuda.empty_cache()
        try:
            return function(*arguments)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise torch.OutOfMemoryError(*error.args) from None
            raise

    return run


def _is_out_of_memory(error: RuntimeError) -> bool:
    return "out of memory" in str(error)  # the stable ABI hands on torch's words, not their type


def _function(name: str, backend: str) -> Operator:
    if backend == "cuda":
        return getattr(getattr(torch.ops, CUDA_NAMESPACE), name).default
    return getattr(importlib.import_module(f"..triton.{gpu_rule.TRITON_OPERATORS[name]}", __package__), name)


@lru_cache(maxsize=4096)
def _backend(problem: Problem, device: int) -> str:
    """The backend for a problem on a device."""
    there = machine(device)
    refusals = {
        "cuda": gpu_rule.cuda_refusal(problem, there, 0 if there.cuda else shared_bytes(problem)),
        "triton": gpu_rule.triton_refusal(problem, there) or _kronecker_refusal(problem),
    }
    backend = gpu_rule.choose(problem, refusals, crossovers(device), _environment.read("SURM_KERNELS_BACKEND"))
    if backend == "reference":
        _warn(problem, refusals, there)
    return backend


def _kronecker_refusal(problem: Problem) -> str:
    """Why Triton does not serve factors of these sizes; asked only where it is there."""
    if not problem.operator.startswith("kronecker"):
        return ""
    sizes = ((problem.out_blocks, problem.in_blocks), (problem.rows, problem.columns))
    factors = (torch.empty(1, *size, dtype=problem.dtype, device="meta") for size in sizes)
    serves = importlib.import_module("..triton.kronecker", __package__).serves(*factors)
    return "" if serves else "the factors are too large for a tile"


def _warn(problem: Problem, refusals: dict[str, str], there: Machine) -> None:
    """Says once what is missing where that is why the reference serves."""
    global _warned
    missing = [reason for reason in (there.cuda, there.triton) if reason and reason in refusals.values()]
    if missing and not _warned:
        _warned = True
        warnings.warn(
            f"surm_kernels runs on its slow PyTorch reference for {problem} on CUDA: {'; '.join(missing)}. "
            "Set SURM_KERNELS_BACKEND=reference to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )


def crossovers(device: int) -> Crossovers:
    """The constants of the rule on a device."""
    return _instead or gpu_rule.crossovers_of(torch.cuda.get_device_name(device))


@contextmanager
def using(constants: Crossovers) -> Iterator[None]:
    """Has the rule take these constants on every device."""
    global _instead
    before, _instead = _instead, constants
    _backend.cache_clear()
    try:
        yield
    finally:
        _instead = before
        _backend.cache_clear()


def forget() -> None:
    """Has every choice made anew, since the constants have changed."""
    gpu_rule.forget()
    _backend.cache_clear()


@cache
def machine(device: int) -> Machine:
    """What serves on a device."""
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 48 << 10)
    triton = importlib.import_module("..triton", __package__)
    return Machine(_why_no_cuda((properties.major, properties.minor)), triton.why_not(), shared_memory)


@cache
def merges(device: int) -> bool:
    """Whether CUDA C++ merges on a device, in 16 bits by the CPU's random numbers, without waiting for any number."""
    return not machine(device).cuda and _environment.read("SURM_KERNELS_BACKEND") not in ("reference", "triton")


def _why_no_cuda(capability: tuple[int, int]) -> str:
    if reason := _extension.why_no_cuda():
        return reason
    if torch.version.cuda is None:
        return "CUDA C++ is for GPUs by NVIDIA"
    if not runs_on(_extension.cuda_architectures, capability):
        major, minor = capability
        return f"the library was compiled for {_extension.cuda_architectures}, the device is {major}.{minor}"
    return ""


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for these architectures, such as "8.0 9.0 10.0+PTX", runs on a device.

    Machine code serves devices of its own generation from its version on, PTX every later device.
    """
    for entry in architectures.split():
        number = entry.removesuffix("+PTX").rstrip("af")
        major, minor = (int(part) for part in number.split("."))
        same = number == entry or entry.endswith("+PTX")  # a and f run on no later device
        if (major, minor) == capability or (same and major == capability[0] and minor <= capability[1]):
            return True
        if entry.endswith("+PTX") and (major, minor) <= capability:
            return True
    return False


def shared_bytes(problem: Problem) -> int:
    """The bytes of shared memory that CUDA C++ takes at the least for a problem."""
    name, _, rest = problem.operator.partition("_")
    if problem.operator not in gpu_rule.CUDA_OPERATORS or name not in ("grid", "ldr"):
        return 0
    if rest.startswith(("dense", "merge")):
        return 0
    gradient, block = int(problem.is_gradient), (problem.rows, problem.columns)
    sizes = {
        "grid": (problem.kind, problem.out_blocks, problem.in_blocks, *block),
        "ldr": (problem.rank, problem.rows),
    }[name]
    return _extension.number(f"surm_kernels_cuda_{name}_shared_bytes", _STORAGE_TYPES[problem.dtype], *sizes, gradient)


#: As csrc/shapes.h numbers them.
_STORAGE_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
