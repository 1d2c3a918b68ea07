"""Memory of one forward and backward pass beyond input, output and gradients, in a fresh process.

What lasts counts as well: tables and scratch memory that a first call sets up are part of the growth, since only a
call of another size went before. Not so the working memory of the BLAS library, which plain products set up before.
Large allocations go back to the system at once (see ENVIRONMENT), so that memory freed earlier cannot hide a later use.
A case may ask instead for what the forward pass keeps for the backward, beyond the tensors that were there before.
`python -m surm_kernels.command.bench.memory CASE METHOD IN_FEATURES OUT_FEATURES TOKENS DTYPE THREADS` prints
megabytes.
"""

import gc
import os
import subprocess
import sys

import torch
from torch import Tensor

from surm_kernels.command.bench.case import Case, MemoryCase, Method, Parameters, Point
from surm_kernels.command.bench.cases import MEMORY_CASES
from surm_kernels.command.bench.workload import inputs, leaves, method_call
from surm_kernels.command.peak_memory import PeakMemory
from surm_kernels.command.usage import UsageError

#: glibc's malloc, held to mapping every allocation from this size on and unmapping it when it is freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEGABYTE = 2**20
TINY = Point(4, 4, 4)
BLAS = 768  # features of a product that sets up as much working memory as any


def extra_megabytes(case: MemoryCase, method: str, point: Point, dtype: torch.dtype, threads: int) -> float | None:
    """The growth of a process of its own; None where the system does not tell."""
    sizes = map(str, (point.in_features, point.out_features, point.tokens))
    words = [case.name, method, *sizes, str(dtype).removeprefix("torch."), str(threads)]
    command = [sys.executable, "-m", __name__, *words]
    outcome = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        raise UsageError(f"memory: the measuring process failed: {outcome.stderr.strip()}")
    answer = outcome.stdout.split()[-1]
    return None if answer == "unknown" else float(answer)


def _measure_here(case: Case, method: Method, point: Point, dtype: torch.dtype, kept: bool) -> float | None:
    method_call(method, TINY, *inputs(case, TINY, dtype))()
    x, parameters, g = inputs(case, point, dtype)
    if kept:
        return _kept(method, point, x, parameters) / MEGABYTE
    call = method_call(method, point, x, parameters, g, case.updates)
    x.mul(2)  # starts the threads
    for _ in range(2):  # BLAS keeps working memory of its own, which is nobody's merit
        x[:, :BLAS].mT @ x[:, :BLAS] @ x[:, :BLAS].mT
    memory = PeakMemory.start()
    results = call()
    growth = memory.growth()
    if growth is None:
        return None
    results_size = sum(t.numel() * t.element_size() for t in results) / MEGABYTE
    return max(0.0, growth - results_size)


def _kept(method: Method, point: Point, x: Tensor, parameters: Parameters) -> int:
    """Bytes of the tensors that the forward saves for the backward and that were not there before, as weights were."""
    product = method.product(point, x.dtype)
    given = leaves(x, method.parameters(point, parameters))
    # Storages by their own address: fake tensors, which compilation may have left, have no data.
    before = {one.untyped_storage()._cdata for one in gc.get_objects() if issubclass(type(one), Tensor)}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in before:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        product(*given)
    return sum(saved.values())


def main(words: list[str]) -> None:
    """Measures what the words say and prints it."""
    case_name, method_name, in_features, out_features, tokens, dtype, threads = words
    torch.set_num_threads(int(threads))
    (memory_case,) = (one for one in MEMORY_CASES if one.name == case_name)
    (method,) = (one for one in memory_case.methods if one.name == method_name)
    point = Point(int(in_features), int(out_features), int(tokens))
    megabytes = _measure_here(memory_case.case, method, point, getattr(torch, dtype), memory_case.kept)
    print("unknown" if megabytes is None else megabytes)


if __name__ == "__main__":
    main(sys.argv[1:])
