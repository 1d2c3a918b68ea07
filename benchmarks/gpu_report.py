"""The tables of a GPU session: the short one that ends it, and those of docs/gpu.md, from the JSON that it wrote."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_cases import COPY, MATMUL
from surm_kernels.command.bench.case import OURS, TORCH_FFT
from surm_kernels.command.bench.records import duration

Row = dict[str, Any]
Document = dict[str, Any]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def median(row: Row, name: str, what: str = "seconds") -> float | None:
    """The median time of a contender, None where it has none."""
    samples = row.get("contenders", {}).get(name, {}).get(what)
    return statistics.median(samples) if samples else None


def ratio(row: Row, above: str, below: str) -> float | None:
    """The time of one contender over another's in the same turn, the median."""
    contenders = row.get("contenders", {})
    pairs = list(zip(*(contenders.get(name, {}).get("seconds", []) for name in (above, below)), strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def share_of_matmul(row: Row, name: str = OURS) -> float | None:
    """Operations a second over those of the large matrix product."""
    ratio_of_times, contenders = ratio(row, MATMUL, name), row.get("contenders", {})
    counts = [contenders.get(one, {}).get("operations") for one in (name, MATMUL)]
    return ratio_of_times * counts[0] / counts[1] if ratio_of_times and all(counts) else None


@dataclass(frozen=True)
class Aim:
    """What is wanted of a case in one type, at sizes up to `most_features`; `value` is to be at most or at least it."""

    text: str
    case: str
    dtype: str
    value: Callable[[Row], float | None]
    wanted: float
    at_most: bool = False
    most_features: int | None = None

    def about(self, row: Row) -> bool:
        small = self.most_features is None or row["in_features"] <= self.most_features
        return (row["case"], row["dtype"]) == (self.case, self.dtype) and small

    def reached(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted


AIMS = (
    Aim(
        "circulant forward, bfloat16, n ≤ 8192: time over a device copy",
        "circulant-forward",
        "bfloat16",
        lambda row: ratio(row, OURS, COPY),
        2.0,
        at_most=True,
        most_features=8192,
    ),
    Aim(
        "circulant forward + backward, bfloat16: torch.fft's time over ours",
        "circulant-training",
        "bfloat16",
        lambda row: ratio(row, TORCH_FFT, OURS),
        5.0,
    ),
    Aim(
        "SiVA's gradient of s, bfloat16: share of the matrix product's rate",
        "siva-pullback",
        "bfloat16",
        share_of_matmul,
        0.7,
    ),
)


def aim_lines(rows: Sequence[Row]) -> list[str]:
    """An aim a line, with the median and the worst of what was found."""
    lines = []
    for aim in AIMS:
        about = [row for row in rows if aim.about(row)]
        values = [value for row in about if (value := aim.value(row)) is not None]
        wanted = f"{'≤' if aim.at_most else '≥'} {aim.wanted:g}"
        if not values:
            lines.append(f"{aim.text}: wanted {wanted}, not measured")
            continue
        worst = max(values) if aim.at_most else min(values)
        found = f"median {statistics.median(values):.2f}, worst {worst:.2f}"
        reached = f"reached at {sum(map(aim.reached, values))} of {len(about)} sizes"
        lines.append(f"{aim.text}: wanted {wanted}, {found}, {reached}")
    return lines


def short_table(document: Document) -> str:
    """The last lines of a session: the stages, the circulant product at every size, the aims."""
    lines = [facts_line(document), ""]
    lines += [f"{stage['name']:<22}{stage['status']:<12}{stage['note']}" for stage in document.get("stages", [])]
    rows = document["rows"]
    wrong = [row for row in rows if row.get("refused") or row.get("error")]
    lines += [f"NOT MEASURED {row_name(row)}: {row.get('error') or 'our result is wrong'}"[:150] for row in wrong]
    lines += ["", f"{'circulant':<10}{'':<10}{'forward':^30}{'forward + backward':^30}"]
    lines.append(f"{'n':<10}{'type':<10}" + 2 * f"{'time':>10}{'÷ copy':>10}{'fft ÷':>10}")
    by_place = {(row["case"], row["in_features"], row["dtype"]): row for row in rows}
    for n, dtype in dict.fromkeys(place[1:] for place in by_place if place[0].startswith("circulant-")):
        pair = [by_place.get((f"circulant-{use}", n, dtype), {}) for use in ("forward", "training")]
        if any(pair):
            cells = [cell for row in pair for cell in (_time(row), *_ratios(row))]
            lines.append(f"{n:<10}{dtype:<10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join([*lines, "", *aim_lines(rows)])


def _ratios(row: Row) -> tuple[str, str]:
    return _number(ratio(row, OURS, COPY)), _number(ratio(row, TORCH_FFT, OURS))


def _time(row: Row) -> str:
    seconds = median(row, OURS)
    return "" if seconds is None else duration(seconds)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def row_name(row: Row) -> str:
    sizes = str(row["in_features"]) if row["in_features"] == row["out_features"] else _rectangle(row)
    return f"{row['case']}, {row['dtype']}, {sizes} × {row['tokens']}"


def _rectangle(row: Row) -> str:
    return f"{row['in_features']} → {row['out_features']}"


def facts_line(document: Document) -> str:
    """Device, versions and date."""
    device = document.get("device", {})
    versions = ", ".join(f"{name} {version}" for name, version in document.get("versions", {}).items())
    dry = "DRY RUN on the CPU at tiny sizes, times mean nothing: " if document.get("dry_run") else ""
    return f"{dry}{device.get('name', 'unknown device')}, {versions}, {document.get('date', '')}"


def page(document: Document) -> str:
    """Everything measured, as the part of docs/gpu.md between its two marks."""
    lines = [facts_line(document), ""]
    lines += [f"- {name}: {value}" for name, value in document.get("device", {}).items()]
    lines += [f"- date: {document.get('date', '')}", f"- command: `{document.get('command', '')}`"]
    lines += [f"- note: {note}" for note in document.get("notes", [])]
    lines += ["", "| stage | result | |", "|---|---|---|"]
    lines += [f"| {one['name']} | {one['status']} | {one['note']} |" for one in document.get("stages", [])]
    lines += ["", *(f"- {line}" for line in aim_lines(document["rows"])), ""]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in document["rows"]:
        groups.setdefault((row["title"], row["dtype"]), []).append(row)
    return "\n".join([*lines, *(line for group in groups.values() for line in table(group))])


def table(rows: Sequence[Row]) -> Iterable[str]:
    """One case in one type: our time, over a copy, the rivals' over ours, and what Python takes to issue a call."""
    names = dict.fromkeys(name for row in rows for name in row.get("contenders", {}))
    rivals = [name for name in names if name not in (OURS, COPY, MATMUL)]
    headings = ["features × tokens", "time", "over a copy", *(f"{name} over ours" for name in rivals)]
    has_rate = MATMUL in names
    headings += (["share of matmul's rate"] if has_rate else []) + ["issued in"]
    yield f"### {rows[0]['title'][0].upper()}{rows[0]['title'][1:]}, {rows[0]['dtype']}"
    yield ""
    yield "| " + " | ".join(headings) + " |"
    yield "|---|" + "---:|" * (len(headings) - 1)
    for row in rows:
        yield "| " + " | ".join(_cells(row, rivals, has_rate)) + " |"
    yield ""


def _cells(row: Row, rivals: Sequence[str], has_rate: bool) -> list[str]:
    place = row_name(row).split(", ")[-1]
    if row.get("refused") or row.get("error"):
        return [place, str(row.get("error") or "result wrong"), *([""] * (len(rivals) + has_rate + 2))]
    issue = median(row, OURS, "issue_seconds")
    cells = [place, _time(row), _number(ratio(row, OURS, COPY))]
    cells += [_number(ratio(row, rival, OURS)) for rival in rivals]
    cells += [_number(share_of_matmul(row))] if has_rate else []
    return [*cells, "" if issue is None else duration(issue)]


def put_into(text: str, part: str) -> str:
    """A page with the part between its marks replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page needs the lines {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{part}\n{END}{rest.split(END)[1]}"
