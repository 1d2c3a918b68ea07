"""What is measured on a GPU: cases of the command line's bench at GPU sizes, pullbacks, SiVA and banks beside them.

A row is one case at one size and type: parity first, then the time of every contender on the device, in turns, with
inputs rotated through more than the cache holds. The first contender is ours.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_adapted
from surm_kernels import functional
from surm_kernels._timing import Effort, wall_clock
from surm_kernels.block_kinds import CIRCULANT as CIRCULANT_KIND
from surm_kernels.command.bench.case import (
    BOTH,
    OURS,
    TORCH_FFT,
    Case,
    Method,
    Parameters,
    Point,
    Product,
    Unavailable,
)
from surm_kernels.command.bench.cases import CASES as COMMAND_CASES
from surm_kernels.command.bench.families import circulant, toeplitz
from surm_kernels.command.bench.measure import Contender, Results, Workload, compare_nothing, measure
from surm_kernels.command.bench.records import name_of
from surm_kernels.command.bench.workload import product_call

ELEMENTS = 2**27  # of the input: 256 MB in 16 bits, several times the cache
SMALLER = 64  # times smaller are the sizes of a dry run, which has DRY_TOKENS tokens
DRY_TOKENS = 3
MOST_SETS = 64
KEY = ("case", "in_features", "out_features", "tokens", "dtype")  # what names a row in the JSON file
TIMED_UP_TO = 3.0  # times the limit of its error a result of ours is timed all the same, with a word on it
EFFORT = Effort(most=15, fewest=3, seconds=0.4, warm_up=3, most_calls=20)
DRY_EFFORT = Effort(most=1, fewest=1, seconds=0.0, warm_up=1, sample_seconds=0.0)

COPY = "device copy"
MATMUL = "torch.matmul"
FORMULA = "three products"
GATHERED = "torch.fft of c[index]"
MATMUL_SIZE = 8192
SIVA_SHARE = 0.5  # of the directions of a square matrix
ADAPTERS = 32


@dataclass(frozen=True)
class GpuCase:
    """A case, and the operations of its contenders where they are compared with the rate of a matrix product."""

    case: Case
    operations: Callable[[Point], dict[str, float]] = lambda point: {}


def at(*features: int, elements: int = ELEMENTS) -> tuple[Point, ...]:
    """Square points."""
    return tuple(Point(n, n, elements // n) for n in features)


SIZES = at(256, 512, 768, 1024, 2048, 3072, 4096, 8192, 11008, 14336, 16384)
DENSE = replace(circulant.DENSE, most_features=None)
CIRCULANT = (circulant.CIRCULANT, circulant.FFT_CIRCULANT, circulant.C3A, DENSE)


def again(name: str, points: tuple[Point, ...], contenders: tuple[Method, ...] = (), **changes: Any) -> Case:
    """A case of the command line at other points, in both types, with its contenders or others."""
    (case,) = (case for case in COMMAND_CASES if case.name == name)
    contenders = contenders or case.contenders
    return replace(case, points=points, quick=points, contenders=contenders, dtypes=BOTH, claims=(), **changes)


def forward(case: Case) -> Case:
    """The forward pass of a case alone."""
    name, title = case.name.replace("training", "forward"), case.title.replace(" + backward", "")
    return replace(case, name=name, title=title, gradients=False)


def blocks(point: Point) -> tuple[tuple[int, ...], ...]:
    """A grid of circulants of 128, of 4 where a dry run's features are too few."""
    size = circulant.BLOCK if point.in_features % circulant.BLOCK == 0 else 4
    return ((point.out_features // size, point.in_features // size, size),)


def siva_rank(point: Point) -> int:
    return max(1, round(SIVA_SHARE * min(point.in_features, point.out_features)))


@functools.lru_cache(maxsize=4)
def siva_bases(point: Point, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """U and V: the same in every type, with values that bfloat16 can hold."""
    generator, k = torch.Generator(device).manual_seed(1), siva_rank(point)
    shapes = ((point.out_features, k), (point.in_features, k))
    U, V = (torch.randn(shape, generator=generator, device=device) / shape[0] ** 0.5 for shape in shapes)
    return U.bfloat16().to(dtype), V.bfloat16().to(dtype)


def siva(point: Point, dtype: torch.dtype) -> Product:
    def product(x: Tensor, s: Tensor) -> Tensor:
        U, V = siva_bases(point, dtype, x.device)
        return functional.siva_linear(x, U, s, V)

    return product


def siva_formula(point: Point, dtype: torch.dtype = torch.float64) -> Product:
    """SiVA's map as its formula has it."""

    def product(x: Tensor, s: Tensor) -> Tensor:
        U, V = siva_bases(point, dtype, x.device)
        return ((x @ V) * s) @ U.T

    return product


def siva_pullback(point: Point, dtype: torch.dtype) -> Product:
    """The gradient of s alone, given g: the operator that a backward pass calls."""

    def product(x: Tensor, g: Tensor) -> Tensor:
        U, V = siva_bases(point, dtype, x.device)
        return torch.ops.surm_kernels.diagonal_pullback(g[None], x[None], U[None], V[None], 1.0)[0]

    return product


def siva_pullback_formula(point: Point, dtype: torch.dtype = torch.float64) -> Product:
    def product(x: Tensor, g: Tensor) -> Tensor:
        U, V = siva_bases(point, dtype, x.device)
        return ((g @ U) * (x @ V)).sum(0)

    return product


def siva_operations(point: Point) -> dict[str, float]:
    """Multiplications and additions of the two products with U and V, forward or pullback, and of the square one."""
    ours = 2.0 * point.tokens * siva_rank(point) * (point.in_features + point.out_features)
    return {OURS: ours, FORMULA: ours, MATMUL: 2.0 * MATMUL_SIZE**3}


@functools.lru_cache(maxsize=2)
def square_factors(dtype: torch.dtype, device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Random ones: products of zeros run faster."""
    generator = torch.Generator(device).manual_seed(2)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    return a, b


def square_matmul(point: Point, dtype: torch.dtype) -> Product:
    """A large matrix product in the type: the rate that the device reaches."""
    size = MATMUL_SIZE if point.tokens > DRY_TOKENS else MATMUL_SIZE // SMALLER
    return lambda x, *parameters: torch.matmul(*square_factors(dtype, x.device, size))


@functools.lru_cache(maxsize=4)
def adapters_of(point: Point, device: torch.device) -> Tensor:
    """The adapter of every token."""
    generator = torch.Generator(device).manual_seed(3)
    return torch.randint(ADAPTERS, (point.tokens,), generator=generator, device=device)


def circulant_bank(point: Point, dtype: torch.dtype) -> Product:
    return lambda x, c: functional.circulant_linear(x, c, index=adapters_of(point, x.device))


def gathered_circulant(point: Point, dtype: torch.dtype = torch.float64) -> Product:
    return lambda x, c: circulant.torch_fft_circulant(x, c[adapters_of(point, x.device)])


def siva_bank(point: Point, dtype: torch.dtype) -> Product:
    def product(x: Tensor, s: Tensor) -> Tensor:
        U, V = siva_bases(point, dtype, x.device)
        return functional.siva_linear(x, U, s, V, index=adapters_of(point, x.device))

    return product


def siva_bank_formula(point: Point, dtype: torch.dtype = torch.float64) -> Product:
    return lambda x, s: siva_formula(point, dtype)(x, s[adapters_of(point, x.device)])


def circulant_pullback(point: Point, dtype: torch.dtype) -> Product:
    """The gradient of c alone, given g: the operator that the backward pass of a merged layer calls."""
    n = point.in_features
    return lambda x, g: torch.ops.surm_kernels.grid_pullback(g[None], x[None], CIRCULANT_KIND, n, n, 1.0).flatten()


def fft_circulant_pullback(point: Point, dtype: torch.dtype = torch.float64) -> Product:
    def product(x: Tensor, g: Tensor) -> Tensor:
        spectrum = (torch.fft.rfft(g) * torch.fft.rfft(x).conj()).sum(0)
        return torch.fft.irfft(spectrum, n=point.in_features)

    return product


CIRCULANT_FORWARD = again("circulant-forward", SIZES, CIRCULANT)
CIRCULANT_PULLBACK = Case(
    "circulant-pullback",
    "circulant, gradient of c alone",
    (Method(OURS, circulant_pullback), Method(TORCH_FFT, fft_circulant_pullback, through_float32=True)),
    fft_circulant_pullback,
    lambda point: ((point.tokens, point.out_features),),
    SIZES,
    SIZES,
    BOTH,
    gradients=False,
)
CIRCULANT_TRAINING = again("circulant-training", SIZES, CIRCULANT)
TOEPLITZ = again(
    "toeplitz-training",
    (*at(768, 1024, 4096, 8192), Point(768, 3072, ELEMENTS // 3072), Point(3072, 768, ELEMENTS // 3072)),
    (toeplitz.TOEPLITZ, toeplitz.FFT_TOEPLITZ, toeplitz.OUR_CIRCULANT),
)
TOEPLITZ_LIKE = again("toeplitz-like-training", at(1024, 4096, elements=ELEMENTS // 4))
BLOCK_CIRCULANT = again("block-circulant-training", at(768, 4096, elements=ELEMENTS // 2), shapes=blocks)
KRONECKER = again("kronecker-training", at(768, 4096))
VANDERMONDE = again("vandermonde-training", at(192, 768, elements=ELEMENTS // 4))
SIVA_POINTS = (*at(768, 2048, 4096), Point(768, 3072, ELEMENTS // 3072))
BANK_POINTS = (Point(1024, 1024, 256), Point(4096, 4096, 256), Point(4096, 4096, 4096))

SIVA_FORWARD = Case(
    "siva-forward",
    "SiVA of half the directions, forward",
    (Method(OURS, siva), Method(FORMULA, siva_formula), Method(MATMUL, square_matmul, comparable=compare_nothing)),
    siva_formula,
    lambda point: ((siva_rank(point),),),
    SIVA_POINTS,
    SIVA_POINTS,
    BOTH,
    gradients=False,
    roundings=3,
)
SIVA_PULLBACK = replace(
    SIVA_FORWARD,
    name="siva-pullback",
    title="SiVA of half the directions, gradient of s alone",
    contenders=(
        Method(OURS, siva_pullback),
        Method(FORMULA, siva_pullback_formula),
        Method(MATMUL, square_matmul, comparable=compare_nothing),
    ),
    exact=siva_pullback_formula,
    shapes=lambda point: ((point.tokens, point.out_features),),
)
SIVA_TRAINING = replace(
    SIVA_FORWARD,
    name="siva-training",
    title="SiVA of half the directions, forward + backward",
    contenders=(Method(OURS, siva), Method(FORMULA, siva_formula)),
    gradients=True,
)
CIRCULANT_BANK = Case(
    "circulant-bank",
    f"circulant, {ADAPTERS} adapters in one batch, forward",
    (Method(OURS, circulant_bank), Method(GATHERED, gathered_circulant, through_float32=True)),
    gathered_circulant,
    lambda point: ((ADAPTERS, point.in_features),),
    BANK_POINTS,
    BANK_POINTS,
    BOTH,
    gradients=False,
)
SIVA_BANK = replace(
    CIRCULANT_BANK,
    name="siva-bank",
    title=f"SiVA, {ADAPTERS} adapters in one batch, forward",
    contenders=(Method(OURS, siva_bank), Method(FORMULA, siva_bank_formula)),
    exact=siva_bank_formula,
    shapes=lambda point: ((ADAPTERS, siva_rank(point)),),
    roundings=3,
)

# The most wanted first: what the time does not reach is left out.
FIRST_SIZES = (4096, 1024, 8192, 768)
FIRST_CASES = tuple(map(GpuCase, (CIRCULANT_FORWARD, CIRCULANT_PULLBACK, CIRCULANT_TRAINING)))
CASES = (
    GpuCase(gpu_adapted.ADAPTED),
    GpuCase(gpu_adapted.MERGE),
    *FIRST_CASES,
    GpuCase(SIVA_PULLBACK, siva_operations),
    GpuCase(SIVA_FORWARD, siva_operations),
    GpuCase(TOEPLITZ),
    GpuCase(KRONECKER),
    GpuCase(TOEPLITZ_LIKE),
    GpuCase(CIRCULANT_BANK),
    GpuCase(SIVA_BANK),
    GpuCase(SIVA_TRAINING),
    GpuCase(BLOCK_CIRCULANT),
    GpuCase(forward(TOEPLITZ)),
    GpuCase(forward(TOEPLITZ_LIKE)),
    GpuCase(forward(KRONECKER)),
    GpuCase(VANDERMONDE),
)


@dataclass(frozen=True)
class Job:
    """A row to be: a case at a size and type."""

    of: GpuCase
    point: Point
    dtype: torch.dtype

    @property
    def key(self) -> dict[str, Any]:
        """The entries named in KEY."""
        return {"case": self.of.case.name, **vars(self.point), "dtype": name_of(self.dtype)}

    def __str__(self) -> str:
        return f"{self.of.case.title}, {name_of(self.dtype)}, {self.point}"


def jobs() -> Iterator[Job]:
    """Every row once: bfloat16 first, since that is what is trained, and of it the sizes that say the most."""
    first = [
        Job(case, point, torch.bfloat16)
        for size, case in itertools.product(FIRST_SIZES, FIRST_CASES)
        for point in case.case.points
        if point.in_features == size
    ]
    yield from first
    for dtype, case in itertools.product((torch.bfloat16, torch.float32), CASES):
        every = (Job(case, point, dtype) for point in case.case.points if dtype in case.case.dtypes)
        yield from (job for job in every if job not in first)


def shrunk(job: Job) -> Job:
    """The row of a dry run."""
    features, outputs = (max(2, size // SMALLER) for size in (job.point.in_features, job.point.out_features))
    return replace(job, point=Point(features, outputs, DRY_TOKENS))


class EventClock:
    """Seconds of a call on the device, by events around calls that wait for each other's issue.

    The stream is held until all calls are issued, as far as its queue takes them, so that the device's time is
    measured and not Python's; this one is kept in `issue_seconds`, by call.
    """

    CYCLES_A_SECOND = 2e9  # at least what the device's clock makes
    LONGEST_HOLD = 0.05

    def __init__(self) -> None:
        self.issue_seconds: dict[Callable[[], object], list[float]] = {}
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Callable[[], object], calls: int) -> float:
        issued = self.issue_seconds.setdefault(call, [])
        hold = min(self.LONGEST_HOLD, 1.5 * calls * issued[-1] + 1e-4) if issued else 0.0
        torch.cuda.synchronize()
        torch.cuda._sleep(int(hold * self.CYCLES_A_SECOND))
        self._start.record()
        before = time.perf_counter()
        for _ in range(calls):
            call()
        issued.append((time.perf_counter() - before) / calls)
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3 / calls


def sets_for(x: Tensor) -> int:
    """How many inputs it takes to fill the device's last cache twice."""
    if x.device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    return max(2, min(MOST_SETS, 1 + math.ceil(2 * cache / max(1, x.nbytes))))


def copy_of_as_much(job: Job, device: torch.device) -> Contender:
    """A copy that reads and writes, together, as many bytes as it takes to read the input and write the output."""
    values = (job.point.in_features + job.point.out_features) // 2
    source = torch.empty(job.point.tokens, values, dtype=job.dtype, device=device).normal_()
    turns = itertools.cycle([source] + [source.clone() for _ in range(sets_for(source) - 1)])
    return Contender(COPY, lambda: (next(turns).clone(),), compare_nothing)


def workload(job: Job, device: torch.device, notes: set[str]) -> Workload:
    """The contenders on inputs that rotate; the first of them is the one that is compared."""
    case, point = job.of.case, job.point
    generator = torch.Generator(device).manual_seed(0)
    with device:  # where new tensors go
        x, g = (torch.randn(point.tokens, n, generator=generator) for n in (point.in_features, point.out_features))
        parameters = tuple(case.draw(shape, point, generator).to(job.dtype) for shape in case.shapes(point))
    inputs = [(x.to(job.dtype), g.to(job.dtype) if case.gradients else None)]
    sets = 1 if case.updates else sets_for(inputs[0][0])  # a layer's weight and gradients fill the cache besides
    inputs += [(first.roll(k, 0), g) for k, (first, g) in enumerate(inputs * (sets - 1), 1)]
    contenders = []
    for method in filter(lambda method: method.serves(point), case.contenders):
        try:
            calls = _calls(method, job, inputs, parameters)
        except Unavailable as reason:
            notes.add(str(reason))
            continue
        contenders.append(Contender(method.name, calls, method.comparable))
    contenders.append(copy_of_as_much(job, device))
    doubles = tuple(p.double() for p in parameters)
    x, gradient = inputs[0]
    exact = product_call(case.exact(point), x.double(), doubles, None if gradient is None else gradient.double())
    return Workload(tuple(contenders), exact, case.gradients, case.roundings)


def _calls(
    method: Method, job: Job, inputs: list[tuple[Tensor, Tensor | None]], parameters: Parameters
) -> Callable[[], Results]:
    """A call that takes the next of the inputs each time; parameters are those of the first."""
    product, made = method.product(job.point, job.dtype), method.parameters(job.point, parameters)
    turns = itertools.cycle([product_call(product, x, made, g, job.of.case.updates) for x, g in inputs])
    return lambda: next(turns)()


def row(job: Job, device: torch.device, notes: set[str], effort: Effort = EFFORT) -> dict[str, Any]:
    """Measures a row: what the JSON file has beside its key."""
    clock = EventClock() if device.type == "cuda" else wall_clock
    made = workload(job, device, notes)
    found = measure(made, effort, clock, TIMED_UP_TO)
    issue = getattr(clock, "issue_seconds", {})
    contenders = {}
    for one in made.contenders:
        deviation, operations = found.deviations.get(one.name), job.of.operations(job.point)
        contenders[one.name] = {
            "error": _finite(deviation.error) if deviation else None,
            "error_limit": _finite(deviation.limit) if deviation else None,
            "seconds": found.samples.get(one.name, []),
            "issue_seconds": issue.get(one.call, []),
            "operations": operations.get(one.name),
        }
    return {"title": job.of.case.title, "refused": found.refused, "contenders": contenders}


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None
