"""Builds modules of CUDA kernels for the CPU with the emulator."""

from __future__ import annotations

import functools
from types import ModuleType

import surm_kernels  # noqa: F401  defines the operators that are implemented here
from build_support.extension import TORCH_FLAGS, namespace_flags, sources
from build_support.toolchain import torch_folder
from tests.native.build import native_module

# -Og compiles in half the time of -O1 to kernels as fast. _FORTIFY_SOURCE would stop longjmp from switching stacks.
FLAGS = ("-x", "c++", "-Og", "-U_FORTIFY_SOURCE", "-fsanitize=alignment", "-Itests/emulator")


def emulated_module(
    name: str, files: list[str], flags: tuple[str, ...] = (), link_flags: tuple[str, ...] = ()
) -> ModuleType:
    """The pybind11 module `name` of kernels and launchers."""
    return native_module(name, files, (*FLAGS, *flags), link_flags)


@functools.cache
def emulated_kernels() -> ModuleType:
    """The kernels of csrc/cuda: the operators of CUDA C++ take CPU tensors from now on.

    The module has the controls of the emulator, which are in `controls.h`.
    """
    files = [
        "tests/emulator/bindings.cpp",
        *sources("csrc/cuda/*.cu"),
        *sources("csrc/plan/*.cpp"),
        "csrc/library_cuda.cpp",
        "csrc/glue.cpp",
    ]
    torch_flags = [flag for flag in TORCH_FLAGS if "LIMITED_API" not in flag]  # which pybind11 does without
    includes = ("-isystem", str(torch_folder() / "include"))
    flags = ("-DSURM_EMULATED=1", "-DSURM_BLOCKS_WANTED=2", *includes, *torch_flags, *namespace_flags())
    return emulated_module("emulated_kernels", files, flags, (f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"))
