"""A session of measuring: what the arguments ask for, one after the other, with progress shown and results written."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from surm_kernels.command import machine
from surm_kernels.command.bench import cases, memory, report
from surm_kernels.command.bench.case import BOTH, OURS, Case, MemoryCase, Method, Point, Unavailable
from surm_kernels.command.bench.measure import FULL, QUICK, measure
from surm_kernels.command.bench.records import MemoryRecord, Record, name_of
from surm_kernels.command.bench.report import Session
from surm_kernels.command.bench.workload import workload
from surm_kernels.command.usage import UsageError, check_writable, select, threads_text

WIDTH_OF_A_FILE = 150  # where the output is no terminal


@dataclass(frozen=True)
class Step:
    """One thing to measure."""

    title: str
    work: Callable[[], None]


def run(arguments: argparse.Namespace) -> int:
    """The command: measures, prints, writes; 1 if a ratio was refused."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    if arguments.list:
        for name, title in _names().items():
            console.print(f"{name:<26}{title}", highlight=False)
        return 0
    check_writable("--json", arguments.json)
    check_writable("--markdown", arguments.markdown)
    session = Session(_command(arguments), arguments.quick)
    steps = _plan(arguments, session)
    _announce(console, arguments, session)
    with _threads_kept():
        _work(console, steps)
    _publish(console, arguments, session)
    return 1 if session.refused else 0


def _names() -> dict[str, str]:
    every: tuple[Case | MemoryCase, ...] = (*cases.CASES, *cases.MEMORY_CASES)
    return {case.name: case.title for case in every}


def _plan(arguments: argparse.Namespace, session: Session) -> list[Step]:
    chosen = select("--only", arguments.only, _names())
    dtypes = [getattr(torch, name) for name in dict.fromkeys(arguments.dtype)]
    steps = []
    for threads in dict.fromkeys(arguments.threads or [torch.get_num_threads()]):
        for case in (case for case in cases.CASES if case.name in chosen):
            steps += _speed_steps(_quick(case) if arguments.quick else case, dtypes, threads, session)
        for memory_case in (case for case in cases.MEMORY_CASES if case.name in chosen and torch.float32 in dtypes):
            steps += _memory_steps(memory_case, threads, session)
    if not steps:
        raise UsageError(f"--dtype: {', '.join(chosen)} is not measured in {', '.join(arguments.dtype)}")
    return steps


def _quick(case: Case) -> Case:
    """The case without the rivals that are there for information only; points are chosen in `_speed_steps`."""
    return replace(case, contenders=tuple(method for method in case.contenders if method.in_quick))


def _speed_steps(case: Case, dtypes: list[torch.dtype], threads: int, session: Session) -> list[Step]:
    points = case.quick if session.quick else case.points
    return [
        Step(
            f"{case.title}, {name_of(dtype)}, {point}, {threads_text(threads)}",
            partial(_measure_speed, case, point, dtype, threads, session),
        )
        for dtype in case.dtypes
        if dtype in dtypes
        for point in points
    ]


def _memory_steps(case: MemoryCase, threads: int, session: Session) -> list[Step]:
    return [
        Step(
            f"{case.title}, {method.name}, {point}, {threads_text(threads)}",
            partial(_measure_memory, case, method, point, threads, session),
        )
        for point in (case.quick if session.quick else case.points)
        for method in case.methods
    ]


def _measure_speed(case: Case, point: Point, dtype: torch.dtype, threads: int, session: Session) -> None:
    torch.set_num_threads(threads)
    try:
        made = workload(case, point, dtype, session.note)
    except Unavailable as reason:
        session.note(str(reason))
        return
    measurement = measure(made, QUICK if session.quick else FULL)
    session.records.append(Record(case, point, dtype, threads, measurement))
    for name, deviation in measurement.deviations.items():
        if not deviation.ok:
            found = f"normwise error {deviation.error:.1e}, limit {deviation.limit:.1e}"
            where = f"{case.title}, {name_of(dtype)}, {point}"
            result = "no ratio is reported" if name == OURS else "left out"
            session.note(f"{name} is wrong at {where} ({found}): {result}")


def _measure_memory(case: MemoryCase, method: Method, point: Point, threads: int, session: Session) -> None:
    megabytes = memory.extra_megabytes(case, method.name, point, torch.float32, threads)
    if megabytes is None:
        session.note("this system does not tell the peak memory of a part of a process")
    session.memory.append(MemoryRecord(case, method.name, point, torch.float32, threads, megabytes))


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _announce(console: Console, arguments: argparse.Namespace, session: Session) -> None:
    """Prints the facts, and notes what makes the figures unfit for publication."""
    cores, load = machine.cores(), machine.load()
    if load > cores / 2:
        session.note(f"other programs were running (load {load:.1f} on {cores} cores): not figures to publish")
    if arguments.threads and max(arguments.threads) > cores:
        session.note(f"{max(arguments.threads)} threads share {cores} cores: not figures to publish")
    if session.quick:
        session.note("a quick run: fewer sizes, rivals and repeats")
    for name, value in report.facts().items():
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)


def _work(console: Console, steps: list[Step]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:
            progress.update(task, description=step.title)
            if not console.is_terminal:
                console.print(f"measuring {step.title}", highlight=False)
            step.work()
            progress.advance(task)


def _publish(console: Console, arguments: argparse.Namespace, session: Session) -> None:
    tables = report.grids(session)
    for grid in (*tables[1:], *tables[:1]):  # the claims last, where the eye is
        console.print()
        console.print(report.to_table(grid))
    for note in session.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.document(session), indent=1, allow_nan=False) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(report.page(session))
    for file in (arguments.json, arguments.markdown):
        if file is not None:
            console.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


def _command(arguments: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["surm-kernels bench"]
    words += ["--quick"] if arguments.quick else []
    for option in ("only", "threads"):
        values = getattr(arguments, option)
        words += [f"--{option}", *map(str, values)] if values else []
    if set(arguments.dtype) != {name_of(dtype) for dtype in BOTH}:
        words += ["--dtype", *arguments.dtype]
    return " ".join(words)
