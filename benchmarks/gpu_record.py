"""What a GPU session finds: a line of JSON for each thing, on the disk as soon as it is known.

Whoever is killed, a stage or the session, leaves all that was found before. `read` makes a document of the lines.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
Document = dict[str, Any]

BEGUN = "begun"
NO_RESULT = "its process ended"


def add(file: Path, kind: str, entry: Entry) -> None:
    """Appends a line; `kind` is "facts", "stage", "begun", "check", "row" or "note"."""
    line = json.dumps({kind: entry}, allow_nan=False) + "\n"
    with file.open("ab", buffering=0) as end:
        end.write(line.encode())  # at once, as several processes append
        os.fsync(end.fileno())


def read(file: Path) -> Document:
    """The facts with the last word on each stage, and every check, row and note.

    What was begun without a result has an error instead; a last line that was cut off is left out.
    """
    document: Document = {"stages": [], "checks": [], "rows": [], "notes": []}
    stages: dict[str, Entry] = {}
    results: dict[str, tuple[str, Entry]] = {}
    for kind, entry in _lines(file):
        if kind == "facts":
            document |= entry
        elif kind == "stage":
            stages[entry["name"]] = entry
        elif kind == "note":
            document["notes"].append(entry["text"])
        elif kind == BEGUN:
            results[_name(entry["key"])] = entry["kind"], {**entry["key"], "error": NO_RESULT}
        else:
            results[_name(entry["key"])] = kind, {**entry["key"], **entry["result"]}
    document["stages"] = list(stages.values())
    document["notes"] = sorted(set(document["notes"]))
    for kind, result in results.values():
        document[f"{kind}s"].append(result)
    return document


def begun(file: Path) -> set[str]:
    """The names of what was begun, with a result or without."""
    return {_name(entry["key"]) for kind, entry in _lines(file) if kind == BEGUN}


def is_among(key: Entry, names: set[str]) -> bool:
    """Whether what has this key is among those names."""
    return _name(key) in names


def _name(key: Entry) -> str:
    return json.dumps(key, sort_keys=True)


def _lines(file: Path) -> Iterator[tuple[str, Entry]]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            ((kind, entry),) = json.loads(line).items()
        except ValueError:
            if number == len(lines):
                return
            raise
        yield kind, entry
