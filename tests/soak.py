"""Long training and many layers, which must not need more memory than they began with.

`python -m tests.soak` takes minutes; tests/test_soak.py is the same for seconds.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surm_kernels.nn import AdaptedLinear, ToeplitzLinear
from surm_kernels.structures import Circulant, Hydra, Kronecker, LowRank, Siva, Structure, Toeplitz, ToeplitzLike

WIDTH, TOKENS = 48, 16
STRATEGIES = ("direct", "merged", "auto")
STRUCTURES: tuple[Structure, ...] = (
    Circulant(WIDTH, WIDTH),
    Toeplitz(WIDTH, WIDTH),
    ToeplitzLike(WIDTH, WIDTH, 2),
    Kronecker(WIDTH, WIDTH),
    LowRank(WIDTH, WIDTH, 2),
    Siva(WIDTH, WIDTH, WIDTH // 2),
    Hydra(WIDTH, WIDTH, structure="toeplitz", pool_size=200),
)
RESIDENT = 8 << 20  # bytes that the process may grow by, from what its allocators keep for themselves


class Usage(NamedTuple):
    """What a process holds: bytes in memory, and tensors that Python knows."""

    resident: int
    tensors: int


def usage() -> Usage:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # type(), since isinstance asks every object of the process for its class.
    tensors = sum(issubclass(type(one), Tensor) for one in gc.get_objects())
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), tensors)


def growth(work: Callable[[], None], times: int) -> Usage:
    """What the process holds more after `times` more calls, the first tenth of which may fill what is kept."""
    for _ in range(times // 10):
        work()
    before = usage()
    for _ in range(times - times // 10):
        work()
    after = usage()
    return Usage(after.resident - before.resident, after.tensors - before.tensors)


class Training:
    """Steps of a small model with every structure and strategy; some are in autocast, and some evaluate."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [ToeplitzLinear(WIDTH, WIDTH)]
        for index, structure in enumerate(STRUCTURES):
            strategy = STRATEGIES[index % len(STRATEGIES)]
            layers += [nn.ReLU(), AdaptedLinear(nn.Linear(WIDTH, WIDTH), structure, strategy=strategy)]
        self.model = nn.Sequential(*layers)
        self.optimiser = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.steps = 0

    def __call__(self) -> None:
        """One step."""
        self.steps += 1
        x = torch.randn(TOKENS, WIDTH)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.steps % 5 == 0):
            loss = (self.model(x) - x).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=self.steps % 2 == 0)
        if self.steps % 10 == 0:
            self.model.eval()
            with torch.inference_mode(self.steps % 20 == 0), torch.no_grad():
                self.model(x)
            self.model.train()


class Layers:
    """Fresh layers of every structure and strategy in turns, each used and dropped."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> None:
        """One layer."""
        structure = STRUCTURES[self.made % len(STRUCTURES)]
        layer = AdaptedLinear(nn.Linear(WIDTH, WIDTH), structure, strategy=STRATEGIES[self.made % len(STRATEGIES)])
        self.made += 1
        x = torch.randn(TOKENS, WIDTH)
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)


def main() -> int:
    """Run both and report; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of training")
    parser.add_argument("--layers", type=int, default=2_000, help="made and dropped")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is small
    flat = True
    for name, work, times in (("steps", Training(), options.steps), ("layers", Layers(), options.layers)):
        more = growth(work, times)
        flat = flat and more.tensors <= 0 and more.resident <= RESIDENT
        print(f"{times} {name}: {more.resident / 2**20:+.1f} MiB in memory, {more.tensors:+d} tensors", flush=True)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
