"""How long the passes of every structure take on this machine: the constants of the cost model."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels import structures
from surm_kernels._kept import MergedWeight, split
from surm_kernels._timing import Effort, samples, wall_clock
from surm_kernels.cost_constants import MEASURED_TYPES, Costs, Families
from surm_kernels.structures import Structure
from surm_kernels.structures.hydra_blocks import KINDS

FEW_TOKENS = 16  # of the product that a merged weight is measured with
SIZES = (192, 768, 3072)
TOKENS = (16, 128, 1024, 8192)
RANK = 2
OTHERS = 4  # x, y and their gradients: where the strategies take equal time, each is about as large as the weight
MOST_OTHERS = 2**23  # values: more leave no more of the weight in caches


class Plain(Structure):
    """A structure as a user may write it, with nothing but what has to be there: every entry is a parameter."""

    initialisations = ("layer",)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.out_features, self.in_features)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(self.in_features)
        parameters[0].uniform_(-bound, bound, generator=generator)

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        update = scale * (x @ parameters[0].T)
        return update if base is None else base + update

    def dense(self, *parameters: Tensor) -> Tensor:
        return parameters[0]


def _square(name: str, *arguments: Any, **options: Any) -> Callable[[int], Structure]:
    return lambda n: getattr(structures, name)(n, n, *arguments, **options)


def _hydra(kind: str) -> Callable[[int], Structure]:
    return lambda n: structures.Hydra(n, n, structure=kind, rank=RANK if KINDS[kind].ranked else None)


#: One structure of every family, by size; the last stands for those that are not measured.
FAMILIES: dict[str, Callable[[int], Structure]] = {
    **{
        name: _square(name)
        for name in (
            "Circulant",
            "SkewCirculant",
            "Toeplitz",
            "SymmetricToeplitz",
            "Hankel",
            "Kronecker",
            "Vandermonde",
            "CirculantProduct",
            "ToeplitzProduct",
        )
    },
    "BlockCirculant": lambda n: structures.BlockCirculant(n, n, n // 4),
    **{name: _square(name, RANK) for name in ("ToeplitzLike", "HankelLike", "VandermondeLike", "CauchyLike")},
    "LowRank": _square("LowRank", 8),
    "Siva": lambda n: structures.Siva(n, n, n // 2),
    **{f"Hydra {kind}": _hydra(kind) for kind in KINDS},
    "Structure": lambda n: Plain(n, n),
}


LONG = 1e-2  # seconds of a call
FULL = Effort(most=9, fewest=1, seconds=0.09, long=LONG, sample_seconds=3e-4)
QUICK = Effort(most=3, fewest=1, seconds=0.06, long=LONG, sample_seconds=3e-4)
HURRIED = Effort(most=3, fewest=1, seconds=0.01, long=LONG / 10, sample_seconds=1e-4)


def measure(effort: Effort, begin: Callable[[str], object], advance: Callable[[], object]) -> Families:
    """The constants of every family, type and size; `begin` hears of each family before it is measured."""
    families: Families = {}
    for name, make in FAMILIES.items():
        begin(name)
        families[name] = {
            dtype: {size: costs(make(size), getattr(torch, dtype), effort) for size in SIZES}
            for dtype in MEASURED_TYPES
        }
        advance()
    return families


def measure_within(
    seconds: float, family: str, size: float, now: Callable[[], float] = time.perf_counter
) -> dict[str, dict[int, Costs]]:
    """The constants of one family, of as many sizes as so many seconds allow, those nearest to `size` first.

    Each size and type may take an equal share of what is left. A size stands for both types or for none.
    """
    end, make = now() + seconds, FAMILIES[family]
    found: dict[str, dict[int, Costs]] = {dtype: {} for dtype in MEASURED_TYPES}
    order = sorted(SIZES, key=lambda one: abs(math.log(one / size)))
    steps = [(one, dtype) for one in order for dtype in MEASURED_TYPES]
    with contextlib.suppress(TimeoutError):
        for index, (one, dtype) in enumerate(steps):
            present = now()
            limit = Limit(end, present + (end - present) / (len(steps) - index), now)
            found[dtype][one] = costs(make(one), getattr(torch, dtype), HURRIED, limit)
    whole = sorted(set.intersection(*(set(at) for at in found.values())))
    return {dtype: {one: at[one] for one in whole} for dtype, at in found.items()}


@dataclass(frozen=True)
class Limit:
    """Until when measuring has to have ended, and from when on no more tokens are tried; none by default."""

    end: float = math.inf
    share: float = math.inf
    now: Callable[[], float] = time.perf_counter

    def clock(self, call: Callable[[], object], calls: int) -> float:
        """As `wall_clock`; TimeoutError where the end has come before."""
        if self.now() >= self.end:
            raise TimeoutError
        return wall_clock(call, calls)


@torch.no_grad()
def costs(structure: Structure, dtype: torch.dtype, effort: Effort, limit: Limit | None = None) -> Costs:
    """The constants of one structure and type; TimeoutError where the limit does not allow them."""
    limit = limit or Limit()
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = structure.parameter_shapes().values()
    parameters = [_normal(*shape, generator=generator, dtype=dtype) / structure.in_features**0.5 for shape in shapes]
    structure.initialise(parameters, structure.initialisations[-1], generator=generator)  # leaves constants alone
    weight = _normal(structure.out_features, structure.in_features, generator=generator, dtype=dtype)
    passes = (
        lambda x, g: structure.rows(x, parameters, None, 1.0),
        _gradients(structure, parameters),
        lambda x, g: structure.row_gradients(g, x, parameters, 1.0, False),
    )
    merge = _seconds_of_merging(structure, parameters, weight, effort, limit)
    times = _times(passes, structure, effort, limit, partial(_normal, generator=generator, dtype=dtype))
    tokens = TOKENS[: len(times[0])]
    fits = [fit(tokens, of_pass) for of_pass in times]
    columns = [number for call, a_token in fits for number in (call, a_token / structure.token_work())]
    return Costs(*(float(f"{number:.3g}") for number in (*columns, merge / structure.merge_work())))


def _seconds_of_merging(
    structure: Structure, parameters: Sequence[Tensor], weight: Tensor, effort: Effort, limit: Limit
) -> float:
    """What a layer in training does after every step, its weight driven from caches by the tokens of that step."""
    few, merged = weight[:FEW_TOKENS].clone(), MergedWeight()
    trained = split(structure, parameters)[1]
    others = torch.ones(min(OTHERS * weight.numel(), MOST_OTHERS), dtype=weight.dtype)

    def merging() -> Tensor:
        trained[0].neg_().add_(1)
        return merged.of(structure, 1.0, weight.dtype, weight, parameters, stochastic=weight.dtype.itemsize == 2).weight

    def clock(call: Callable[[], object], calls: int) -> float:
        total = 0.0
        for _ in range(calls):
            others.sum()
            total += limit.clock(call, 1)
        return total / calls

    # With the product that follows: what one thread has just written, the others wait for.
    calls = (merging, lambda: torch_functional.linear(few, merging()), lambda: torch_functional.linear(few, weight))
    effort = replace(effort, seconds=4 * effort.seconds)  # most of which the others take
    alone, with_product, product = (statistics.median(times) for times in samples(calls, effort, clock))
    return max(alone, with_product - product)


def _gradients(structure: Structure, parameters: Sequence[Tensor]) -> Callable[[Tensor, Tensor], object]:
    """All gradients as a layer takes them, of a structure with a projection from that, whatever the tokens.

    Where so many tokens keep none, merging is the faster strategy all the more.
    """
    projections: dict[int, Tensor | None] = {}

    def gradients(x: Tensor, g: Tensor) -> object:
        if len(x) not in projections:
            parts = [structure.projection(token, parameters) for token in x.split(1)]
            projections[len(x)] = None if parts[0] is None else torch.cat([p for p in parts if p is not None])
        return structure.row_gradients(g, x, parameters, 1.0, True, projections[len(x)])

    return gradients


def _normal(*shape: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random values that leave the user's random numbers alone."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)


def _times(
    passes: Sequence[Callable[[Tensor, Tensor], object]],
    structure: Structure,
    effort: Effort,
    limit: Limit,
    normal: Callable[[int, int], Tensor],
) -> list[list[float]]:
    """The seconds of each pass, for all TOKENS but those that take long: the last, and from the third on any."""
    times: list[list[float]] = [[] for _ in passes]
    start = 0.0
    for index, tokens in enumerate(TOKENS):
        if tokens == TOKENS[-1] and max(of_pass[-1] for of_pass in times) > effort.long:
            break
        before, start = start, limit.now()
        if index >= 2 and start + (start - before) * tokens / TOKENS[index - 1] > limit.share:  # two make a line
            break
        x, g = normal(tokens, structure.in_features), normal(tokens, structure.out_features)
        found = seconds([partial(one, x, g) for one in passes], effort, limit)
        for of_pass, number in zip(times, found, strict=True):
            of_pass.append(number)
    return times


def seconds(calls: Sequence[Callable[[], object]], effort: Effort, limit: Limit) -> list[float]:
    """The median time of each call, measured in turns."""
    return [statistics.median(times) for times in samples(calls, effort, limit.clock)]


def fit(tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a call and of a token, neither negative, with the least sum of squared relative errors."""
    rows = torch.tensor([[1 / s, t / s] for t, s in zip(tokens, seconds, strict=True)], dtype=torch.float64)
    call, a_token = torch.linalg.lstsq(rows, torch.ones(len(rows), 1, dtype=torch.float64)).solution.flatten().tolist()
    if min(call, a_token) >= 0:
        return call, a_token
    column = rows[:, 1 if call < 0 else 0]
    alone = (column.sum() / column.square().sum()).item()
    return (0.0, alone) if call < 0 else (alone, 0.0)
