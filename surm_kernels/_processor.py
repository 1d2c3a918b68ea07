"""The processor this process runs on, by what the system tells of it."""

import platform
import re
from pathlib import Path

PROCESSORS = Path("/proc/cpuinfo")


def name() -> str:
    """The model name."""
    return _field("model name") or platform.processor() or platform.machine()


def flags() -> set[str]:
    """What it can do, as Linux names it; empty elsewhere."""
    return set(_field("flags").split())


def _field(title: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty where there is none."""
    text = PROCESSORS.read_text() if PROCESSORS.is_file() else ""
    found = re.search(rf"^{title}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""
