"""The environment variables the package reads: one table with default, meaning and allowed values."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentVariable:
    name: str
    default: str
    allowed: tuple[str, ...] | None  # None: free text
    meaning: str


VARIABLES = (
    EnvironmentVariable(
        "SURM_KERNELS_BACKEND",
        "auto",
        ("auto", "extension", "reference", "cuda", "triton"),
        "at import: auto takes the compiled library and falls back to the reference with a warning, "
        "extension insists on the library, reference leaves all kernels alone; cuda (C++) and triton allow CUDA "
        "tensors that backend alone",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_ISA",
        "auto",
        ("auto", "baseline", "avx2", "avx512"),
        "at import: instruction set of the CPU kernels, auto takes the widest that the machine has",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_GPU_PRECISION",
        "auto",
        ("auto", "float32"),
        "at every call: float32 has CUDA C++ transform 16 bits in float32; auto takes the tensor cores at the sizes "
        "that they serve, where a result is off by up to 1.2 roundings in place of 1.05",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_TUNE",
        "never",
        ("never", "first-use"),
        "first-use: where the package has no constants of this processor, the first adapted layer of a kind measures "
        "them once, at most 2 s a process, and keeps them in the cache; never: `surm-kernels tune` alone measures",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_CACHE",
        "auto",
        None,
        "folder for what is measured to choose strategies and kernels, and for SiVA's decompositions, "
        "auto takes surm_kernels in the user's cache folder",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_CACHE_GIB",
        "8",
        None,
        "how many GiB SiVA's decompositions may take there, 0 keeps none",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_EXTENSION",
        "auto",
        ("auto", "0", "1"),
        "at build: the compiled library where a C++17 compiler works (auto), never (0), or fail without one (1)",
    ),
    EnvironmentVariable(
        "SURM_KERNELS_CUDA",
        "auto",
        ("auto", "0", "1"),
        "at build: CUDA kernels if nvcc is found (auto), never (0), or fail without nvcc (1)",
    ),
    EnvironmentVariable(
        "TORCH_CUDA_ARCH_LIST",
        "8.0;9.0;10.0+PTX",
        None,
        "at build: the GPU architectures to compile for, as far as nvcc knows them",
    ),
)

_BY_NAME = {variable.name: variable for variable in VARIABLES}


def read(name: str) -> str:
    """The value of a variable of the table, or its default.

    Raises:
        ValueError: the value is none of those allowed; the message names variable, value and choices.
    """
    variable = _BY_NAME[name]
    value = os.environ.get(name, "") or variable.default
    if variable.allowed is not None and value not in variable.allowed:
        raise ValueError(f"environment variable {name} must be one of {', '.join(variable.allowed)}, got {value!r}")
    return value
