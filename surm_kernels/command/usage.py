"""What the subcommands share in talking to their user: refusals, argument types and words."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path


class UsageError(Exception):
    """Something was asked for that cannot be done; the message is for the user, the exit code is 2."""


def positive_integer(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def add_threads(parser: argparse.ArgumentParser, each: str) -> None:
    """An argument of numbers of threads; `each` says what there is for every one of them."""
    parser.add_argument(
        "--threads",
        nargs="+",
        type=positive_integer,
        metavar="N",
        help=f"numbers of threads, {each} (default: what torch chooses for this machine)",
    )


def threads_text(threads: int) -> str:
    """So many threads, in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def select(option: str, asked: Iterable[str] | None, names: Iterable[str]) -> list[str]:
    """The names asked for, whole or in part, in their own order; all if none is asked for."""
    known = list(dict.fromkeys(names))
    if asked is None:
        return known
    matching: set[str] = set()
    for text in asked:
        found = {text} if text in known else {name for name in known if text in name}
        if not found:
            raise UsageError(f"{option}: nothing is called {text!r}; there are {', '.join(known)}")
        matching |= found
    return [name for name in known if name in matching]


def check_writable(option: str, file: Path | None) -> None:
    """Refuses a file that could not be written in the end, before the work is done."""
    if file is None:
        return
    if file.is_dir():
        raise UsageError(f"{option}: {file} is a folder, a file is wanted")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option}: there is no folder {file.parent}")
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise UsageError(f"{option}: {file} cannot be written")
