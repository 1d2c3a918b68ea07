"""A session on a GPU: build, parity tests, compute-sanitizer, measurements; `benchmarks/gpu.sh` starts it.

    python -m benchmarks.gpu [--out FOLDER] [--seconds N]  everything; the last lines are a short table
    python -m benchmarks.gpu --measure FILE [--seconds N]  measures alone, a row at a time, into a JSON file
    python -m benchmarks.gpu --dry-run [--out FOLDER]      walks all rows on the CPU at tiny sizes: proves this program
    python -m benchmarks.gpu --report FILE [--into PAGE]   the tables of docs/gpu.md from the JSON file

A stage that fails or runs out of time does not stop the next; the exit status says whether all went well.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_report
from surm_kernels.command import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS, LOG = "gpu.json", "gpu.log"
SESSION_SECONDS = 450.0  # the whole, so that eight minutes are kept
MEASURING_SECONDS = 130.0  # kept for the last stage whatever the others take
SAVING_SECONDS = 10.0
KILL_SECONDS = 5.0
DEVICE_LOST = 3  # exit status of measuring where the GPU serves no more until the process is started anew
LOG_LINES = 15


def main(words: Sequence[str] | None = None) -> int:
    """Does what the arguments ask for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Prove and measure the GPU kernels.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu_results"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=SESSION_SECONDS, metavar="N", help="default: %(default)s")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--measure", type=Path, metavar="FILE", help="measure what FILE does not have yet")
    what.add_argument("--dry-run", action="store_true", help="walk all rows on the CPU at tiny sizes")
    what.add_argument("--report", type=Path, metavar="FILE", help="the tables of a JSON file")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="with --report: put them between the marks of PAGE")
    arguments = parser.parse_args(words)
    if arguments.report:
        return report(arguments.report, arguments.into)
    if arguments.dry_run:
        return dry_run(arguments.out)
    if not torch.cuda.is_available():
        print(f"gpu: torch {torch.__version__} sees no GPU; --dry-run needs none", file=sys.stderr)
        return 2
    if arguments.measure:
        return measure(arguments.measure, arguments.seconds)
    return session(arguments.out, arguments.seconds)


def report(file: Path, into: Path | None) -> int:
    """Prints the tables of a JSON file, or puts them into a page."""
    document = json.loads(file.read_text())
    part = gpu_report.page(document)
    if into is None:
        print(part)
    elif document["dry_run"]:
        print(f"gpu: {file} is of a dry run: nothing to publish", file=sys.stderr)
        return 2
    else:
        into.write_text(gpu_report.put_into(into.read_text(), part))
    return 0


def facts(dry: bool) -> dict[str, Any]:
    """What a result belongs to."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    versions = {**machine.versions("triton", "peft"), "CUDA": torch.version.cuda or "none", "nvcc": _nvcc_version()}
    device = {"name": machine.processor()} if dry else _device()
    command = "python -m benchmarks.gpu --dry-run" if dry else "benchmarks/gpu.sh"
    return {
        "dry_run": dry,
        "date": now,
        "command": command,
        "system": platform.platform(),
        "device": device,
        "versions": versions,
        "stages": [],
        "notes": [],
        "rows": [],
    }


def _device() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).split("\n")[0],
    }


def _nvcc_version() -> str:
    found = re.search(r"release [\d.]+, V([\d.]+)", _said(["nvcc", "--version"]))
    return found[1] if found else "not found"


def _said(command: Sequence[str]) -> str:
    """What a program prints, or that it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def save(document: Mapping[str, Any], file: Path) -> None:
    """Writes the file in one step, so that whoever is stopped leaves a whole one."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    temporary.replace(file)


def dry_run(out: Path) -> int:
    """Every row on the CPU at a tiny size, by the same code; 1 where a row fails. Times mean nothing."""
    out.mkdir(parents=True, exist_ok=True)
    document, notes = facts(dry=True), set[str]()
    for job in map(gpu_cases.shrunk, gpu_cases.jobs()):
        document["rows"].append(measured(job, torch.device("cpu"), notes))
    document["notes"] = sorted(notes)
    save(document, out / RESULTS)
    print(gpu_report.short_table(document))
    return 1 if any(row.get("error") for row in document["rows"]) else 0


def measured(job: gpu_cases.Job, device: torch.device, notes: set[str]) -> dict[str, Any]:
    """A row, or the error in its place: the next may still do."""
    effort = gpu_cases.EFFORT if device.type == "cuda" else gpu_cases.DRY_EFFORT
    try:
        return gpu_cases.row(job, device, notes, effort)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {**job.key, "title": job.of.case.title, "error": reason, "contenders": {}}


def measure(file: Path, seconds: float) -> int:
    """Measures the rows that the file does not have, until the time is over; writes after each."""
    deadline, device = time.monotonic() + seconds, torch.device("cuda")
    document = json.loads(file.read_text()) if file.exists() else facts(dry=False)
    done = [
        {name: row[name] for name in ("case", "in_features", "out_features", "tokens", "dtype")}
        for row in document["rows"]
    ]
    open_jobs = [job for job in gpu_cases.jobs() if job.key not in done]
    notes = set(document["notes"])
    for index, job in enumerate(open_jobs):
        if time.monotonic() > deadline:
            notes.add(f"{len(open_jobs) - index} of {len(done) + len(open_jobs)} rows were left out: no time")
            break
        print(f"measuring {job}", flush=True)
        document["rows"].append(measured(job, device, notes))
        document["notes"] = sorted(notes)
        save(document, file)
        if not _device_serves():
            return DEVICE_LOST
    document["notes"] = sorted(notes)
    save(document, file)
    return 1 if any(row.get("error") or row.get("refused") for row in document["rows"]) else 0


def _device_serves() -> bool:
    """Whether the last row left the GPU usable; an illegal access does not, for the rest of the process."""
    torch.cuda.empty_cache()
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class Stage:
    """A program of the session, the most seconds it may take, and what it needs in its environment."""

    name: str
    command: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


def stages(python: str) -> list[list[Stage]]:
    """All before the measuring; those of a group run at the same time."""
    architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    build = {
        "SURM_KERNELS_EXTENSION": "1",
        "SURM_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or architecture,
    }
    workers = ("-n", str(max(1, min(4, machine.cores() // 4)))) if importlib.util.find_spec("xdist") else ()
    tests = (*(python, "-m", "pytest", "tests/gpu", "--tb=short", "--maxfail=40", "-p", "no:cacheprovider"), *workers)
    parity = [Stage(f"parity-{one}", tests, 110.0, {"SURM_KERNELS_BACKEND": one}) for one in ("auto", "cuda", "triton")]
    check = Stage("check", (python, "-m", "surm_kernels", "check", "--device", "cuda"), 110.0)
    return [
        [Stage("build", (python, "-m", "build_support"), 240.0, build)],
        [*parity, check],
        [_sanitizer(python, *pair) for pair in (("memcheck", "cuda"), ("racecheck", "cuda"), ("memcheck", "triton"))],
    ]


def _sanitizer(python: str, tool: str, backend: str) -> Stage:
    """One small call of every kernel of a backend under a tool of compute-sanitizer."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", python, "-m", "tests.gpu.one_of_each")
    # With the allocator's pool, an access beyond a tensor would find other memory of ours.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SURM_KERNELS_BACKEND": backend}
    return Stage(f"{tool}-{backend}", command, 60.0, environment)


def session(out: Path, seconds: float) -> int:
    """All stages, each within its limit and all within the whole; then the short table."""
    deadline = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).unlink(missing_ok=True)
    file, document = (out / RESULTS).resolve(), facts(dry=False)
    for group in stages(sys.executable):
        left = deadline - time.monotonic() - MEASURING_SECONDS
        with ThreadPoolExecutor(len(group)) as pool:
            ends = [pool.submit(run_stage, stage, min(stage.seconds, left), out) for stage in group]
        document["stages"] += [end.result() for end in ends]
        save(document, file)
    measuring = _measuring_stage(file, deadline, out)
    document = json.loads(file.read_text())
    document["stages"].append(measuring)
    save(document, file)
    print(f"\n{gpu_report.short_table(document)}\nwrote {file}")
    return 1 if any(stage["status"] == "FAILED" for stage in document["stages"]) else 0


def _measuring_stage(file: Path, deadline: float, out: Path) -> dict[str, Any]:
    """Measures, in a new process again where a row has made the device unusable."""
    while True:
        seconds = deadline - SAVING_SECONDS - time.monotonic()
        words = (sys.executable, "-m", "benchmarks.gpu", "--measure", str(file), "--seconds", f"{seconds:.0f}")
        result = run_stage(Stage("measure", words, seconds), seconds + SAVING_SECONDS / 2, out)
        if result["exit"] != DEVICE_LOST or deadline - time.monotonic() < 2 * SAVING_SECONDS:
            return {**result, "note": f"{len(json.loads(file.read_text())['rows'])} rows"}


def run_stage(stage: Stage, seconds: float, out: Path) -> dict[str, Any]:
    """Runs a program, its output added to the session's log; says how it ended."""
    print(f"== {stage.name}: {shlex.join(stage.command)}", flush=True)
    result = {"name": stage.name, "status": "skipped", "exit": None, "seconds": 0.0, "note": ""}
    if seconds <= KILL_SECONDS:
        return {**result, "note": "no time left"}
    if shutil.which(stage.command[0]) is None:
        return {**result, "note": f"{stage.command[0]} is not installed"}
    start, limit = time.monotonic(), {"SURM_KERNELS_GPU_TEST_SECONDS": f"{seconds - 3 * KILL_SECONDS:.0f}"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        status = _run(stage.command, {**os.environ, **limit, **stage.environment}, seconds, output.fileno())
        output.seek(0)
        text = output.read()
    with (out / LOG).open("a") as log:
        log.write(f"== {stage.name}: {shlex.join(stage.command)}\n{text}\n")
    result |= {"exit": status, "seconds": round(time.monotonic() - start, 1), "note": _last_line(text)}
    if status is None:
        return {**result, "status": "cut short", "note": f"after {seconds:.0f} s: {result['note']}"}
    if "Device not supported" in text:
        return {**result, "note": f"{stage.command[0]} does not support this device"}
    if status != 0:
        print("\n".join([f"-- the end of {stage.name}:", *text.splitlines()[-LOG_LINES:]]), flush=True)
    return {**result, "status": "ok" if status == 0 else "FAILED"}


def _last_line(text: str) -> str:
    """Of the log, without the rulers that programs draw around it."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    return lines[-1][:100] if lines else ""


def _run(command: Sequence[str], environment: Mapping[str, str], seconds: float, output: int) -> int | None:
    """The exit status, None where the time was over and the program with its children was ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, how)
                process.wait(KILL_SECONDS)
        return None


if __name__ == "__main__":
    sys.exit(main())
