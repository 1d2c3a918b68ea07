"""Running the programs of a GPU session: each within its time, its output in the log, its end in the record."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu_record
from benchmarks.gpu_record import Document

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LOG = "gpu.jsonl", "gpu.log"
KILL_SECONDS = 5.0
ENDING_SECONDS = 10.0  # that a program has to end by itself
LOG_LINES = 15
UNTIL = "SURM_KERNELS_GPU_UNTIL"  # what tells a program when its time is over, as time.time() counts
TOO_LATE = re.compile(r"^SKIPPED \[(\d+)\] .*the time for these tests is over", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """A program of the session, the most seconds it may take, and what it needs in its environment.

    One that `goes_on` records what it begins, and is started again with the next where its process ends in between.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    goes_on: bool = False


def run_stage(stage: Stage, seconds: float, out: Path) -> Document:
    """Runs a stage for at most so many seconds; says how it ended, in the record as well."""
    file, deadline = out / RESULTS, time.monotonic() + seconds
    while True:
        begun, start = len(gpu_record.begun(file)), time.monotonic()
        result = _run_once(stage, deadline - start, out)
        gpu_record.add(file, "stage", result)
        ended = result["exit"] in (None, 0, 1) or len(gpu_record.begun(file)) == begun
        if not stage.goes_on or ended or deadline - time.monotonic() <= ENDING_SECONDS:
            return result


def _run_once(stage: Stage, seconds: float, out: Path) -> Document:
    print(f"== {stage.name}: {shlex.join(stage.command)}", flush=True)
    result = {"name": stage.name, "status": "skipped", "exit": None, "seconds": 0.0, "note": ""}
    if seconds <= ENDING_SECONDS:
        return {**result, "note": "no time left"}
    if shutil.which(stage.command[0]) is None:
        return {**result, "note": f"{stage.command[0]} is not installed"}
    gpu_record.add(out / RESULTS, "stage", {**result, "status": "cut short", "note": "the session ended in it"})
    start, limit = time.monotonic(), {UNTIL: f"{time.time() + seconds - ENDING_SECONDS:.1f}"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        status = _run(stage.command, {**os.environ, **limit, **stage.environment}, seconds, output.fileno())
        output.seek(0)
        text = output.read()
    with (out / LOG).open("a") as log:
        log.write(f"== {stage.name}: {shlex.join(stage.command)}\n{text}\n")
    result |= {"exit": status, "seconds": round(time.monotonic() - start, 1), "note": _note(text)}
    if "Device not supported" in text:
        return {**result, "note": f"{stage.command[0]} does not support this device"}
    if status != 0:
        print("\n".join([f"-- the end of {stage.name}:", *text.splitlines()[-LOG_LINES:]]), flush=True)
    if status is None:
        return {**result, "status": "cut short", "note": f"after {seconds:.0f} s: {result['note']}"}
    return {**result, "status": "ok" if status == 0 else "FAILED"}


def _note(text: str) -> str:
    """The last line of the log, without the rulers that programs draw, and how many tests the time did not reach."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    left_out = sum(int(count) for count in TOO_LATE.findall(text))
    return (lines[-1][:100] if lines else "") + (f"; {left_out} tests left out: no time" if left_out else "")


def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float, output: int) -> int | None:
    """The exit status, None where the time was over and the program with its children was ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):  # its children too, where it ended before them
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, how)
                process.wait(KILL_SECONDS)
