"""The tables of a GPU session: the short one that ends it, and those of docs/gpu.md, from the record that it wrote."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_cases import COPY, MATMUL
from benchmarks.gpu_record import Document
from surm_kernels.command.bench.case import OURS, TORCH_FFT
from surm_kernels.command.bench.families.adapted import FROZEN, PEFT_LORA
from surm_kernels.command.bench.records import duration

Row = dict[str, Any]
USES = ("circulant-forward", "circulant-pullback", "circulant-training")
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
    """What is wanted of a case in bfloat16, at sizes `from_features` to `to_features`; at most or at least `wanted`."""

    text: str
    case: str
    value: Callable[[Row], float | None]
    wanted: float
    at_most: bool = False
    from_features: int = 0
    to_features: int = 1 << 31

    def about(self, row: Row) -> bool:
        fits = self.from_features <= row["in_features"] <= self.to_features
        return (row["case"], row["dtype"]) == (self.case, "bfloat16") and fits

    def reached(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted


def _over(above: str, below: str) -> Callable[[Row], float | None]:
    return lambda row: ratio(row, above, below)


AIMS = (
    Aim("circulant forward, n = 768 to 4096: time over a device copy", "circulant-forward", _over(OURS, COPY), 1.8,
        at_most=True, from_features=768, to_features=4096),
    Aim("circulant forward, n = 8192: time over a device copy", "circulant-forward", _over(OURS, COPY), 2.0,
        at_most=True, from_features=8192, to_features=8192),
    Aim("gradient of c, n = 768 to 8192: time over a copy that moves as much as g and x", "circulant-pullback",
        _over(OURS, COPY), 1.7, at_most=True, from_features=768, to_features=8192),
    Aim("adapted layer, training step: time over the frozen one", "adapted-step", _over(OURS, FROZEN), 1.1,
        at_most=True, from_features=4096),
    Aim("adapted layer, training step: PEFT LoRA's time over ours", "adapted-step", _over(PEFT_LORA, OURS), 1.0,
        from_features=4096),
    Aim("circulant forward + backward: torch.fft's time over ours", "circulant-training", _over(TORCH_FFT, OURS), 5.0),
    Aim("SiVA's gradient of s: share of the matrix product's rate", "siva-pullback", share_of_matmul, 0.7),
)  # fmt: skip


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
    """The last lines of a session: the stages, what failed, the circulant product at every size, the aims."""
    lines = [facts_line(document), ""]
    lines += [f"{stage['name']:<22}{stage['status']:<12}{stage['note']}" for stage in document["stages"]]
    lines += ["", *problems(document)]
    titles = ("forward", "gradient of c", "forward + backward")
    lines += ["", f"{'circulant':<20}" + "".join(f"{title:^30}" for title in titles)]
    lines.append(f"{'n':<10}{'type':<10}" + 3 * f"{'time':>10}{'÷ copy':>10}{'fft ÷':>10}")
    by_place = {(row["case"], row["in_features"], row["dtype"]): row for row in document["rows"]}
    for n, dtype in dict.fromkeys(place[1:] for place in sorted(by_place) if place[0] in USES):
        uses = [by_place.get((case, n, dtype), {}) for case in USES]
        cells = [cell for row in uses for cell in (_time(row), *_ratios(row))]
        lines.append(f"{n:<10}{dtype:<10}" + "".join(f"{cell:>10}" for cell in cells))
    lines += ["", *(_step_line(row) for row in document["rows"] if row["case"] == "adapted-step")]
    return "\n".join([*lines, "", *aim_lines(document["rows"])])


def problems(document: Document) -> list[str]:
    """What was wrong, inexact or left out, a line each; the calls of the first look are counted."""
    checks, rows = document["checks"], document["rows"]
    right = sum(not check.get("error") for check in checks)
    lines = [f"first look: {right} of {len(checks)} calls right"]
    lines += [f"WRONG {check['check']}: {check['error']}" for check in checks if check.get("error")]
    for row in rows:
        if row.get("error") or row.get("refused"):
            lines.append(f"NOT MEASURED {row_name(row)}: {row.get('error') or 'our result is wrong'}")
        elif (share := share_of_limit(row)) > 1:
            lines.append(f"INEXACT {row_name(row)}: our error is {share:.2f} times its limit")
    left_out = document.get("wanted_rows", len(rows)) - len(rows)
    if left_out > 0:
        lines.append(f"{left_out} of {document['wanted_rows']} rows were left out: no time")
    return [line[:150] for line in lines]


def share_of_limit(row: Row) -> float:
    """Our error as a multiple of what is allowed; 0 where it is not known."""
    ours = row.get("contenders", {}).get(OURS, {})
    error, limit = ours.get("error"), ours.get("error_limit")
    return error / limit if error and limit else 0.0


def _step_line(row: Row) -> str:
    """A training step of an adapted layer, every contender over the frozen layer."""
    shares = {name: ratio(row, name, FROZEN) for name in row.get("contenders", {}) if name != COPY}
    cells = (f"{name} {value:.2f}" for name, value in shares.items() if value is not None and name != FROZEN)
    return f"{row_name(row)}, over frozen ({_time(row, FROZEN)}): {', '.join(cells)}"


def _ratios(row: Row) -> tuple[str, str]:
    return _number(ratio(row, OURS, COPY)), _number(ratio(row, TORCH_FFT, OURS))


def _time(row: Row, name: str = OURS) -> str:
    seconds = median(row, name)
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
    lines += [f"- note: {note}" for note in document["notes"]]
    lines += ["", "| stage | result | |", "|---|---|---|"]
    lines += [f"| {one['name']} | {one['status']} | {one['note']} |" for one in document["stages"]]
    lines += ["", *(f"- {line}" for line in problems(document))]
    lines += ["", *(f"- {line}" for line in aim_lines(document["rows"])), ""]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in document["rows"]:
        groups.setdefault((_title(row), row["dtype"]), []).append(row)
    return "\n".join([*lines, *(line for group in groups.values() for line in table(group))])


def table(rows: Sequence[Row]) -> Iterable[str]:
    """One case in one type: our time, over a copy, the rivals' over ours, and what Python takes to issue a call."""
    names = dict.fromkeys(name for row in rows for name in row.get("contenders", {}))
    rivals = [name for name in names if name not in (OURS, COPY, MATMUL)]
    headings = ["features × tokens", "time", "over a copy", *(f"{name} over ours" for name in rivals)]
    has_rate = MATMUL in names
    headings += (["share of matmul's rate"] if has_rate else []) + ["issued in"]
    title = _title(rows[0])
    yield f"### {title[0].upper()}{title[1:]}, {rows[0]['dtype']}"
    yield ""
    yield "| " + " | ".join(headings) + " |"
    yield "|---|" + "---:|" * (len(headings) - 1)
    for row in rows:
        yield "| " + " | ".join(_cells(row, rivals, has_rate)) + " |"
    yield ""


def _title(row: Row) -> str:
    """That of its case, or its name where it failed."""
    return str(row.get("title") or row["case"])


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
