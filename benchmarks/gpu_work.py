"""One process of a GPU session: checks and rows, one after the other, each recorded before the next is begun.

What was begun by a process before is left alone, with a result or without: so a process that ends, as it does where an
illegal access has spoilt the GPU for it, is followed by another one that goes on with the next.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_checks, gpu_record
from surm_kernels._timing import Effort
from surm_kernels.ops import _cuda

DEVICE_LOST = 3  # exit status where the GPU serves no more until the process is started anew
NO_LIBRARY = 4  # where the compiled library is not there or not for this GPU
FIRST_ROWS = 2

Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A check or a row: what names it, and what gives its result; notes of its own go into the set."""

    kind: str
    key: Mapping[str, Any]
    run: Callable[[torch.device, set[str]], Result]

    def result(self, device: torch.device, notes: set[str]) -> Result:
        """The result, or the error in its place: the next may still do."""
        try:
            return self.run(device, notes)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def checks() -> Iterator[Task]:
    """The first look."""
    for check in gpu_checks.checks():
        yield Task("check", check.key, partial(_look, check))


def _look(check: gpu_checks.Check, device: torch.device, notes: set[str]) -> Result:
    return check.run(device)


def rows(jobs: Iterable[gpu_cases.Job], effort: Effort = gpu_cases.EFFORT) -> Iterator[Task]:
    """What is measured."""
    for job in jobs:
        yield Task("row", job.key, partial(gpu_cases.row, job, effort=effort))


def why_no_library() -> str:
    """Why the kernels of CUDA C++ cannot be looked at, empty if they can."""
    return _cuda.machine(torch.cuda.current_device()).cuda


def work(tasks: Iterable[Task], file: Path, until: float, device: torch.device) -> int:
    """Does what was not begun before, until time.time() says `until`; 1 where something failed, or DEVICE_LOST."""
    known, failed = gpu_record.begun(file), False
    for task in tasks:
        if gpu_record.is_among(task.key, known):
            continue
        if time.time() > until:
            break
        named, notes = {"kind": task.kind, "key": task.key}, set[str]()
        gpu_record.add(file, gpu_record.BEGUN, named)
        print(", ".join(map(str, task.key.values())), flush=True)
        result = task.result(device, notes)
        gpu_record.add(file, task.kind, {"key": task.key, "result": result})
        for note in sorted(notes):
            gpu_record.add(file, "note", {"text": note})
        failed = failed or bool(result.get("error") or result.get("refused"))
        if not device_serves(device):
            return DEVICE_LOST
    return 1 if failed else 0


def device_serves(device: torch.device) -> bool:
    """Whether the GPU is usable still; an illegal access leaves it so for no other call of the process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
