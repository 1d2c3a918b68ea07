"""What a session of measuring has found, and what that says about the claims."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surm_kernels.command.bench.cases import (
    CASES,
    CLAIMS,
    MEMORY_CLAIM,
    MEMORY_POINTS,
    MEMORY_TITLE,
    Case,
    Claim,
    Point,
)
from surm_kernels.command.bench.measure import Measurement, Spread
from surm_kernels.command.bench.methods import CLONE, OURS


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Record:
    """One case at one size, type and number of threads."""

    case: Case
    point: Point
    dtype: torch.dtype
    threads: int
    measurement: Measurement

    def to_json(self) -> dict[str, Any]:
        measurement = self.measurement
        names = dict.fromkeys([*measurement.deviations, *measurement.samples])
        return {
            "case": self.case.name,
            "features": self.point.features,
            "tokens": self.point.tokens,
            "dtype": name_of(self.dtype),
            "threads": self.threads,
            "refused": measurement.refused,
            "contenders": {name: _contender(measurement, name) for name in names},
        }


def _contender(measurement: Measurement, name: str) -> dict[str, Any]:
    deviation = measurement.deviations.get(name)
    ratio = measurement.ratio(name)
    return {
        "error": _number(deviation.error) if deviation else None,
        "error_limit": _number(deviation.limit) if deviation else None,
        "seconds": measurement.samples.get(name, []),
        "ratio_to_ours": None if ratio is None or name == OURS else [ratio.low, ratio.median, ratio.high],
    }


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class MemoryRecord:
    """Megabytes of one forward and backward pass beyond input, output and gradients, None where it is not known."""

    method: str
    point: Point
    dtype: torch.dtype
    threads: int
    megabytes: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "features": self.point.features,
            "tokens": self.point.tokens,
            "dtype": name_of(self.dtype),
            "threads": self.threads,
            "extra_megabytes": self.megabytes,
        }


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was found over the sizes measured.

    median, worst and reached are None where a ratio was refused.
    """

    title: str
    against: str
    threads: int
    wanted: str
    unit: str
    median: float | None
    worst: float | None
    sizes: str
    reached: bool | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def verdicts(records: Sequence[Record], memory: Sequence[MemoryRecord]) -> list[Verdict]:
    """Every claim that something was measured for, for every number of threads."""
    found = []
    for threads in sorted({one.threads for one in records} | {one.threads for one in memory}):
        for claim in CLAIMS:
            about = [one for one in records if (one.case.name, one.dtype, one.threads) == (*_key(claim), threads)]
            measured = [one for one in about if one.measurement.refused or one.measurement.ratio(claim.rival)]
            if measured:
                found.append(_speed_verdict(claim, measured))
        ours = [one for one in memory if one.threads == threads and one.method == OURS and one.megabytes is not None]
        if ours:
            found.append(_memory_verdict(ours))
    return found


def _key(claim: Claim) -> tuple[str, torch.dtype]:
    return claim.case, claim.dtype


def _speed_verdict(claim: Claim, records: Sequence[Record]) -> Verdict:
    case, threads = records[0].case, records[0].threads
    title = f"{case.title}, {name_of(claim.dtype)}"
    sizes = f"{len(records)} of {len(case.points)}"
    if any(one.measurement.refused for one in records):
        return Verdict(title, claim.rival, threads, _wanted(claim), "×", None, None, sizes, None)
    ratios = [ratio.median for one in records if (ratio := one.measurement.ratio(claim.rival))]
    median, minimum = statistics.median(ratios), min(ratios)
    reached = median >= claim.median and minimum >= claim.everywhere
    return Verdict(title, claim.rival, threads, _wanted(claim), "×", median, minimum, sizes, reached)


def _wanted(claim: Claim) -> str:
    aim = "aim: " if claim.rival == CLONE else ""
    if claim.median == claim.everywhere:
        return f"{aim}≥ {claim.median:g}×"
    return f"{aim}≥ {claim.median:g}×, nowhere under {claim.everywhere:g}×"


def _memory_verdict(records: Sequence[MemoryRecord]) -> Verdict:
    threads = records[0].threads
    megabytes = [one.megabytes / threads for one in records if one.megabytes is not None]
    median, most = statistics.median(megabytes), max(megabytes)
    wanted = f"≤ {MEMORY_CLAIM:g} MB a thread"
    sizes = f"{len(records)} of {len(MEMORY_POINTS)}"
    return Verdict(MEMORY_TITLE, "", threads, wanted, " MB", median, most, sizes, most <= MEMORY_CLAIM)


@dataclass(frozen=True)
class Grid:
    """A table that can become a terminal's or a page's; a cell has one or two lines."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[tuple[str, ...]]]


def speed_grids(records: Iterable[Record]) -> list[Grid]:
    """A table for each case, type and number of threads: times, and the rivals' as multiples of ours."""
    groups: dict[tuple[str, torch.dtype, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.case.name, record.dtype, record.threads), []).append(record)
    order = [case.name for case in CASES]
    keys = sorted(groups, key=lambda key: (key[2], order.index(key[0]) if key[0] in order else 0))
    return [_speed_grid(groups[key]) for key in keys]


def _speed_grid(records: Sequence[Record]) -> Grid:
    first = records[0]
    names = list(dict.fromkeys(name for one in records for name in _names(one.measurement)))
    title = f"{first.case.title}, {name_of(first.dtype)}, {threads_text(first.threads)}"
    rows = [((str(one.point),), *(_cell(one.measurement, name) for name in names)) for one in records]
    return Grid(title, ("features × tokens", *names), rows)


def _names(measurement: Measurement) -> Iterable[str]:
    return dict.fromkeys([measurement.ours, *measurement.samples, *measurement.deviations])


def _cell(measurement: Measurement, name: str) -> tuple[str, ...]:
    deviation, seconds = measurement.deviations.get(name), measurement.seconds(name)
    if deviation is not None and not deviation.ok:
        return f"WRONG: error {deviation.error:.0e}", "not measured"
    if seconds is None:
        return ("not measured",) if measurement.refused else ("",)
    ratio = measurement.ratio(name)
    if name == measurement.ours or ratio is None:
        return _times(seconds)
    return duration(seconds.median), f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"


def _times(seconds: Spread) -> tuple[str, str]:
    unit, size = _unit(seconds.median)
    return duration(seconds.median), f"({_digits(seconds.low / size)}–{_digits(seconds.high / size)} {unit})"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, size = _unit(seconds)
    return f"{_digits(seconds / size)} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def memory_grid(records: Sequence[MemoryRecord]) -> Grid:
    methods = list(dict.fromkeys(one.method for one in records))
    places = list(dict.fromkeys((one.point, one.threads, one.dtype) for one in records))
    values = {(one.method, one.point, one.threads, one.dtype): one.megabytes for one in records}
    rows = []
    for place in places:
        point, threads, dtype = place
        found = [values.get((method, *place)) for method in methods]
        cells = [("unknown" if value is None else f"{value:.1f} MB",) for value in found]
        rows.append(((f"{point}, {name_of(dtype)}, {threads_text(threads)}",), *cells))
    return Grid(f"{MEMORY_TITLE} beyond input, output and gradients", ("features × tokens", *methods), rows)


def verdict_grid(found: Sequence[Verdict]) -> Grid:
    rows = [[(text,) for text in _verdict_cells(verdict)] for verdict in found]
    headings = ("claim", "against", "threads", "wanted", "median over sizes", "worst size", "sizes", "reached")
    return Grid("what is wanted and what was reached", headings, rows)


def _verdict_cells(verdict: Verdict) -> list[str]:
    numbers = ["refused" if v is None else f"{v:.2f}{verdict.unit}" for v in (verdict.median, verdict.worst)]
    reached = {True: "yes", False: "no", None: "refused"}[verdict.reached]
    return [verdict.title, verdict.against, str(verdict.threads), verdict.wanted, *numbers, verdict.sizes, reached]
