"""Memory of one forward and backward pass beyond input, output and gradients, in a fresh process.

What lasts counts as well: tables and scratch memory that a first call sets up are part of the growth, since only a
call of another size went before. Large allocations go back to the system at once (see ENVIRONMENT), so that memory
freed earlier cannot hide a later use. `python -m surm_kernels.command.bench.memory METHOD FEATURES TOKENS DTYPE
THREADS` prints megabytes.
"""

import os
import subprocess
import sys

import torch
from torch import Tensor

from surm_kernels.command.bench.cases import MEMORY_METHODS, Point
from surm_kernels.command.bench.methods import Method
from surm_kernels.command.peak_memory import PeakMemory
from surm_kernels.command.usage import UsageError

#: glibc's malloc, held to mapping every allocation from this size on and unmapping it when it is freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEGABYTE = 2**20
TINY = 4


def extra_megabytes(method: str, point: Point, dtype: torch.dtype, threads: int) -> float | None:
    """The growth of a process of its own; None where the system does not tell."""
    name = str(dtype).removeprefix("torch.")
    words = [method, str(point.features), str(point.tokens), name, str(threads)]
    command = [sys.executable, "-m", __name__, *words]
    outcome = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise UsageError(f"memory: the measuring process failed: {outcome.stderr.strip()}")
    answer = outcome.stdout.split()[-1]
    return None if answer == "unknown" else float(answer)


def _measure_here(method: Method, point: Point, dtype: torch.dtype) -> float | None:
    _pass(method, *_inputs(Point(TINY, TINY), dtype))
    x, c, g = _inputs(point, dtype)
    x.mul(2)  # starts the threads
    memory = PeakMemory.start()
    results = _pass(method, x, c, g)
    growth = memory.growth()
    if growth is None:
        return None
    kept = sum(t.numel() * t.element_size() for t in results) / MEGABYTE
    return max(0.0, growth - kept)


def _inputs(point: Point, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, g = (torch.randn(point.tokens, point.features).to(dtype) for _ in range(2))
    return x, (torch.randn(point.features) / point.features**0.5).to(dtype), g


def _pass(method: Method, x: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    leaves = x.requires_grad_(), *(p.requires_grad_() for p in method.parameters(c))
    y = method.product(x.dtype)(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, g))


def main(words: list[str]) -> None:
    """Measures what the words say and prints it."""
    name, features, tokens, dtype, threads = words
    torch.set_num_threads(int(threads))
    (method,) = (method for method in MEMORY_METHODS if method.name == name)
    megabytes = _measure_here(method, Point(int(features), int(tokens)), getattr(torch, dtype))
    print("unknown" if megabytes is None else megabytes)


if __name__ == "__main__":
    main(sys.argv[1:])
