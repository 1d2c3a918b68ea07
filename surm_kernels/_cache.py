"""Files for what can be measured again: the folder they lie in, their names, and writing them in one step."""

import os
import re
import sys
from pathlib import Path

from surm_kernels import _environment


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


def write(text: str, file: Path) -> None:
    """Writes a file that at any time is the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
