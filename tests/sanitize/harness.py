"""Runs the CPU kernels without torch, on threads of the harness in this folder.

`python -m tests.sanitize.harness thread` under the thread sanitizer, which takes OpenMP's own synchronisation for
races; `python -m tests.sanitize.harness aarch64` compiled for that machine and run by qemu-user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_support.extension import COMMON_FLAGS, KERNEL_FLAGS, sources
from build_support.ninja import ROOT, Step, run_ninja
from build_support.toolchain import find_compiler

# The baseline alone: the sanitizer does not see what masked loads and stores of wider instruction sets touch.
DEFINES = ("-DSURM_INSTRUCTION_SET=baseline", "-Itests/sanitize")
RACE_FOUND = 66  # the exit status of a program in which the thread sanitizer saw a race


@dataclass(frozen=True)
class Build:
    """How the harness is compiled, linked and started."""

    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    runner: tuple[str, ...] = ()


def thread_build() -> Build:
    """With the thread sanitizer, for this machine."""
    return Build(find_compiler(), ("-O1", "-g1", "-fsanitize=thread"), ("-fsanitize=thread",))


def aarch64_build() -> Build | None:
    """For aarch64, linked to run without its libraries; None, and a word on what is missing, where it cannot be had."""
    programs = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    if missing:
        print(f"skipped: the aarch64 harness needs what Debian calls {' and '.join(missing)}")
        return None
    compiler, emulator = programs
    return Build((compiler,), ("-O2",), ("-static",), (emulator,))


def build_harness(name: str, build: Build) -> Path:
    """The program, brought up to date in build/sanitize."""
    folder = f"build/sanitize/{name}"
    patterns = ("csrc/cpu/*.cpp", "csrc/plan/*.cpp", "tests/sanitize/*.cpp")
    files = [file for pattern in patterns for file in sources(pattern)]
    objects = [f"{folder}/{Path(file).name}.o" for file in files]
    flags = (*COMMON_FLAGS, *KERNEL_FLAGS, *DEFINES, *build.flags)
    steps = [
        Step("compile", output, (file,), build.compiler, flags) for file, output in zip(files, objects, strict=True)
    ]
    program = f"{folder}/harness"
    run_ninja([*steps, Step("link", program, tuple(objects), build.compiler, build.link_flags)], ROOT / folder)
    return ROOT / program


def run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run, and keep what it says of errors."""
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"SURM_KERNELS_ISA": ""})


def sees_planted_race(program: Path) -> bool:
    """Whether the sanitizer reports the race between two calls, by the name of a kernel."""
    result = run([program, "race"])
    return result.returncode == RACE_FOUND and "data race" in result.stderr and "surm::cpu::baseline" in result.stderr


def main() -> int:
    """Build and run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize.harness", description=__doc__)
    parser.add_argument("kind", choices=("thread", "aarch64"))
    kind = parser.parse_args().kind
    build = thread_build() if kind == "thread" else aarch64_build()
    if build is None:
        return 0
    program = build_harness(kind, build)
    if kind == "thread" and not sees_planted_race(program):
        print("error: the thread sanitizer does not see a race that is there", file=sys.stderr)
        return 1
    result = run([*build.runner, program])
    print(result.stderr, end="", file=sys.stderr)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
