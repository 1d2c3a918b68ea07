"""The measuring harness: parity first, then interleaved repeats, medians, and ratios taken within a repeat.

Every repeat runs each contender once, in an order that rotates, so that a disturbance of the machine meets all of them
alike. The contender that comes first in a workload is ours; the others are its rivals.
"""

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from surm_kernels._timing import Clock, Effort, samples, wall_clock
from surm_kernels.command import accuracy
from surm_kernels.command.accuracy import Deviation

Results = tuple[Tensor, ...]  # the output, then gradients

#: What a rival may be off by, to show that it computes the same thing; most are less accurate than our limit.
RIVAL_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def compare_all(results: Results) -> Sequence[Tensor | None]:
    return results


def compare_nothing(results: Results) -> Sequence[Tensor | None]:
    return [None] * len(results)


@dataclass(frozen=True)
class Contender:
    """A call to time. `comparable` turns its results into what has to equal the exact ones, None for what need not."""

    name: str
    call: Callable[[], Results]
    comparable: Callable[[Results], Sequence[Tensor | None]] = compare_all


@dataclass(frozen=True)
class Workload:
    """The contenders on one input, ours first, the exact results in float64, and whether gradients are recorded.

    Our 16-bit results may be rounded `roundings` times.
    """

    contenders: tuple[Contender, ...]
    exact: Callable[[], Results]
    gradients: bool
    roundings: int = 1


FULL = Effort(most=21, fewest=7, seconds=5.0)
QUICK = Effort(most=5, fewest=3, seconds=0.5, warm_up=1)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def times(self, factor: float) -> "Spread":
        """The same in another unit."""
        return Spread(factor * self.low, factor * self.median, factor * self.high)


@dataclass(frozen=True)
class Measurement:
    """How far each contender is from the exact results, and seconds a call for every repeat.

    A rival that deviates has no samples; where ours does, nobody has, unless it is by less than what is `allowed`, as a
    multiple of its limit.
    """

    ours: str
    deviations: dict[str, Deviation]
    samples: dict[str, list[float]] = field(default_factory=dict)
    allowed: float = 1.0

    @property
    def refused(self) -> bool:
        """Whether our own result is wrong, so that its speed means nothing."""
        return self.deviations[self.ours].share > self.allowed

    def seconds(self, name: str) -> Spread | None:
        """The time of a call."""
        return Spread.of(self.samples[name]) if name in self.samples else None

    def ratio(self, rival: str) -> Spread | None:
        """The rival's time over ours, a ratio for every repeat."""
        if rival not in self.samples or self.ours not in self.samples:
            return None
        pairs = zip(self.samples[rival], self.samples[self.ours], strict=True)
        return Spread.of([theirs / our_own for theirs, our_own in pairs])


def measure(workload: Workload, effort: Effort, clock: Clock = wall_clock, allowed: float = 1.0) -> Measurement:
    """Checks every contender, then times those that are right; nobody where ours is wrong.

    Ours is wrong where its error is more than `allowed` times the limit.
    """
    ours = workload.contenders[0].name
    with torch.set_grad_enabled(workload.gradients):
        found = deviations(workload)
        refused = Measurement(ours, found, allowed=allowed)
        if refused.refused:
            return refused
        right = [one for one in workload.contenders if one.name == ours or one.name not in found or found[one.name].ok]
        with _no_collection():
            taken = samples([one.call for one in right], effort, clock)
        return replace(
            refused, samples={one.name: list(map(digits, times)) for one, times in zip(right, taken, strict=True)}
        )


def digits(value: float) -> float:
    """As many as are worth keeping in a file of what a clock says, and of ratios of it."""
    return float(f"{value:.5g}")


def deviations(workload: Workload) -> dict[str, Deviation]:
    """The worst deviation of each contender that has something to compare."""
    found = {}
    with torch.set_grad_enabled(workload.gradients):
        exact = workload.exact()
        for index, contender in enumerate(workload.contenders):
            pairs = zip(contender.comparable(contender.call()), exact, strict=False)
            roundings = workload.roundings if index == 0 else None
            compared = [_deviation(got, wanted, roundings) for got, wanted in pairs if got is not None]
            if compared:
                found[contender.name] = accuracy.worst(compared)
    return found


def _deviation(got: Tensor, exact: Tensor, roundings: int | None) -> Deviation:
    """That of a result of ours, rounded so many times, or of a rival's."""
    if roundings is None:
        return Deviation(accuracy.error(got, exact), RIVAL_LIMITS[got.dtype])
    return accuracy.deviation(got, exact, roundings)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection within a sample."""
    before = gc.isenabled()
    gc.collect(1)  # the young: looking through all that large libraries leave takes longer than many a case
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
