"""What a JSON file of the command line, benchmarks/gpu.sh or examples/ becomes in the report."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surm_kernels.command.bench.document import session_of
from surm_kernels.command.bench.records import Grid
from surm_kernels.command.bench.report import grids
from surm_kernels.command.report import checked, constants, measured, overview, trained
from surm_kernels.command.report.charts import Chart
from surm_kernels.command.usage import UsageError, threads_text
from surm_kernels.cost_constants import UNREADABLE, Table

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One file: charts, and what they are of."""

    title: str
    facts: Mapping[str, str]
    charts: Sequence[Chart]
    tables: Sequence[Grid] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def read(files: Sequence[Path]) -> list[Section]:
    """The sections of files, and one before them of what matters most; UsageError where a file is none of ours."""
    found: list[tuple[str, Document, Section]] = []
    for file in files:
        try:
            found += [(kind := _kind(one), one, MAKERS[kind](one)) for one in _documents(file)]
        except UNREADABLE as error:
            raise UsageError(f"{file} holds nothing to report: {type(error).__name__}: {error}") from None
    by_kind = {kind: document for kind, document, _ in reversed(found)}
    chart = overview.chart(by_kind.get("bench"), by_kind.get("demo"))
    first = [Section("What one gains", {}, [chart])] if chart else []
    return _named_apart([*first, *(section for _, _, section in found)])


def _documents(file: Path) -> list[Document]:
    """Those of a file: one, the tables of a list of constants, or what the lines of a session on a GPU make."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [_of_lines(text.splitlines())]
    loaded = json.loads(text, parse_constant=_refuse)
    return loaded if isinstance(loaded, list) and loaded else [loaded]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _of_lines(lines: Sequence[str]) -> Document:
    """The facts, the last word on each row, and the notes; a last line that was cut off is left out."""
    facts: dict[str, Any] = {}
    rows: dict[str, Document] = {}
    notes: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            ((kind, entry),) = json.loads(line, parse_constant=_refuse).items()
        except ValueError:
            if number < len(lines):
                raise
            break
        if kind == "facts":
            facts |= entry
        elif kind == "row":
            rows[str(entry["key"])] = {**entry["key"], **entry["result"]}
        elif kind == "note":
            notes.append(entry["text"])
    return {**facts, "rows": list(rows.values()), "notes": notes}


def _kind(document: Document) -> str:
    for kind, names in KINDS.items():
        if names <= set(document):
            return kind
    raise ValueError(f"it has {', '.join(document) or 'nothing'}")


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """The sections with names of charts that files can have, and a number behind those that another section has."""
    seen: Counter[str] = Counter()

    def named(chart: Chart) -> Chart:
        name = re.sub(r"[^\w.-]+", "-", chart.name)
        seen[name] += 1
        return replace(chart, name=name if seen[name] == 1 else f"{name}-{seen[name]}")

    return [replace(section, charts=list(map(named, section.charts))) for section in sections]


def bench_section(document: Document) -> Section:
    facts = {**document["facts"], "date": document["date"], "command": document["command"]}
    title = f"Speed and memory: {document['machine']['processor']}"
    tables = grids(session_of(document))
    return Section(title, facts, measured.charts(document, "bench"), tables, document["notes"])


def gpu_section(document: Document) -> Section:
    dry = "a dry run on the CPU, times mean nothing: " if document["dry_run"] else ""
    facts = {**document["device"], **document["versions"], "date": document["date"], "command": document["command"]}
    charts = measured.charts(document, "gpu")
    return Section(f"GPU: {dry}{document['device']['name']}", _texts(facts), charts, notes=document["notes"])


def demo_section(document: Document) -> Section:
    facts = _machine(document) | {"time": f"{document['seconds']:.0f} s", "command": "surm-kernels demo"}
    return Section(f"Demo: {document['job']}", facts, list(trained.demo_charts(document)))


def study_section(document: Document) -> Section:
    return _example_section("Study", document, trained.study_charts(document))


def comparison_section(document: Document) -> Section:
    return _example_section("Comparison", document, trained.COMPARISONS[document["example"]](document))


def _example_section(kind: str, document: Document, charts: Iterable[Chart]) -> Section:
    setting = dict(document["setting"])
    title = setting.pop("title", document["example"])
    return Section(f"{kind}: {title}", _machine(document) | _texts(setting), list(charts))


def check_section(document: Document) -> Section:
    facts = {name: document[name] for name in ("device", "served by", "date")} | _texts(document["versions"])
    failed = [
        f"{one['structure']}, {one['kernel']}, {one['dtype']} failed" for one in document["kernels"] if one["failed"]
    ]
    return Section(f"Parity on {document['device']}", facts, list(checked.charts(document)), notes=failed)


def tune_section(document: Document) -> Section:
    table = Table.from_json(document)
    place = table.place
    facts = {"kernels": place.instruction_set, "matrix products": place.products, "date": table.date}
    title = f"Constants of adapted layers: {place.processor}, {threads_text(place.threads)}"
    return Section(title, facts, list(constants.charts(table)))


#: What a document of a kind has, and what makes a section of it.
KINDS = {
    "bench": {"measurements", "memory"},
    "gpu": {"rows", "device"},
    "demo": {"runs", "job"},
    "study": {"runs", "summary"},
    "comparison": {"rows", "example"},
    "check": {"kernels", "device"},
    "tune": {"families", "columns"},
}
MAKERS: dict[str, Callable[[Document], Section]] = {
    "bench": bench_section,
    "gpu": gpu_section,
    "demo": demo_section,
    "study": study_section,
    "comparison": comparison_section,
    "check": check_section,
    "tune": tune_section,
}


def _machine(document: Document) -> dict[str, str]:
    machine, versions = document["machine"], document["versions"]
    return {
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _texts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}
