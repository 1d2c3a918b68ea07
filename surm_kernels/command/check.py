"""`surm-kernels check`: every kernel on this machine against the dense float64 matrix, one line each.

What is checked is in families.py and how in examination.py. Tensors on a GPU may take two ways, so there all is checked
twice: with the kernels in CUDA C++ first where both serve, and with Triton's.
"""

import argparse
import datetime
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from surm_kernels import _extension, _json, gpu_rule, triton
from surm_kernels.command import accuracy, machine
from surm_kernels.command.examination import DTYPES, MANY_TOKENS, MAPS, Finding, Findings, examine
from surm_kernels.command.families import FAMILIES, LARGE, LARGE_SIZES, Family
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import UsageError, check_writable, select, threads_text
from surm_kernels.ops import _cuda


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of check to `parser`."""
    names = ", ".join(family.name for family in FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"structures, or parts of their names, of: {names}")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device to check on (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kernel's worst error and its limit")


def run(arguments: argparse.Namespace) -> int:
    """Checks the structures asked for, printing as it goes; 1 if any kernel failed."""
    names = select("--only", arguments.only, (family.name for family in FAMILIES))
    families = [family for family in FAMILIES if family.name in names]
    device = _device(arguments.device)
    check_writable("--json", arguments.json)
    start, failures, ways = time.perf_counter(), 0, _ways(device)
    kernels: list[dict[str, Any]] = []
    _announce(families, device)
    with Progress(len(DTYPES) * sum(len(family.cases) for family in families) * len(ways), "checking") as progress:
        for title, way in ways.items():
            if title:
                progress.print(f"\n{title}")
            with way:
                for family in families:
                    findings = examine(family, device, progress.advance)
                    failures += sum(not _report(progress, family, name, findings) for name in MAPS)
                    kernels += _entries(family, title, findings)
    checked = len(families) * len(MAPS) * len(ways)
    verdict = f"{failures} of {checked} kernels FAILED" if failures else f"all {checked} kernels ok"
    print(f"\n{verdict}, {time.perf_counter() - start:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(_json.text(_document(device, kernels)))
        print(f"wrote {arguments.json}")
    return 1 if failures else 0


def _document(device: torch.device, kernels: list[dict[str, Any]]) -> dict[str, Any]:
    """The findings for JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else machine.processor(),
        "served by": _serving(device),
        "versions": machine.versions(),
        "kernels": kernels,
    }


def _entries(family: Family, way: str, findings: Findings) -> Iterator[dict[str, Any]]:
    """The worst finding of every kernel of a family in every type."""
    for (name, dtype), found in findings.items():
        worst = max(found, key=lambda finding: finding.deviation.share)
        error, limit = worst.deviation.error, worst.deviation.limit
        yield {
            "structure": family.name,
            "kernel": f"{name}, {way}" if way else name,
            "dtype": str(dtype).removeprefix("torch."),
            "error": error if math.isfinite(error) else None,
            "limit": limit,
            "failed": not worst.deviation.ok,
        }


def _announce(families: Sequence[Family], device: torch.device) -> None:
    """Prints what serves, what is checked and how, and the headings of the lines to come."""
    print(f"{_serving(device)}, {threads_text(torch.get_num_threads())}, device {device}")
    print("Worst normwise error against the dense float64 matrix;")
    print("16-bit types: as a multiple of the error of rounding the exact answer.")
    shapes = sum(len(family.cases) for family in families)
    print(f"{shapes} shapes, square, rectangular and grids, of 1 to {LARGE} features,")
    print(f"in float32 to {max(LARGE_SIZES)}; {' or '.join(map(str, MANY_TOKENS))} tokens.\n")
    for family in families:
        if family.rounding_factor != accuracy.ROUNDING_FACTOR:
            print(f"{family.name} rounds between two matrix products too: limit {family.rounding_factor} ×.\n")
    print(_line("structure", "kernel", [str(dtype).removeprefix("torch.") for dtype in DTYPES]))
    print(_line("", "limit", [_limit(dtype) for dtype in DTYPES]))


def _ways(device: torch.device) -> dict[str, AbstractContextManager[None]]:
    """The ways that tensors may take on a device, by title."""
    if device.type != "cuda":
        return {"": nullcontext()}
    return {
        "CUDA C++ before Triton": _cuda.using(gpu_rule.ALWAYS_CUDA),
        "Triton before CUDA C++": _cuda.using(gpu_rule.ALWAYS_TRITON),
    }


def _serving(device: torch.device) -> str:
    """What computes the products on a device."""
    if device.type != "cuda":
        return machine.kernels()
    cuda, without = _extension.cuda_architectures, _extension.why_no_cuda()
    return ", ".join(
        (
            f"no CUDA C++ ({without})" if without else f"CUDA C++ for {cuda}",
            f"no Triton ({reason})" if (reason := triton.why_not()) else "Triton",
        )
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise UsageError("--device: meta tensors hold no numbers to check")
    return device


def _report(progress: Progress, family: Family, name: str, findings: Findings) -> bool:
    """Prints the line of one kernel, and one for every type that failed; True if all is well."""
    worst = {dtype: max(findings[name, dtype], key=lambda finding: finding.deviation.share) for dtype in DTYPES}
    failed = {dtype: finding for dtype, finding in worst.items() if not finding.deviation.ok}
    cells = [_cell(family, dtype, finding) for dtype, finding in worst.items()]
    progress.print(_line(family.name, name, cells, "FAILED" if failed else "ok"))
    for dtype, finding in failed.items():
        what = finding.raised or f"error {finding.deviation.error:.1e}, limit {finding.deviation.limit:.1e}"
        where = f"{str(dtype).removeprefix('torch.')}, parameters {', '.join(map(str, finding.shapes))}"
        progress.print(f"    {where}: {what}")
    return not failed


def _line(family: str, name: str, cells: Sequence[str], verdict: str = "") -> str:
    return f"{family:<20}{name:<15}{''.join(f'{cell:>10}' for cell in cells)}  {verdict}".rstrip()


def _cell(family: Family, dtype: torch.dtype, finding: Finding) -> str:
    if finding.raised:
        return "raised"
    if dtype in accuracy.LIMITS:
        return f"{finding.deviation.error:.1e}"
    return f"{family.rounding_factor * finding.deviation.share:.2f} ×"


def _limit(dtype: torch.dtype) -> str:
    limit = accuracy.LIMITS.get(dtype)
    return f"{accuracy.ROUNDING_FACTOR} ×" if limit is None else f"{limit:.0e}"
