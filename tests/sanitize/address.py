"""Runs tests with the CPU library under the address and the undefined-behaviour sanitizer.

`python -m tests.sanitize.address [pytest's arguments]` builds it in a copy of the tree in build/sanitize/address, with
GCC, and runs the tests of the operators there, on the instruction sets that this machine has in turns.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from build_support.ninja import ROOT
from build_support.toolchain import find_compiler, instruction_sets, runs_here

TREE = ROOT / "build/sanitize/address"
COPIED = ("build_support", "csrc", "surm_kernels", "tests", "pyproject.toml", "README.md")
SANITIZERS = "-fsanitize=address,undefined"
# Checks by calls, and none of scopes: inline, the kernels would take more than twice as long to compile.
FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", SANITIZERS, "-fno-sanitize-recover=undefined"),
    *("-fno-sanitize-address-use-after-scope", "--param=asan-instrumentation-with-call-threshold=0"),
)
TESTS = ("grid", "grid_dense", "ldr", "kronecker", "diagonal", "generated", "bank")
PLANTED = """
import ctypes, torch, surm_kernels
allocate = ctypes.CDLL(None).malloc
allocate.restype = ctypes.c_void_p
claimed = torch.frombuffer((ctypes.c_float * 64).from_address(allocate(63 * 4)), dtype=torch.float32)
torch.ops.surm_kernels.powers(claimed, 3)
"""


def copy_tree() -> None:
    """Bring the copy up to date; what was built in it stays, since files keep their times."""
    for name in COPIED:
        source, target = ROOT / name, TREE / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def runtime() -> str:
    """What a program that was not compiled for the sanitizer has to load first."""
    paths = []
    for library in ("libasan.so", "libstdc++.so"):
        command = [*find_compiler(), f"-print-file-name={library}"]
        path = Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        if not path.is_absolute():
            sys.exit(f"error: {library} was not found; the sanitizers of GCC are needed (set CXX)")
        paths.append(str(path.resolve()))
    return " ".join(paths)


def environment(instruction_set: str) -> dict[str, str]:
    """That of a process under the sanitizers; Python never gives back all of its memory."""
    return os.environ | {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SURM_KERNELS_BACKEND": "extension",
        "SURM_KERNELS_ISA": instruction_set,
    }


def usable_instruction_sets() -> list[str]:
    """Those of this machine, the baseline among them."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    machine = platform.machine()
    return [name for name in instruction_sets(machine) if name == "baseline" or runs_here(name, machine, cpuinfo)]


def run(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run Python in the copy; the exit status."""
    return subprocess.run([sys.executable, *arguments], cwd=TREE, env=environ, check=False).returncode


def sees_planted_error(environ: Mapping[str, str]) -> bool:
    """Whether a read of the library past the end of an array is reported, by the name of a kernel."""
    command = [sys.executable, "-c", PLANTED]
    result = subprocess.run(command, cwd=TREE, env=environ, stderr=subprocess.PIPE, text=True, check=False)
    return result.returncode != 0 and "heap-buffer-overflow" in result.stderr and "powers_kernels.cpp" in result.stderr


def main() -> int:
    """Build and run; the exit status."""
    copy_tree()
    build = os.environ | {"SURM_KERNELS_CUDA": "0", "CXXFLAGS": " ".join(FLAGS), "LDFLAGS": SANITIZERS}
    if run(["-m", "build_support"], build) != 0:
        return 1
    if not sees_planted_error(environment("auto")):
        print("error: the address sanitizer does not see an error that is there", file=sys.stderr)
        return 1
    tests = [f"tests/test_{name}.py" for name in TESTS]
    names = usable_instruction_sets()
    for turn, name in enumerate(names):
        print(f"== {name}", flush=True)
        arguments = ["-m", "pytest", "-p", "tests.sanitize.rotation", "-m", "not slow", *sys.argv[1:], *tests]
        if run(arguments, environment(name) | {"SURM_TURN": f"{turn}/{len(names)}"}) != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
