"""What a session of measuring has found, and what that says about the claims."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surm_kernels.command.bench.case import OURS, Case, Claim, MemoryCase, Point
from surm_kernels.command.bench.families.circulant import CLONE
from surm_kernels.command.bench.measure import Measurement, Spread, digits
from surm_kernels.command.usage import threads_text


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
        return {
            "case": self.case.name,
            **vars(self.point),
            "dtype": name_of(self.dtype),
            "threads": self.threads,
            "refused": measurement.refused,
            "contenders": {name: _contender(measurement, name) for name in _names(measurement)},
        }


def _contender(measurement: Measurement, name: str) -> dict[str, Any]:
    deviation = measurement.deviations.get(name)
    ratio = measurement.ratio(name)
    return {
        "error": _number(deviation.error) if deviation else None,
        "error_limit": _number(deviation.limit) if deviation else None,
        "seconds": measurement.samples.get(name, []),
        "ratio_to_ours": None
        if ratio is None or name == OURS
        else [digits(x) for x in (ratio.low, ratio.median, ratio.high)],
    }


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class MemoryRecord:
    """Megabytes of one forward and backward pass beyond input, output and gradients, None where it is not known."""

    case: MemoryCase
    method: str
    point: Point
    dtype: torch.dtype
    threads: int
    megabytes: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "method": self.method,
            **vars(self.point),
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
        for case in dict.fromkeys(one.case for one in records):
            of_case = [one for one in records if one.case == case and one.threads == threads]
            found += [_speed_verdict(claim, of_claim) for claim in case.claims if (of_claim := _about(claim, of_case))]
        for memory_case in dict.fromkeys(one.case for one in memory):
            verdict = _memory_verdict([one for one in memory if one.case == memory_case and one.threads == threads])
            found += [verdict] if verdict else []
    return found


def _about(claim: Claim, records: Iterable[Record]) -> list[Record]:
    """The records that say something about a claim."""
    return [
        one
        for one in records
        if one.dtype == claim.dtype
        and claim.about(one.point)
        and (one.measurement.refused or one.measurement.ratio(claim.rival))
    ]


def _speed_verdict(claim: Claim, records: Sequence[Record]) -> Verdict:
    case, threads = records[0].case, records[0].threads
    title = f"{case.title}, {name_of(claim.dtype)}" + (f", {claim.tokens} tokens" if claim.tokens else "")
    sizes = f"{len(records)} of {sum(map(claim.about, case.points))}"
    if any(one.measurement.refused for one in records):
        return Verdict(title, claim.rival, threads, _wanted(claim), "×", None, None, sizes, None)
    ratios = [ratio.median for one in records if (ratio := one.measurement.ratio(claim.rival))]
    median, minimum = statistics.median(ratios), min(ratios)
    reached = median >= claim.median and minimum >= claim.everywhere
    return Verdict(title, claim.rival, threads, _wanted(claim), "×", median, minimum, sizes, reached)


def _wanted(claim: Claim) -> str:
    aim = "aim: " if claim.rival == CLONE else ""
    if claim.median == claim.everywhere:
        return f"{aim}≥ {claim.median:.3g}×"
    return f"{aim}≥ {claim.median:.3g}×, nowhere under {claim.everywhere:.3g}×"


def _memory_verdict(records: Sequence[MemoryRecord]) -> Verdict | None:
    """The claim of a case beside its records at one number of threads; None where they do not say enough."""
    known = {(one.method, one.point): one.megabytes for one in records if one.megabytes is not None}
    at = [point for method, point in known if method == OURS]
    if not at:
        return None
    case, threads = records[0].case, records[0].threads
    claim, sizes = case.claim, f"{len(at)} of {len(case.points)}"
    if claim.rival is None:
        wanted, unit = f"≤ {claim.limit:.3g} MB a thread", " MB"
        found = [known[OURS, point] / threads for point in at]
    else:
        wanted, unit = f"≤ {claim.limit:.3g}× the rival's", "×"
        found = [known[OURS, point] / rival for point in at if (rival := known.get((claim.rival, point)))]
        if len(found) < len(at):
            return None
    median, most = statistics.median(found), max(found)
    return Verdict(case.title, claim.rival or "", threads, wanted, unit, median, most, sizes, most <= claim.limit)


@dataclass(frozen=True)
class Grid:
    """A table that can become a terminal's or a page's; a cell has one or two lines."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[tuple[str, ...]]]


def speed_grids(records: Iterable[Record]) -> list[Grid]:
    """A table for each case, type and number of threads: times, and the rivals' as multiples of ours."""
    groups: dict[tuple[int, str, torch.dtype], list[Record]] = {}
    for record in records:
        groups.setdefault((record.threads, record.case.name, record.dtype), []).append(record)
    return [_speed_grid(group) for group in groups.values()]


def _speed_grid(records: Sequence[Record]) -> Grid:
    first = records[0]
    names = list(dict.fromkeys(name for one in records for name in _names(one.measurement)))
    title = f"{first.case.title}, {name_of(first.dtype)}, {threads_text(first.threads)}"
    rows = [((str(one.point),), *(_cell(one.measurement, name) for name in names)) for one in records]
    sizes = "features × tokens" if first.point.tokens else "rows × columns"
    return Grid(title, (sizes, *names), rows)


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


def memory_grids(records: Iterable[MemoryRecord]) -> list[Grid]:
    """A table for each case: megabytes of every method."""
    groups: dict[str, list[MemoryRecord]] = {}
    for record in records:
        groups.setdefault(record.case.name, []).append(record)
    return [_memory_grid(group) for group in groups.values()]


def _memory_grid(records: Sequence[MemoryRecord]) -> Grid:
    methods = list(dict.fromkeys(one.method for one in records))
    places = list(dict.fromkeys((one.point, one.threads, one.dtype) for one in records))
    values = {(one.method, one.point, one.threads, one.dtype): one.megabytes for one in records}
    rows = []
    for place in places:
        point, threads, dtype = place
        found = [values.get((method, *place)) for method in methods]
        cells = [("unknown" if value is None else f"{value:.1f} MB",) for value in found]
        rows.append(((f"{point}, {name_of(dtype)}, {threads_text(threads)}",), *cells))
    case = records[0].case
    title = case.title if case.kept else f"{case.title}, beyond input, output and gradients"
    return Grid(title, ("features × tokens", *methods), rows)


def verdict_grid(found: Sequence[Verdict]) -> Grid:
    rows = [[(text,) for text in _verdict_cells(verdict)] for verdict in found]
    headings = ("claim", "against", "threads", "wanted", "median over sizes", "worst size", "sizes", "reached")
    return Grid("what is wanted and what was reached", headings, rows)


def _verdict_cells(verdict: Verdict) -> list[str]:
    numbers = ["refused" if v is None else f"{v:.2f}{verdict.unit}" for v in (verdict.median, verdict.worst)]
    reached = {True: "yes", False: "no", None: "refused"}[verdict.reached]
    return [verdict.title, verdict.against, str(verdict.threads), verdict.wanted, *numbers, verdict.sizes, reached]
