"""The compiled library `surm_kernels/_C.abi3.so`: its sources, their flags, and how it is made."""

from __future__ import annotations

import filecmp
import os
import platform
import runpy
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_support.ninja import ROOT, Step, run_ninja
from build_support.toolchain import (
    BuildError,
    CudaToolkit,
    Missing,
    architecture_flags,
    find_compiler,
    find_cuda,
    instruction_sets,
    switch,
    torch_folder,
)

LIBRARY = "_C.abi3.so"
IN_PLACE = ROOT / "surm_kernels" / LIBRARY
BUILD_FOLDER = "build/extension"

COMMON_FLAGS = (
    *("-O3", "-std=c++17", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-Wall", "-Wextra", "-Icsrc"),
)
TORCH_FLAGS = ("-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020b000000000000")
# Vector types never cross a translation unit, so GCC's notes on their calling convention (-Wpsabi) say nothing here.
KERNEL_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")
# ptxas reports registers, spills and stack of every kernel; tests/test_cuda_budget.py reads it in the compiler's log.
CUDA_FLAGS = ("-O3", "-std=c++17", "-DNDEBUG", "--expt-relaxed-constexpr", "--threads=2", "-Xptxas=-v", "-Icsrc")
CUDA_HOST_FLAGS = "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas"
CUDA_LIBRARIES = ("-lcudart_static", "-ldl", "-lrt", "-lpthread")


@dataclass(frozen=True)
class Target:
    """Everything the build depends on that is not a source file."""

    compiler: tuple[str, ...]
    torch: Path
    instruction_sets: Mapping[str, tuple[str, ...]]
    cuda: CudaToolkit | None
    extra_flags: tuple[str, ...] = ()
    extra_link_flags: tuple[str, ...] = ()


def sources(pattern: str) -> list[str]:
    """Source files matching the pattern, relative to the repository and in a fixed order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def namespace_flags(package: Path = IN_PLACE.parent) -> tuple[str, ...]:
    """What tells the glue the namespaces of the operators of the package, or of a copy."""
    names = runpy.run_path(str(package / "_namespace.py"))
    return tuple(f"-DSURM_{name}={names[name]}" for name in ("NAMESPACE", "CUDA_NAMESPACE"))


def reason_not_to_build() -> str | None:
    """Why the package goes without its compiled library, or None; raises BuildError where that was ruled out."""
    asked = switch("SURM_KERNELS_EXTENSION")
    if asked == "0":
        return "SURM_KERNELS_EXTENSION=0"
    try:
        find_compiler()
    except Missing as missing:
        if asked == "1":
            raise BuildError(f"SURM_KERNELS_EXTENSION=1, but {missing}") from None
        return str(missing)
    return None


def cuda_or_reason() -> tuple[CudaToolkit | None, str]:
    """The CUDA toolkit, or None and why; raises BuildError where SURM_KERNELS_CUDA=1 wants it."""
    asked = switch("SURM_KERNELS_CUDA")
    if asked == "0":
        return None, "SURM_KERNELS_CUDA=0"
    if not sources("csrc/cuda/*.cu"):
        return None, "there are no CUDA sources"
    try:
        return find_cuda(), ""
    except Missing as missing:
        if asked == "1":
            raise BuildError(f"SURM_KERNELS_CUDA=1, but {missing}") from None
        return None, str(missing)


def this_target(cuda: CudaToolkit | None) -> Target:
    """What this machine builds with, CXX, CXXFLAGS and LDFLAGS included."""
    return Target(
        compiler=find_compiler(),
        torch=torch_folder(),
        instruction_sets=instruction_sets(platform.machine()),
        cuda=cuda,
        extra_flags=tuple(shlex.split(os.environ.get("CXXFLAGS", ""))),
        extra_link_flags=tuple(shlex.split(os.environ.get("LDFLAGS", ""))),
    )


def plain_steps(target: Target) -> list[Step]:
    """Compile what is compiled once: the glue to torch (csrc/*.cpp), the plans, the choice of instruction set."""
    defines = [f"-DSURM_HAS_{name.upper()}=1" for name in target.instruction_sets]
    if target.cuda:
        architectures = " ".join(target.cuda.architectures)
        defines += ["-DSURM_WITH_CUDA=1", f'-DSURM_CUDA_ARCHITECTURES="{architectures}"']
    glue = sources("csrc/*.cpp")
    rest = [*sources("csrc/plan/*.cpp"), *sources("csrc/cpu/*.cpp")]
    torch_flags = ("-isystem", str(target.torch / "include"), *TORCH_FLAGS, *namespace_flags())
    steps = []
    for source in glue + [name for name in rest if not name.endswith("_kernels.cpp")]:
        flags = (*COMMON_FLAGS, *defines, *(torch_flags if source in glue else ()), *target.extra_flags)
        steps.append(Step("compile", _object(source), (source,), target.compiler, flags))
    return steps


def kernel_steps(target: Target) -> list[Step]:
    """Compile every CPU kernel once per instruction set, in ascending order (toolchain.py says why)."""
    steps = []
    for name, machine_flags in target.instruction_sets.items():
        flags = (*COMMON_FLAGS, *KERNEL_FLAGS, *machine_flags, f"-DSURM_INSTRUCTION_SET={name}", *target.extra_flags)
        for source in sources("csrc/cpu/*_kernels.cpp"):
            steps.append(Step("compile", _object(source, f".{name}"), (source,), target.compiler, flags))
    return steps


def cuda_steps(target: Target) -> list[Step]:
    """Compile the CUDA sources, the longest first; without torch headers, so nvcc's version need not match torch's."""
    if target.cuda is None:
        return []
    flags = (*CUDA_FLAGS, CUDA_HOST_FLAGS, *architecture_flags(target.cuda.architectures))
    return [
        Step("compile_cuda", _object(source), (source,), (target.cuda.nvcc,), flags)
        for source in sorted(sources("csrc/cuda/*.cu"), key=lambda name: -(ROOT / name).stat().st_size)
    ]


def link_step(target: Target, objects: tuple[str, ...]) -> Step:
    """Link the library. No run path: torch's libraries are in the process before this one is loaded."""
    flags = ["-shared", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL", f"-L{target.torch / 'lib'}", "-ltorch_cpu"]
    if target.cuda:
        flags += [f"-L{target.cuda.library_folder}", *CUDA_LIBRARIES]
    return Step("link", f"{BUILD_FOLDER}/{LIBRARY}", objects, target.compiler, (*flags, *target.extra_link_flags))


def all_steps(target: Target) -> list[Step]:
    """Every step from the sources to the library, the long ones first."""
    plain, kernels, cuda = plain_steps(target), kernel_steps(target), cuda_steps(target)
    linked_in_order = tuple(step.output for step in [*plain, *kernels, *cuda])
    return [*cuda, *reversed(kernels), *plain, link_step(target, linked_in_order)]


def build_extension(output: Path) -> str:
    """Bring the library up to date, put it at `output`, and say in a line what is in it."""
    cuda, why_not = cuda_or_reason()
    target = this_target(cuda)
    try:
        run_ninja(all_steps(target), ROOT / BUILD_FOLDER)
    except BuildError as error:
        raise BuildError(
            f"compiling the extension failed ({error}); to go without CUDA set SURM_KERNELS_CUDA=0, "
            "without the extension SURM_KERNELS_EXTENSION=0"
        ) from None
    replace(ROOT / BUILD_FOLDER / LIBRARY, output)
    gpu = f"CUDA for {' '.join(cuda.architectures)}" if cuda else f"no CUDA ({why_not})"
    return f"{output.name}: CPU kernels for {', '.join(target.instruction_sets)}; {gpu}"


def replace(made: Path, output: Path) -> None:
    """Copy in one step, so that a process that has the old library loaded keeps it."""
    if output.exists() and filecmp.cmp(made, output, shallow=False):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copy2(made, temporary)
    temporary.replace(output)


def _object(source: str, variant: str = "") -> str:
    relative = Path(source).relative_to("csrc")
    return f"{BUILD_FOLDER}/{relative.as_posix()}{variant}.o"
