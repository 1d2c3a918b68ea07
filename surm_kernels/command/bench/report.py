"""The results of sessions as terminal tables and as a page of the documentation with a section for each machine."""

import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from surm_kernels import _processor
from surm_kernels.command import machine, terminal
from surm_kernels.command.bench.records import (
    Grid,
    MemoryRecord,
    Record,
    memory_grids,
    speed_grids,
    verdict_grid,
    verdicts,
)

TITLE = "# Benchmarks\n"
METHOD = """\
Each size is measured in one run: after a parity check against float64, every repeat calls each contender once, in
rotating order. A time is the median over the repeats, with quartiles in brackets; a ratio is the rival's time over
ours, taken within each repeat, median and quartiles again. Both sides use the same threads, allocate their results
anew, and in forward + backward give the gradients of the input and of every parameter. torch.fft and PEFT C3A do not
know bfloat16 and take it through float32. LoRA and dense weights train other parameters, so their gradients are not
compared, nor are those of PEFT's methods beside our updates; a circulant product beside a Toeplitz product is another
map of the same size. Index tables of a rival are ready before the clock runs. PEFT C3A's input gradient is wrong for
blocks larger than 2, so only its output and kernel gradient are compared. A training step of an adapted layer ends,
for every contender, with a small update of what it trains; the frozen layer alone trains nothing, and its ratio is
what an update may cost. Encoders are MiniLM and two layers of BERT-base in shape, with random weights. Memory is what
one pass adds to the peak of a fresh process, beyond its input, output and gradients; what is kept for the backward are
the tensors that the forward saves beyond its input, parameters and weights."""


def facts() -> dict[str, str]:
    """The machine and the software."""
    versions = machine.versions("peft", "transformers")
    return {
        "processor": f"{machine.processor()}, {machine.cores()} cores",
        "kernels": machine.kernels(),
        "matrix products": _processor.products(),
        "system": platform.platform(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


@dataclass
class Session:
    """Everything that was measured, and where."""

    command: str
    quick: bool
    records: list[Record] = field(default_factory=list)
    memory: list[MemoryRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=facts)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).date().isoformat())

    @property
    def refused(self) -> bool:
        """Whether one of our results was wrong."""
        return any(record.measurement.refused for record in self.records)

    def note(self, text: str) -> None:
        """Keeps a remark for the report, once."""
        if text not in self.notes:
            self.notes.append(text)


def to_text(grid: Grid) -> str:
    """A table for the terminal."""
    rows = [["\n".join(cell) for cell in row] for row in grid.rows]
    return f"{grid.title}\n\n{terminal.table(grid.headings, rows)}"


def to_markdown(grid: Grid, level: int = 2) -> str:
    """A section of a level with a table."""
    lines = [f"{'#' * level} {grid.title[0].upper()}{grid.title[1:]}", "", _line(grid.headings)]
    lines.append("|---|" + "---:|" * (len(grid.headings) - 1))
    lines += [_line(tuple(" · ".join(cell) for cell in row)) for row in grid.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def grids(session: Session) -> list[Grid]:
    """Every table of a session, the claims first."""
    found = verdicts(session.records, session.memory)
    tables = [verdict_grid(found)] if found else []
    return tables + speed_grids(session.records) + memory_grids(session.memory)


def heading(session: Session) -> str:
    """The title of a machine's section; a later session on a machine takes the place of an earlier one."""
    facts = session.facts
    return f"{facts['processor']}, {facts['kernels'].rpartition(', ')[2]}, matrix products {facts['matrix products']}"


def section(session: Session) -> str:
    """The whole session below its heading."""
    lines = [f"- {name}: {value}" for name, value in session.facts.items()]
    lines += [f"- date: {session.date}", f"- command: `{session.command}`"]
    lines += [f"- note: {note}" for note in session.notes]
    return "\n".join([*lines, ""]) + "\n" + "\n".join(to_markdown(grid, level=3) for grid in grids(session))


def page(sessions: Sequence[Session], before: str = "") -> str:
    """The page with a section for each machine: those of these sessions, and of a page from before the others."""
    sections = _sections(before) | {heading(session): section(session) for session in sessions}
    return "\n".join([TITLE, METHOD, "", *(f"## {title}\n\n{text}" for title, text in sections.items())])


def _sections(page: str) -> dict[str, str]:
    """The sections of a page of ours by title; none of any other text."""
    if not page.startswith(TITLE):
        return {}
    _, *sections = page.split("\n## ")
    return {title: text.strip("\n") + "\n" for title, _, text in (one.partition("\n") for one in sections)}
