"""A session on a GPU: a first look, what only a GPU shows, measurements, parity, compute-sanitizer.

    python -m benchmarks.gpu [--out FOLDER] [--seconds N]  everything; the last lines are a short table
    python -m benchmarks.gpu --work first|rows FILE        a part of it in this process, into a file of JSON lines
    python -m benchmarks.gpu --dry-run [--out FOLDER]      walks it all on the CPU at tiny sizes: proves this program
    python -m benchmarks.gpu --report FILE [--into PAGE]   the tables of docs/gpu.md from that file

`benchmarks/gpu.sh` starts it. A stage that fails or runs out of time does not stop the next; one at a time has the GPU.
Everything that is found is on the disk at once. The exit status says whether all went well.
"""

import argparse
import datetime
import importlib.util
import itertools
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_cases, gpu_record, gpu_report, gpu_work
from benchmarks.gpu_stages import LOG, RESULTS, UNTIL, Stage, run_stage
from surm_kernels.command import machine

SESSION_SECONDS = 450.0  # the whole, so that eight minutes are kept


def main(words: Sequence[str] | None = None) -> int:
    """Does what the arguments ask for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Prove and measure the GPU kernels.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu_results"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=SESSION_SECONDS, metavar="N", help="default: %(default)s")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--work", nargs=2, metavar=("PART", "FILE"), help="what FILE does not have yet of first or rows")
    what.add_argument("--dry-run", action="store_true", help="walk everything on the CPU at tiny sizes")
    what.add_argument("--report", type=Path, metavar="FILE", help="the tables of a file")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="with --report: put them between the marks of PAGE")
    arguments = parser.parse_args(words)
    if arguments.report:
        return report(arguments.report, arguments.into)
    if arguments.dry_run:
        return dry_run(arguments.out)
    if not torch.cuda.is_available():
        print(f"gpu: torch {torch.__version__} sees no GPU; --dry-run needs none", file=sys.stderr)
        return 2
    if arguments.work:
        part, file = arguments.work
        return work(part, Path(file), float(os.environ.get(UNTIL) or "inf"), torch.device("cuda"))
    return session(arguments.out, arguments.seconds)


def report(file: Path, into: Path | None) -> int:
    """Prints the tables of a file, or puts them into a page."""
    document = gpu_record.read(file)
    part = gpu_report.page(document)
    if into is None:
        print(part)
    elif document["dry_run"]:
        print(f"gpu: {file} is of a dry run: nothing to publish", file=sys.stderr)
        return 2
    else:
        into.write_text(gpu_report.put_into(into.read_text(), part))
    return 0


def work(part: str, file: Path, until: float, device: torch.device) -> int:
    """Checks and the first rows, or all rows."""
    if part == "first":
        if reason := gpu_work.why_no_library():
            print(reason)
            return gpu_work.NO_LIBRARY
        first = gpu_work.rows(itertools.islice(gpu_cases.jobs(), gpu_work.FIRST_ROWS))
        return gpu_work.work(itertools.chain(gpu_work.checks(), first), file, until, device)
    return gpu_work.work(gpu_work.rows(gpu_cases.jobs()), file, until, device)


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


def dry_run(out: Path) -> int:
    """Every check and row on the CPU, rows at a tiny size, by the same code; 1 where one fails. Times mean nothing."""
    jobs = {str(job.key): job for job in map(gpu_cases.shrunk, gpu_cases.jobs())}  # some are of one size then
    file = begin(out, dry=True, wanted_rows=len(jobs))
    tasks = gpu_work.rows(jobs.values(), gpu_cases.DRY_EFFORT)
    gpu_work.work(itertools.chain(gpu_work.checks(), tasks), file, float("inf"), torch.device("cpu"))
    document = gpu_record.read(file)
    print(gpu_report.short_table(document))
    return 1 if any(one.get("error") for one in document["checks"] + document["rows"]) else 0


def begin(out: Path, dry: bool, wanted_rows: int) -> Path:
    """A new record with the facts."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / RESULTS).resolve()
    for old in (file, out / LOG):
        old.unlink(missing_ok=True)
    gpu_record.add(file, "facts", {**facts(dry), "wanted_rows": wanted_rows})
    return file


def stages(python: str, file: Path) -> list[Stage]:
    """All, in their order, but for the build: that is only where the library that came along does not serve."""

    def work(name: str, part: str, backend: str, seconds: float) -> Stage:
        command = (python, "-m", "benchmarks.gpu", "--work", part, str(file))
        return Stage(name, command, seconds, {"SURM_KERNELS_BACKEND": backend}, goes_on=True)

    # In a worker of its own a test that spoils the GPU, or never ends, takes no other with it.
    workers = ("-n", "1", "--max-worker-restart=20") if importlib.util.find_spec("xdist") else ()
    options = ("-v", "-rs", "--tb=line", "--maxfail=40", "-p", "no:cacheprovider", *workers)

    def tests(name: str, file: str, backend: str, seconds: float) -> Stage:
        command = (python, "-m", "pytest", f"tests/gpu/{file}.py", *options)
        return Stage(name, command, seconds, {"SURM_KERNELS_BACKEND": backend, "SURM_KERNELS_GPU_TEST_SECONDS": "30"})

    return [
        work("first", "first", "cuda", 30.0),
        tests("alone", "test_gpu_alone", "auto", 50.0),
        work("rows", "rows", "auto", 150.0),
        tests("parity-auto", "test_gpu_parity", "auto", 60.0),
        tests("parity-cuda", "test_gpu_parity", "cuda", 35.0),
        tests("parity-triton", "test_gpu_parity", "triton", 35.0),
        _sanitizer(python, "memcheck", "cuda"),
        _sanitizer(python, "racecheck", "cuda"),
        work("more rows", "rows", "auto", 150.0),
    ]


def _build(python: str) -> Stage:
    """In place, for the device's own architecture."""
    architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    environment = {
        "SURM_KERNELS_EXTENSION": "1",
        "SURM_KERNELS_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or architecture,
    }
    return Stage("build", (python, "-m", "build_support"), 240.0, environment)


def _sanitizer(python: str, tool: str, backend: str) -> Stage:
    """One small call of every kernel of ours under a tool of compute-sanitizer."""
    filter = ("--kernel-name", "kernel_substring=surm")  # torch's own are many and were sanitized by others
    options = ("--tool", tool, *filter, "--error-exitcode", "9")
    command = ("compute-sanitizer", *options, python, "-m", "tests.gpu.one_of_each")
    # With the allocator's pool, an access beyond a tensor would find other memory of ours.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "SURM_KERNELS_BACKEND": backend}
    return Stage(f"{tool}-{backend}", command, 90.0, environment)


def session(out: Path, seconds: float) -> int:
    """All stages, each within its limit and all within the whole; then the short table."""
    deadline, file = time.monotonic() + seconds, begin(out, dry=False, wanted_rows=sum(1 for _ in gpu_cases.jobs()))

    def run(stage: Stage) -> Mapping[str, Any]:
        return run_stage(stage, min(stage.seconds, deadline - time.monotonic()), out)

    first, *rest = stages(sys.executable, file)
    if run(first)["exit"] == gpu_work.NO_LIBRARY:
        run(_build(sys.executable))
        run(first)
    for stage in rest:
        run(stage)
    document = gpu_record.read(file)
    print(f"\n{gpu_report.short_table(document)}\nwrote {file}")
    wrong = any(one.get("error") or one.get("refused") for one in document["checks"] + document["rows"])
    return 1 if wrong or any(stage["status"] == "FAILED" for stage in document["stages"]) else 0


if __name__ == "__main__":
    sys.exit(main())
