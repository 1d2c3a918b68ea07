"""The machine and the software a result belongs to."""

import importlib.metadata
import os
import platform

import torch

from surm_kernels import __version__, _extension, _processor

#: The processor flags each instruction set of the CPU kernels asks for, as in csrc/cpu/instruction_set.cpp.
INSTRUCTION_SETS = {
    "baseline": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
}


def processor() -> str:
    """The model name of the processor."""
    return _processor.name()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_sets() -> tuple[str, ...]:
    """Those of the kernels' instruction sets that this machine has, the narrowest first."""
    flags = _processor.flags()
    return tuple(name for name, wanted in INSTRUCTION_SETS.items() if flags.issuperset(wanted))


def kernels() -> str:
    """What computes the products here."""
    if _extension.available:
        return f"compiled library, {_extension.instruction_set}"
    return f"PyTorch reference ({_extension.reason})"


def gpus() -> tuple[str, ...]:
    """Names of the GPUs torch can use."""
    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, Python, torch and of those other packages that are installed."""
    found = {"surm_kernels": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load() -> float:
    """How many programs want a core at the moment: the mean over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
