"""`surm-kernels tune --device cuda`: up to which size Triton is faster on this GPU, the crossovers of gpu_rule.py."""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from surm_kernels import gpu_rule
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.command.usage import UsageError
from surm_kernels.gpu_rule import ALWAYS_CUDA, ALWAYS_TRITON, Crossovers
from surm_kernels.ops import _cuda
from surm_kernels.ops.grid import grid, grid_backward, grid_pullback

SIZES = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
VALUES = 1 << 25  # of the tokens, more than the cache of a GPU holds
GRID = 4  # blocks across and down
REPEATS, WARM_UP = 11, 3

Call = Callable[[], object]


def run(arguments: argparse.Namespace) -> int:
    """Measures and keeps the crossovers of a GPU, or shows or removes them."""
    if arguments.threads or arguments.output:
        raise UsageError("--device cuda: --threads and --output are for the processor's constants")
    device = _device(arguments.device)
    gpu = torch.cuda.get_device_name(device)
    if arguments.reset:
        gpu_rule.user_file(gpu).unlink(missing_ok=True)
        _cuda.forget()
    elif not arguments.show:
        if missing := [why for why in _cuda.machine(device.index)[:2] if why]:
            raise UsageError(f"there is nothing to choose from: {'; '.join(missing)}")
        file = gpu_rule.write(measure(device, lambda title: print(f"measuring {title}")), gpu)
        _cuda.forget()
        print(f"wrote {file}")
    constants = ", ".join(f"{name} {value}" for name, value in asdict(gpu_rule.crossovers_of(gpu)).items())
    print(f"largest blocks that go to Triton on {gpu}: {constants}")
    return 0


def _device(name: str) -> torch.device:
    if not torch.cuda.is_available():
        raise UsageError(f"--device: {name!r} cannot be used here: torch sees no GPU")
    return torch.device("cuda", torch.device(name).index or 0)


def measure(device: torch.device, advance: Callable[[str], object]) -> Crossovers:
    """The crossovers of a device; `advance` hears what is measured next."""
    advance("bfloat16, product and gradients")
    sixteen_bit = _crossover(lambda size: _step(size, torch.bfloat16, device))
    advance("bfloat16, pullbacks of grids")
    grid = _crossover(lambda size: _grid_pullback(size, torch.bfloat16, device))
    advance("float32, product and gradients")
    float32 = _crossover(lambda size: _step(size, torch.float32, device))
    return Crossovers(sixteen_bit, grid, float32)


def _crossover(call_of: Callable[[int], Call]) -> int:
    times: dict[Crossovers, list[float]] = {ALWAYS_CUDA: [], ALWAYS_TRITON: []}
    for size in SIZES:
        call = call_of(size)
        for way, found in times.items():
            with _cuda.using(way):
                found.append(milliseconds(call))
    return best_limit(SIZES, times[ALWAYS_CUDA], times[ALWAYS_TRITON])


def best_limit(sizes: Sequence[int], cuda: Sequence[float], triton: Sequence[float]) -> int:
    """The limit, 0 or a size, for which Triton up to it and CUDA C++ beyond it take the least time, in ratios."""

    def cost(limit: int) -> float:
        return sum(math.log(t if size <= limit else c) for size, c, t in zip(sizes, cuda, triton, strict=True))

    return min((0, *sizes), key=cost)


def _step(size: int, dtype: torch.dtype, device: torch.device) -> Call:
    """One circulant block: the product and both gradients."""
    x = torch.randn(1, VALUES // size, size, dtype=dtype, device=device)
    g, v = torch.randn_like(x), torch.randn(1, 1, 1, size, dtype=dtype, device=device)
    return lambda: (
        grid(x, v, None, CIRCULANT, size, 1.0, False),
        grid_backward(g, x, v, CIRCULANT, size, 1.0, False),
    )


def _grid_pullback(size: int, dtype: torch.dtype, device: torch.device) -> Call:
    """A grid of blocks: the gradient of the parameter alone."""
    x = torch.randn(1, VALUES // (GRID * size), GRID * size, dtype=dtype, device=device)
    g = torch.randn_like(x)
    return lambda: grid_pullback(g, x, CIRCULANT, size, size, 1.0)


def milliseconds(call: Call) -> float:
    """The median time of a call on the GPU."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
