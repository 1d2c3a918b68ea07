"""The first look at the kernels of CUDA C++ on a GPU: a call of each, below and above the 48 KiB of shared memory that
every kernel may have, beside the CPU's in float64; a merged weight has to be the CPU's to the bit."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, HANKEL, KINDS, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.command import accuracy
from surm_kernels.command.bench.records import name_of
from surm_kernels.rounding import StochasticRounding

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TOKENS = 19
ALLOWED = 3.0  # times the limit of a result: what is wrong is wrong by far more
SCALE = 2.0**-3
# Kind, blocks of a column and of a row, rows and columns of a block. In float32 the last takes 68 KiB.
GRIDS = (
    (CIRCULANT, 1, 1, 768, 768),
    (CIRCULANT, 1, 1, 4096, 4096),
    (SKEW_CIRCULANT, 1, 1, 1536, 1536),
    (SKEW_CIRCULANT, 2, 3, 97, 97),
    (HANKEL, 1, 1, 97, 200),
    (TOEPLITZ, 1, 1, 4096, 4096),
)
GENERATORS = ((4, 768), (2, 4096))  # rank and size; in float32 the last takes more than 48 KiB

EXACT = ("grid_merge", "stochastic_sum", "rounding_key")  # to the bit on every device

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Check:
    """A call of an operator; one that returns nothing changes its last argument."""

    operator: str
    place: str
    arguments: Arguments

    @property
    def key(self) -> Mapping[str, Any]:
        """What names it."""
        return {"check": f"{self.operator}, {self.place}"}

    def run(self, device: torch.device) -> dict[str, Any]:
        """How far the worst result is from the CPU's, as a multiple of its limit; an error where that is too much."""
        results = self._results(lambda tensor: tensor.to(device))
        if self.operator in EXACT:
            wanted = self._results(lambda tensor: tensor.clone())
            same = all(map(torch.equal, results, wanted))
            return {"share": 0.0} if same else {"error": "the result is not the CPU's to the bit"}
        exact = self._results(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        found = accuracy.worst(map(accuracy.deviation, results, exact))
        shown = {"share": found.share} if found.share < float("inf") else {}
        return shown if found.share <= ALLOWED else {**shown, "error": "the result is wrong"}

    def _results(self, moved: Callable[[Tensor], Tensor]) -> list[Tensor]:
        arguments = [moved(each) if isinstance(each, Tensor) else each for each in self.arguments]
        found = getattr(torch.ops.surm_kernels, self.operator)(*arguments)
        if found is None:
            found = arguments[-1]
        return [tensor.cpu() for tensor in (found if isinstance(found, tuple) else (found,))]


def checks() -> Iterator[Check]:
    """All of them, always the same."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for dtype in DTYPES:
            for grid in GRIDS:
                yield from _of_grid(grid, dtype)
            for rank, size in GENERATORS:
                yield from _of_generators(rank, size, dtype)
        yield from _of_rounding()


def _of_grid(grid: tuple[int, ...], dtype: torch.dtype) -> Iterator[Check]:
    kind, outputs, inputs, rows, columns = grid
    height, width = outputs * rows, inputs * columns
    values = _normal(dtype, 1, outputs, inputs, KINDS[kind].values(rows, columns))
    x, g, weight = _normal(dtype, 1, TOKENS, width), _normal(dtype, 1, TOKENS, height), _normal(dtype, height, width)
    place = f"{KINDS[kind].name} {outputs} x {inputs} of {rows} x {columns}, {name_of(dtype)}"
    calls: dict[str, Arguments] = {
        "grid": (x, values, g, kind, columns, SCALE, False),
        "grid_backward": (g, x, values, kind, columns, SCALE, False),
        "grid_pullback": (g, x, kind, rows, columns, SCALE),
        "grid_dense": (values, kind, columns),
        "grid_dense_adjoint": (weight[None], kind, rows, columns),
    }
    for operator, arguments in calls.items():
        yield Check(operator, place, arguments)
    if dtype.itemsize == 2:
        for key in (None, StochasticRounding.at(0, 0).key):
            merge = (weight, values[0], kind, columns, SCALE, key, torch.empty_like(weight))
            yield Check("grid_merge", f"{place}, {'to nearest' if key is None else 'stochastic'}", merge)


def _of_generators(rank: int, size: int, dtype: torch.dtype) -> Iterator[Check]:
    left, right = (_normal(dtype, 1, rank, size) for _ in range(2))
    x, g = (_normal(dtype, 1, TOKENS, size) for _ in range(2))
    place = f"rank {rank} of {size}, {name_of(dtype)}"
    yield Check("ldr", place, (x, left, right, g, size, SCALE, False, False))
    yield Check("ldr_backward", place, (g, x, left, right, SCALE, False))


def _of_rounding() -> Iterator[Check]:
    key = StochasticRounding.at(0, 0).key
    for columns in (96, 97):
        weight, addend = _normal(torch.bfloat16, 64, columns), _normal(torch.float32, 64, columns)
        yield Check("stochastic_sum", f"64 x {columns}", (weight, addend, key, torch.empty_like(weight)))
        yield Check("rounding_key", f"64 x {columns}", (weight, [], 7))


def _normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype)
