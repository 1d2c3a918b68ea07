"""`surm-kernels info`: what is installed and what serves here, the first thing to add to a report of a problem."""

import argparse
import os
from dataclasses import asdict

import torch

from surm_kernels import _cache, _environment, _extension, _processor, gpu_rule, triton
from surm_kernels.command import machine, provenance, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """info takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the facts, then the environment variables."""
    for facts in (_facts(), _environment_variables()):
        print(terminal.pairs(facts), end="\n\n")
    return 0


def _facts() -> list[tuple[str, str]]:
    versions = machine.versions("peft", "transformers")
    return [
        *versions.items(),
        ("processor", f"{machine.processor()}, {machine.cores()} cores"),
        ("threads", f"{torch.get_num_threads()} in an operation"),
        ("library", _library()),
        ("instruction set", _instruction_set()),
        ("matrix products", _processor.products()),
        ("CPU kernels", _cpu_kernels()),
        ("CUDA C++", _cuda()),
        ("Triton", _triton()),
        ("GPU", _gpu()),
        ("GPU rule", _gpu_rule()),
        *provenance.serving(torch.get_num_threads()),
        ("decompositions", _decompositions()),
    ]


def _library() -> str:
    if _extension.available:
        return str(_extension.library_path())
    return f"not loaded, the PyTorch reference serves: {_extension.reason}"


def _instruction_set() -> str:
    used = _extension.instruction_set or "none, the library is not loaded"
    return f"{used} (this machine has {', '.join(machine.instruction_sets())})"


def _cpu_kernels() -> str:
    """The operators that have a compiled kernel for the CPU."""
    operators = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("surm_kernels::"))
    compiled = [
        name.removeprefix("surm_kernels::")
        for name in operators
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    ]
    return ", ".join(compiled) or "none, the PyTorch reference serves"


def _cuda() -> str:
    """What was compiled for which architectures."""
    if reason := _extension.why_no_cuda():
        return f"none: {reason}"
    return f"for {_extension.cuda_architectures}: {', '.join(gpu_rule.CUDA_OPERATORS)}"


def _triton() -> str:
    """The version of Triton, which is left for a tensor on a GPU to import, and the operators it has a kernel for."""
    version = machine.versions("triton").get("triton")
    if version is None:
        return "none: Triton is not installed"
    return triton.why_too_old(version) or f"{version}: {', '.join(gpu_rule.TRITON_OPERATORS)}"


def _gpu() -> str:
    if names := machine.gpus():
        return ", ".join(names)
    if torch.version.cuda is None and torch.version.hip is None:
        return f"none: torch {torch.__version__} is built without GPU support"
    return "none: torch sees no GPU"


def _gpu_rule() -> str:
    """The constants by which CUDA tensors go to CUDA C++ or Triton."""
    name = next(iter(machine.gpus()), "")
    file = gpu_rule.user_file(name)
    source = str(file) if name and file.exists() else "defaults, not measured"
    constants = asdict(gpu_rule.crossovers_of(name) if name else gpu_rule.Crossovers())
    return f"{', '.join(f'{field} {value}' for field, value in constants.items())} ({source})"


def _decompositions() -> str:
    """Where those of SiVA are kept, and how much they take."""
    folder = _cache.decompositions()
    return f"{_cache.occupied(folder) / 2**30:.2f} GiB in {folder}"


def _environment_variables() -> list[tuple[str, str]]:
    """Every variable the package reads: its value, where that comes from, and what it means."""
    rows = []
    for variable in _environment.VARIABLES:
        value = os.environ.get(variable.name, "")
        default = variable.default or "empty"
        setting = f"{value} (default {default})" if value else f"{default} (default)"
        if value and variable.allowed is not None and value not in variable.allowed:
            setting += f", not one of {', '.join(variable.allowed)}"
        rows.append((variable.name, f"{setting}; {variable.meaning}"))
    return rows
