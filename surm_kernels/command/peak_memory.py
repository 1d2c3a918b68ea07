"""Peak memory of the training, by what the operating system counts for this process.

On Linux the peak resident size is set back just before the training (`/proc/self/clear_refs`) and read after it, so
what loading the libraries and the model took is not in it: the growth is the activations, gradients, optimizer state
and buffers of the training. Elsewhere only the peak of the whole process is known, loading included, not the growth.
A process of its own for each method keeps one method's memory out of the next one's.
"""

from __future__ import annotations

import gc
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PROCESS_STATUS = Path("/proc/self/status")
CLEAR_REFERENCES = Path("/proc/self/clear_refs")


def _status_megabytes(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", PROCESS_STATUS.read_text())
    if match is None:
        raise OSError(f"{PROCESS_STATUS} has no {field}")
    return int(match.group(1)) / 1024


def _whole_process_peak() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


@dataclass(frozen=True)
class PeakMemory:
    """Resident megabytes at the start, None where the system cannot set the peak back to them."""

    before: float | None

    @classmethod
    def start(cls) -> PeakMemory:
        """Notes the present size and sets the peak back to it."""
        gc.collect()
        try:
            CLEAR_REFERENCES.write_text("5")
            return cls(_status_megabytes("VmRSS"))
        except OSError:
            return cls(None)

    def peak(self) -> float | None:
        """Peak resident megabytes since the start, or of the whole process where that is all there is."""
        return _whole_process_peak() if self.before is None else _status_megabytes("VmHWM")

    def growth(self) -> float | None:
        """Megabytes by which the peak exceeds the size at the start; None where it is not known."""
        peak = self.peak()
        return None if self.before is None or peak is None else max(0.0, peak - self.before)
