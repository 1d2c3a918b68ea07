"""What this machine can build with: the C++ compiler, nvcc and its architectures, ninja, torch's headers."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"

# Ascending: the linker keeps the first copy of an inline function that several of them share, so with this order on
# the link line no machine ever runs a copy compiled for a wider instruction set than its own.
X86_INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mprefer-vector-width=512"),
    ),
}


class Missing(Exception):
    """A tool that this part of the build needs is not there; the message says which and how to go on."""


class BuildError(Exception):
    """The build cannot be done as asked."""


def switch(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value of an on/off/auto environment variable: "0", "1" or "auto"."""
    value = environ.get(name) or "auto"
    if value not in ("0", "1", "auto"):
        raise BuildError(f"{name}={value!r}: wanted 0, 1 or auto")
    return value


def instruction_sets(machine: str) -> dict[str, tuple[str, ...]]:
    """Instruction sets to compile the CPU kernels for on this kind of machine, each with its compiler flags."""
    return X86_INSTRUCTION_SETS if machine.lower() in ("x86_64", "amd64") else {"baseline": ()}


def runs_here(name: str, machine: str, cpuinfo: str) -> bool:
    """Whether kernels for instruction set `name` are compiled apart from the baseline here and can run here."""
    sets = instruction_sets(machine)
    processor_flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    present = set(processor_flags[1].split()) if processor_flags else set()
    wanted = {flag.removeprefix("-m") for flag in sets.get(name, ()) if "=" not in flag}
    return len(sets) > 1 and name in sets and wanted <= present


def compiler_works(command: Sequence[str]) -> bool:
    """Whether the command is a C++17 compiler with a standard library behind it."""
    if shutil.which(command[0]) is None:
        return False
    trial = [*command, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(trial, input=b"#include <optional>\n", capture_output=True, check=False).returncode == 0


def find_compiler(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> tuple[str, ...]:
    """The C++ compiler as a command: $CXX when set, else the first of c++, g++ and clang++ that works."""
    if platform != "linux":
        raise Missing(f"the extension is built on Linux only, and this is {platform}")
    asked = tuple(shlex.split(environ.get("CXX", "")))
    candidates = [asked] if asked else [("c++",), ("g++",), ("clang++",)]
    for command in candidates:
        if compiler_works(command):
            return command
    names = ", ".join(shlex.join(command) for command in candidates)
    raise Missing(f"no working C++17 compiler was found (tried {names}); install one or set CXX")


def find_ninja() -> str:
    """The ninja program: from the Python package of that name, else from the path."""
    if importlib.util.find_spec("ninja"):
        from ninja import BIN_DIR

        return str(Path(BIN_DIR) / "ninja")
    program = shutil.which("ninja")
    if program is None:
        raise BuildError("ninja is needed to build the extension: pip install ninja")
    return program


def torch_folder() -> Path:
    """Where torch is installed, without the second that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            "torch is needed to build the extension: install it first (pip install torch==2.13.0), "
            "let pip do so (no --no-build-isolation), or set SURM_KERNELS_EXTENSION=0 to do without the extension"
        )
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class CudaToolkit:
    """A usable nvcc: the program, the folder of the static CUDA runtime and the architectures to compile for."""

    nvcc: str
    library_folder: Path
    architectures: tuple[str, ...]


def find_nvcc(environ: Mapping[str, str] = os.environ) -> str:
    """The path of nvcc: under CUDA_HOME or CUDA_PATH, else on the path."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = environ.get(variable)
        if folder and (program := Path(folder) / "bin" / "nvcc").exists():
            return str(program)
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path is None:
        raise Missing("nvcc was not found in CUDA_HOME, CUDA_PATH or the path")
    return on_path


def cuda_library_folder(dryrun: str) -> Path:
    """The folder of libcudart_static.a, from the output of `nvcc -dryrun` (nvcc itself may be a wrapper script)."""
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    roots = [Path(top[1].strip())] if top else []
    folders = [root / name for root in roots for name in ("lib64", "lib")]
    folders += [Path(folder) for folder in re.findall(r'"-L([^"]+)"', dryrun)]
    for folder in folders:
        if (folder / "libcudart_static.a").exists():
            return folder.resolve()
    raise Missing("nvcc is there, but the static CUDA runtime (libcudart_static.a) is not")


def cuda_architectures(asked: str, known: Sequence[str]) -> tuple[str, ...]:
    """Those of `asked` (as in TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX") that are `known` to nvcc ("sm_80", …).

    Where the newest one asked for carries +PTX but is not known, the newest known one carries it instead, so that the
    driver can still compile for later GPUs.
    """
    names = asked.replace(",", ";").replace(" ", ";").split(";")
    entries = [name for name in names if name]
    for entry in entries:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {entry!r} is no architecture; wanted a list like 8.0;9.0+PTX")
    kept = [entry for entry in entries if f"sm_{_number(entry).rstrip('af')}" in known]
    if not kept:
        raise BuildError(f"TORCH_CUDA_ARCH_LIST: this nvcc knows none of {asked!r}, only {', '.join(known)}")
    if entries[-1].endswith("+PTX") and not any(entry.endswith("+PTX") for entry in kept):
        kept[-1] += "+PTX"
    return tuple(kept)


def architecture_flags(architectures: Sequence[str]) -> list[str]:
    """nvcc's -gencode flags: machine code for each architecture, and PTX where it says so."""
    flags = []
    for entry in architectures:
        number = _number(entry)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def find_cuda(environ: Mapping[str, str] = os.environ) -> CudaToolkit:
    """The CUDA toolkit to build with; raises Missing when there is none."""
    nvcc = find_nvcc(environ)
    dryrun = _output([nvcc, "-dryrun", "-x", "cu", os.devnull])
    known = _output([nvcc, "--list-gpu-code"]).split()
    asked = environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
    return CudaToolkit(nvcc, cuda_library_folder(dryrun), cuda_architectures(asked, known))


def _number(entry: str) -> str:
    return entry.removesuffix("+PTX").replace(".", "")


def _output(command: Sequence[str]) -> str:
    """What the command prints (nvcc prints its dry run on stderr); raises Missing when it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise Missing(f"`{shlex.join(command)}` failed: {result.stdout.strip()}")
    return result.stdout
