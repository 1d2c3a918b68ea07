"""Files for what can be made again: where they lie, their names, writing them in one step, and how much stays."""

import math
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surm_kernels import _environment

#: Seconds without use after which a file may make room for another.
LEAST_AGE = 24 * 60 * 60


def file(words: str) -> Path:
    """The file of the cache for what these words say."""
    return folder() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)}.json"


def folder() -> Path:
    """Where this package may leave what can be made again: the user's choice, else the system's custom."""
    home = Path(os.path.expanduser("~"))
    if (chosen := _environment.read("SURM_KERNELS_CACHE")) != "auto":
        return Path(chosen)
    if sys.platform == "darwin":
        parent = home / "Library" / "Caches"
    elif sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return parent / "surm_kernels"


def decompositions() -> Path:
    """The folder of SiVA's decompositions, the one whose size is bounded."""
    return folder() / "decompositions"


def bound() -> int:
    """How many bytes the decompositions may take.

    Raises:
        ValueError: the environment variable that says so is no number, or below 0.
    """
    value = _environment.read("SURM_KERNELS_CACHE_GIB")
    try:
        gib = float(value)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise ValueError(f"environment variable SURM_KERNELS_CACHE_GIB must be a number from 0 on, got {value!r}")
    return int(gib * 2**30)


def occupied(folder: Path) -> int:
    """How many bytes the files of a folder take."""
    return sum(size for _, size, _ in _files(folder))


def make_room(folder: Path, needed: int) -> bool:
    """Whether so many bytes more are within the bound, after deleting old files where that makes them be.

    The least recently used go first, and none that was used within `LEAST_AGE`: where a model needs more than the
    bound, each of its decompositions would otherwise drive out the one that its next start asks for first.
    """
    files = _files(folder)
    excess = sum(size for _, size, _ in files) + needed - bound()
    old = [file for file in files if file[0] < time.time() - LEAST_AGE]
    if excess > sum(size for _, size, _ in old):
        return False
    for _, size, file in sorted(old):
        if excess <= 0:
            break
        file.unlink(missing_ok=True)
        excess -= size
    return True


def write(text: str, file: Path) -> None:
    """Writes a file that at any time is the old one or the new one."""
    with replacing(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Where to write what is to take the place of a file, which at any time is the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """When each file of a folder was last used, its size and its path; other processes may delete some meanwhile."""
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    return found
