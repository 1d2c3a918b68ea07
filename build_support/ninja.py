"""Runs a handful of build steps with ninja: only what changed is built again, headers included."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build_support.toolchain import BuildError, find_ninja

ROOT = Path(__file__).resolve().parents[1]

RULES = """\
rule compile
  command = $tool $flags -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out

rule compile_cuda
  command = $tool $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1; status=$$?; $
    grep -v -e "^ptxas info" -e "bytes stack frame" $out.log; exit $$status
  depfile = $out.d
  deps = gcc
  description = compile $out

rule link
  command = $tool -o $out $in $flags
  description = link $out
"""


@dataclass(frozen=True)
class Step:
    """One file to make. Paths are relative to the repository; `rule` is "compile", "compile_cuda" or "link".

    "compile_cuda" keeps what the compiler says in a file beside the object, `.log` added to its name, and shows only
    what is no report of ptxas.
    """

    rule: str
    output: str
    inputs: tuple[str, ...]
    tool: tuple[str, ...]
    flags: tuple[str, ...]


def ninja_text(steps: Iterable[Step], folder: str) -> str:
    """The build.ninja for these steps, its log and dependency records kept in `folder`."""
    parts = ["ninja_required_version = 1.5", f"builddir = {_path(folder)}", "", RULES]
    for step in steps:
        inputs = " ".join(_path(name) for name in step.inputs)
        parts.append(f"build {_path(step.output)}: {step.rule} {inputs}")
        parts.append(f"  tool = {_words(step.tool)}")
        parts.append(f"  flags = {_words(step.flags)}\n")
    return "\n".join(parts)


def run_ninja(steps: Iterable[Step], folder: Path) -> None:
    """Make what is out of date, as many jobs at a time as there are processors ($MAX_JOBS overrides)."""
    text = ninja_text(steps, os.path.relpath(folder, ROOT))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        script = folder / "build.ninja"
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        result = subprocess.run([find_ninja(), "-f", str(script), "-j", jobs], cwd=ROOT, check=False)
    if result.returncode != 0:
        raise BuildError("the compiler's message is above")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file, so that two builds of one folder take turns."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _path(name: str) -> str:
    return name.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _words(words: Sequence[str]) -> str:
    return shlex.join(words).replace("$", "$$")
