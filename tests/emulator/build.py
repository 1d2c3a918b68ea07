"""Builds modules of CUDA kernels for the CPU with the emulator."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

import surm_kernels.functional  # noqa: F401  defines the operators whose schemas are taken here
from build_support.extension import TORCH_FLAGS, sources
from build_support.toolchain import torch_folder
from tests.native.build import native_module

# -Og compiles in half the time of -O1 to kernels as fast. _FORTIFY_SOURCE would stop longjmp from switching stacks.
FLAGS = ("-x", "c++", "-Og", "-U_FORTIFY_SOURCE", "-fsanitize=alignment", "-Itests/emulator")

PRIMITIVES = ("krylov", "toeplitz", "ldr")


def emulated_module(
    name: str, files: list[str], flags: tuple[str, ...] = (), link_flags: tuple[str, ...] = ()
) -> ModuleType:
    """The pybind11 module `name` of kernels and launchers."""
    return native_module(name, files, (*FLAGS, *flags), link_flags)


@functools.cache
def emulated_kernels() -> ModuleType:
    """The kernels of csrc/cuda: their operators in `torch.ops.surm_kernels_cuda` take CPU tensors from now on.

    The module has the controls of the emulator, which are in `controls.h`.
    """
    _define_schemas()
    files = [
        "tests/emulator/bindings.cpp",
        *sources("csrc/cuda/*.cu"),
        *sources("csrc/plan/*.cpp"),
        "csrc/library_cuda.cpp",
        "csrc/glue.cpp",
    ]
    torch_flags = [flag for flag in TORCH_FLAGS if "LIMITED_API" not in flag]  # which pybind11 does without
    flags = ("-DSURM_EMULATED=1", "-DSURM_BLOCKS_WANTED=2", "-isystem", str(torch_folder() / "include"), *torch_flags)
    return emulated_module("emulated_kernels", files, flags, (f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"))


def _define_schemas() -> None:
    """Gives the operators of CUDA C++ the schemas of the package's, where its library was built without CUDA."""
    library = torch.library.Library("surm_kernels_cuda", "FRAGMENT")
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace != "surm_kernels" or name.split("_")[0] not in PRIMITIVES:
            continue
        if not hasattr(torch.ops.surm_kernels_cuda, name):
            library.define(str(schema).partition("::")[2])
    _kept.append(library)


_kept: list[torch.library.Library] = []  # a library's definitions live as long as it does
