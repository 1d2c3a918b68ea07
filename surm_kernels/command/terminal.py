"""What the commands print: tables of plain text, and a line that says how far the work is."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from types import TracebackType

from tqdm import tqdm

GAP = "  "  # between columns
LEAST = 24  # characters that a folded column keeps


def width() -> int:
    """Characters of a line: those of the terminal, more where the output is none."""
    return shutil.get_terminal_size((150, 24)).columns


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and their values in two columns, long values folded."""
    indent = max(len(name) for name, _ in rows) + len(GAP)
    room = max(LEAST, width() - indent)
    lines = []
    for name, value in rows:
        first, *rest = _folded(value, room).split("\n")
        lines += [name.ljust(indent) + first, *(" " * indent + line for line in rest)]
    return "\n".join(lines)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is on the left, folded where there is no room, and all others on the right.

    Headings and cells may have several lines.
    """
    others = [max(map(len, "\n".join(column).split("\n"))) for column in zip(headings, *rows, strict=True)][1:]
    room = max(LEAST, width() - sum(len(GAP) + size for size in others))
    cells = [(_folded(first, room), *rest) for first, *rest in (headings, *rows)]
    sizes = [max(len(line) for cell in cells for line in cell[0].split("\n")), *others]
    head, *body = (_row(row, sizes) for row in cells)
    return "\n".join((head, GAP.join("─" * size for size in sizes), *body))


def _row(cells: Sequence[str], sizes: Sequence[int]) -> str:
    lines = zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
    return "\n".join(
        GAP.join((first.ljust(sizes[0]), *map(str.rjust, rest, sizes[1:]))).rstrip() for first, *rest in lines
    )


def _folded(text: str, room: int) -> str:
    fill = textwrap.TextWrapper(room, break_long_words=False, break_on_hyphens=False).fill
    return "\n".join(map(fill, text.split("\n")))


class Progress:
    """A context in which a terminal shows what is being done, how far it is and how long it takes, by tqdm.

    Without a terminal, `begin` prints a line of its own.
    """

    def __init__(self, total: int, title: str = "") -> None:
        self._live = sys.stdout.isatty()
        self._bar = tqdm(total=total, desc=title, file=sys.stdout, leave=False, disable=not self._live)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self, title: str) -> None:
        """Something else is being done from now on."""
        self._bar.set_description_str(title)
        if not self._live:
            print(title, flush=True)

    def advance(self) -> None:
        """One more of the total is done."""
        self._bar.update()

    def print(self, text: str) -> None:
        """Prints lines that stay, above the one that moves."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()
