"""The processor this process runs on, by what the system tells of it."""

import platform
import re
from pathlib import Path

PROCESSORS = Path("/proc/cpuinfo")

#: What matrix products of the platform's libraries run on, the fastest first, and the flags that say so. Their time in
#: 16 bits falls by a factor of several with AMX and by about two with AVX512_BF16; in 32 bits only the width counts.
PRODUCTS = {
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512": ("avx512f",),
    "avx2": ("avx2", "fma"),
}


def name() -> str:
    """The model name."""
    return _field("model name") or platform.processor() or platform.machine()


def flags() -> set[str]:
    """What it can do, as Linux names it; empty elsewhere."""
    return set(_field("flags").split())


def products() -> str:
    """What matrix products run on here: the first of PRODUCTS that the processor has, else "baseline"."""
    found = flags()
    return next((name for name, wanted in PRODUCTS.items() if found.issuperset(wanted)), "baseline")


def _field(title: str) -> str:
    """The first value of a field of /proc/cpuinfo, empty where there is none."""
    text = PROCESSORS.read_text() if PROCESSORS.is_file() else ""
    found = re.search(rf"^{title}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""
