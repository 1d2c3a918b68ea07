"""A session of measuring: what the arguments ask for, one after the other, with progress shown and results written."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from surm_kernels import _json
from surm_kernels.command import machine
from surm_kernels.command.bench import cases, memory, report
from surm_kernels.command.bench.case import BOTH, OURS, Case, MemoryCase, Method, Point, Unavailable
from surm_kernels.command.bench.document import document, session_of
from surm_kernels.command.bench.measure import FULL, QUICK, measure
from surm_kernels.command.bench.records import MemoryRecord, Record, name_of
from surm_kernels.command.bench.report import Session
from surm_kernels.command.bench.workload import workload
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import UsageError, check_writable, select, threads_text


@dataclass(frozen=True)
class Step:
    """One thing to measure."""

    title: str
    work: Callable[[], None]


def run(arguments: argparse.Namespace) -> int:
    """The command: measures, prints, writes; 1 if a ratio was refused."""
    if arguments.list:
        for name, title in _names().items():
            print(f"{name:<28}{title}")
        return 0
    if arguments.from_json and arguments.json:
        raise UsageError("--json is for what is measured, not for what --from-json reads")
    check_writable("--json", arguments.json)
    check_writable("--markdown", arguments.markdown)
    if arguments.from_json:
        sessions = [_read(file) for file in arguments.from_json]
        _publish(arguments, sessions)
        return 1 if any(session.refused for session in sessions) else 0
    session = Session(_command(arguments), arguments.quick)
    steps = _plan(arguments, session)
    _announce(arguments, session)
    with _threads_kept():
        _work(steps)
    _publish(arguments, [session])
    return 1 if session.refused else 0


def _read(file: Path) -> Session:
    """What an earlier run wrote."""
    try:
        return session_of(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--from-json: {file} holds no run of bench: {type(error).__name__}: {error}") from None


def _names() -> dict[str, str]:
    every: tuple[Case | MemoryCase, ...] = (*cases.CASES, *cases.MEMORY_CASES)
    return {case.name: case.title for case in every}


def _plan(arguments: argparse.Namespace, session: Session) -> list[Step]:
    names = select("--only", arguments.only, _names())
    dtypes = [getattr(torch, name) for name in dict.fromkeys(arguments.dtype)]
    steps = []
    for threads in dict.fromkeys(arguments.threads or [torch.get_num_threads()]):
        for case in (case for case in cases.CASES if case.name in names):
            contest = _quick(case) if arguments.quick else case
            steps += _speed_steps(contest, _points(case, arguments), dtypes, threads, session)
        for memory_case in (case for case in cases.MEMORY_CASES if case.name in names and torch.float32 in dtypes):
            steps += _memory_steps(memory_case, _points(memory_case, arguments), threads, session)
    if not steps:
        raise UsageError(f"--dtype: {', '.join(names)} is not measured in {', '.join(arguments.dtype)}")
    return steps


def _points(case: Case | MemoryCase, arguments: argparse.Namespace) -> tuple[Point, ...]:
    """The sizes that are measured; a case that a quick look leaves out has one where it is asked for."""
    if not arguments.quick:
        return case.points
    return case.quick or (case.points[:1] if arguments.only else ())


def _quick(case: Case) -> Case:
    """The case without the rivals that are there for information only."""
    return replace(case, contenders=tuple(method for method in case.contenders if method.in_quick))


def _speed_steps(
    case: Case, points: Sequence[Point], dtypes: list[torch.dtype], threads: int, session: Session
) -> list[Step]:
    return [
        Step(
            f"{case.title}, {name_of(dtype)}, {point}, {threads_text(threads)}",
            partial(_measure_speed, case, point, dtype, threads, session),
        )
        for dtype in case.dtypes
        if dtype in dtypes
        for point in points
    ]


def _memory_steps(case: MemoryCase, points: Sequence[Point], threads: int, session: Session) -> list[Step]:
    return [
        Step(
            f"{case.title}, {method.name}, {point}, {threads_text(threads)}",
            partial(_measure_memory, case, method, point, threads, session),
        )
        for point in points
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


def _announce(arguments: argparse.Namespace, session: Session) -> None:
    """Prints the facts, and notes what makes the figures unfit for publication."""
    cores, load = machine.cores(), machine.load()
    if load > cores / 2:
        session.note(f"other programs were running (load {load:.1f} on {cores} cores): not figures to publish")
    if arguments.threads and max(arguments.threads) > cores:
        session.note(f"{max(arguments.threads)} threads share {cores} cores: not figures to publish")
    if session.quick:
        session.note("a quick run: fewer sizes, rivals and repeats")
    for name, value in session.facts.items():
        print(f"{name}: {value}")


def _work(steps: list[Step]) -> None:
    with Progress(len(steps)) as progress:
        for step in steps:
            progress.begin(f"measuring {step.title}")
            step.work()
            progress.advance()


def _publish(arguments: argparse.Namespace, sessions: Sequence[Session]) -> None:
    for session in sessions:
        if len(sessions) > 1:
            print(f"\n{report.heading(session)}")
        _print(session)
    if arguments.json is not None:
        arguments.json.write_text(_json.text(document(sessions[0])))
    if arguments.markdown is not None:
        before = arguments.markdown.read_text() if arguments.markdown.exists() else ""
        arguments.markdown.write_text(report.page(sessions, before))
    for file in (arguments.json, arguments.markdown):
        if file is not None:
            print(f"wrote {file}")


def _print(session: Session) -> None:
    tables = report.grids(session)
    for grid in (*tables[1:], *tables[:1]):  # the claims last, where the eye is
        print(f"\n{report.to_text(grid)}")
    print()
    for note in session.notes:
        print(f"note: {note}")


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
