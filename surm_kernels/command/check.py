"""`surm-kernels check`: every kernel on this machine against the dense float64 matrix, one line each.

A structure is checked through its public product and matrix. Autograd takes the cheapest operator that gives the
derivatives asked for, so the six maps below reach every kernel of a structure. One entry in STRUCTURES adds one.

Tensors on a GPU may take two ways, so there all is checked twice: with the kernels in CUDA C++ first where both serve,
and with Triton's.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor

from surm_kernels import _extension, dense, functional, gpu_rule, reference, triton
from surm_kernels.command import accuracy, machine
from surm_kernels.command.accuracy import Deviation
from surm_kernels.command.usage import UsageError, select
from surm_kernels.ops import _cuda

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SCALE = 0.75
FEW_TOKENS, MANY_TOKENS = (1, 17), (1, 17, 100)  # some, for the schedule that has few tokens and the one that has many
SMALL = 100  # up to this many features there is time for many tokens
LARGE = 1000  # beyond it only float32 is checked

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 768, 1000)
LARGE_SIZES = (1536, 4093)  # the second is prime
MODERATE_SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 500)  # where one matrix takes several products
RECTANGLES = ((5, 3), (3, 5), (12, 97), (97, 12), (64, 192), (300, 100), (100, 300))  # rows and columns
MATRICES = (*((size, size) for size in MODERATE_SIZES), *RECTANGLES)
# Blocks down and across, rows and columns of a block.
GRIDS = ((1, 2, 2, 3), (2, 3, 5, 4), (3, 2, 64, 32), (2, 2, 97, 150))
RANKS = (1, 2, 4, 5, 1, 2, 4, 5, 1, 2)  # of the moderate sizes
FACTORS = (((1, 1), (1, 1)), ((2, 3), (5, 4)), ((7, 2), (1, 9)), ((3, 16), (12, 5)), ((32, 24), (24, 32)))
BLOCKS = ((1, 2, 2), (2, 2, 1), (2, 3, 5), (12, 3, 12), (4, 1, 63), (3, 2, 64), (1, 4, 97), (6, 6, 128), (3, 1, 500))

# Rows, columns and directions for SiVA, whose two products and the diagonal between them round 16-bit numbers √3 times
# as much as one rounding does, in the mean; it takes many numbers to keep to the mean.
DIRECTIONS = ((64, 192, 64), (97, 63, 97), (300, 200, 150), (768, 768, 404))
DIRECTIONS_TOKENS, DIRECTIONS_ROUNDING_FACTOR = (250, 600), 1.8

Shapes = tuple[tuple[int, ...] | int, ...]  # of the parameters, then numbers that the matrix takes as well


@dataclass(frozen=True)
class Structure:
    """What is checked: `linear(x, *parameters, base=, scale=)`, `dense(*parameters)`, and the matrix by its formula.

    `cases` has the parameter shapes of every problem, and what else `dense` and `reference` take. Parameters are drawn
    from [-1, 1]; `offsets` moves those that must not meet. `frozen` says which parameters ask for no gradient, `tokens`
    which numbers of tokens are tried where not the usual ones, `rounding_factor` how far 16-bit results may be off, in
    errors of rounding the exact answer.
    """

    name: str
    linear: Callable[..., Tensor]
    dense: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    cases: tuple[Shapes, ...]
    offsets: tuple[float, ...] = ()
    frozen: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    rounding_factor: float = accuracy.ROUNDING_FACTOR

    def deviation(self, got: Tensor, exact: Tensor) -> Deviation:
        """The error of a result, with the limit for its type and this structure."""
        found = accuracy.deviation(got, exact)
        if got.dtype in accuracy.LIMITS:
            return found
        return Deviation(found.error, self.rounding_factor / accuracy.ROUNDING_FACTOR * found.limit)


def _f_circulant(f: float) -> Structure:
    return Structure(
        f"f-circulant {f:g}",
        lambda x, v, **options: functional.krylov_linear(x, v, f, **options),
        partial(dense.krylov, f=f),
        partial(reference.krylov, f=f),
        (*(((n,),) for n in SIZES if n < 500), ((2, 3, 64),)),
    )


def _named(name: str, cases: Iterable[Shapes], title: str = "", **options: Any) -> Structure:
    """The structure that `functional`, `dense` and `reference` know by one name."""
    linear, matrix, formula = getattr(functional, f"{name}_linear"), getattr(dense, name), getattr(reference, name)
    return Structure(title or name.replace("_", "-"), linear, matrix, formula, tuple(cases), **options)


def _diagonals() -> Iterator[Shapes]:
    """Diagonals and columns of square and rectangular matrices and of grids of them."""
    for m, n in (*MATRICES, (LARGE, LARGE)):
        yield (m + n - 1,), n
    for rows, columns, m, n in GRIDS:
        yield (rows, columns, m + n - 1), n


def _pairs() -> Iterator[Shapes]:
    """Generators of square matrices."""
    for rank, n in zip(RANKS, MODERATE_SIZES, strict=True):
        yield (rank, n), (rank, n)


def _nodes_and_generators(nodes: Callable[[int, int], Shapes]) -> Iterator[Shapes]:
    for index, (m, n) in enumerate(MATRICES):
        rank = RANKS[index % len(RANKS)]
        yield *nodes(m, n), (rank, m), (rank, n)


STRUCTURES = (
    _named("circulant", (((n,),) for n in SIZES + LARGE_SIZES)),
    _named("skew_circulant", (((n,),) for n in SIZES + LARGE_SIZES)),
    _named("block_circulant", ((shape,) for shape in BLOCKS), "block circulant"),
    _f_circulant(0.0),
    _f_circulant(-0.3),
    _named("toeplitz", _diagonals()),
    _named("symmetric_toeplitz", (((n,),) for n in (*MODERATE_SIZES, LARGE)), "symmetric toeplitz"),
    _named("hankel", _diagonals()),
    _named("toeplitz_like", _pairs()),
    _named("hankel_like", _pairs()),
    _named("kronecker", FACTORS),
    _named("vandermonde", (((m,), n) for m, n in MATRICES)),
    _named("vandermonde_like", _nodes_and_generators(lambda m, n: ((m,),))),
    _named("cauchy_like", _nodes_and_generators(lambda m, n: ((m,), (n,))), offsets=(0, 2.5, 0, 0)),
    _named(
        "siva",
        (((m, k), (k,), (n, k)) for m, n, k in DIRECTIONS),
        frozen=(0, 2),
        tokens=DIRECTIONS_TOKENS,
        rounding_factor=DIRECTIONS_ROUNDING_FACTOR,
    ),
)


class Problem:
    """Random parameters, tokens and cotangents of one type, and the exact answers for them."""

    def __init__(
        self, structure: Structure, shapes: Shapes, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator).to(device, dtype)

        self.structure = structure
        self.constants = tuple(number for number in shapes if isinstance(number, int))
        drawn = [draw(*shape) for shape in shapes if not isinstance(shape, int)]
        offsets = structure.offsets or (0.0,) * len(drawn)
        self.parameters = tuple(p + offset for p, offset in zip(drawn, offsets, strict=True))
        self._leaves = tuple(p.double().detach().clone().requires_grad_() for p in self.parameters)
        self._graph = structure.reference(*self._leaves, *self.constants)
        self.matrix = self._graph.detach()
        outputs, inputs = self.matrix.shape
        self.cotangent = draw(outputs, inputs)
        counts = structure.tokens or (MANY_TOKENS if max(outputs, inputs) <= SMALL else FEW_TOKENS)
        self.batches = [Batch(self, draw(tokens, inputs), draw(tokens, outputs), draw(outputs)) for tokens in counts]

    def trained(self, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Those of the parameters, or of their gradients, that are not frozen."""
        return tuple(t for index, t in enumerate(parameters) if index not in self.structure.frozen)

    def parameter_gradients(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The exact gradients of `<cotangent, W>` with respect to the parameters."""
        return torch.autograd.grad(self._graph, self._leaves, cotangent.double(), retain_graph=True)


class Batch:
    """Tokens x, a gradient g of the output, a bias as base, and the exact answers for them."""

    def __init__(self, problem: Problem, x: Tensor, noise: Tensor, base: Tensor) -> None:
        self._problem, self.x, self.base = problem, x, base
        # A gradient that leans towards x W^T: the sum over tokens in the pullback cannot cancel by chance.
        self.g = noise + torch.nn.functional.normalize(x.double() @ problem.matrix.mT).to(noise.dtype)

    @cached_property
    def product(self) -> Tensor:
        return self.base.double() + SCALE * self.x.double() @ self._problem.matrix.mT

    @cached_property
    def x_gradient(self) -> Tensor:
        return SCALE * self.g.double() @ self._problem.matrix

    @cached_property
    def parameter_gradients(self) -> tuple[Tensor, ...]:
        return self._problem.parameter_gradients(SCALE * self.g.double().mT @ self.x.double())


Pairs = Iterator[tuple[Tensor, Tensor]]  # results, each with the exact one


def _product(problem: Problem) -> Pairs:
    for batch in problem.batches:
        y = problem.structure.linear(batch.x, *problem.parameters, base=batch.base, scale=SCALE)
        yield y, batch.product


def _gradients(problem: Problem, of_x: bool, of_parameters: bool) -> Pairs:
    """The gradients asked for by autograd, which picks the operator: transposed, pullback, or both in one pass."""
    for batch in problem.batches:
        x = batch.x.clone().requires_grad_(of_x)
        parameters = tuple(parameter.clone() for parameter in problem.parameters)
        trained = problem.trained(parameters) if of_parameters else ()
        for parameter in trained:
            parameter.requires_grad_()
        y = problem.structure.linear(x, *parameters, scale=SCALE)
        wanted = (x,) * of_x + trained
        exact = (batch.x_gradient,) * of_x
        if of_parameters:
            exact += problem.trained(batch.parameter_gradients)
        yield from zip(torch.autograd.grad(y, wanted, batch.g), exact, strict=True)


def _dense(problem: Problem) -> Pairs:
    yield problem.structure.dense(*problem.parameters, *problem.constants), problem.matrix


def _dense_adjoint(problem: Problem) -> Pairs:
    parameters = tuple(parameter.clone().requires_grad_() for parameter in problem.parameters)
    matrix = problem.structure.dense(*parameters, *problem.constants)
    got = torch.autograd.grad(matrix, parameters, problem.cotangent)
    yield from zip(got, problem.parameter_gradients(problem.cotangent), strict=True)


MAPS: dict[str, Callable[[Problem], Pairs]] = {
    "product": _product,
    "transposed": partial(_gradients, of_x=True, of_parameters=False),
    "pullback": partial(_gradients, of_x=False, of_parameters=True),
    "fused backward": partial(_gradients, of_x=True, of_parameters=True),
    "dense": _dense,
    "dense adjoint": _dense_adjoint,
}


@dataclass(frozen=True)
class Finding:
    """What one map gave for one problem: its worst deviation, or the error it raised."""

    shapes: Shapes
    deviation: Deviation
    raised: str = ""


Findings = dict[tuple[str, torch.dtype], list[Finding]]  # by map and type


def examine(structure: Structure, device: torch.device, advance: Callable[[], Any]) -> Findings:
    """Every map of a structure on every problem and type; `advance` is called after each problem."""
    findings: Findings = {(name, dtype): [] for name in MAPS for dtype in DTYPES}
    for dtype in DTYPES:
        for seed, shapes in enumerate(structure.cases):
            if _included(shapes, dtype):
                problem = Problem(structure, shapes, dtype, device, seed)
                for name, function in MAPS.items():
                    findings[name, dtype].append(_find(function, problem, shapes))
            advance()
    return findings


def _included(shapes: Shapes, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or all(max(shape) <= LARGE for shape in shapes if not isinstance(shape, int))


def _find(function: Callable[[Problem], Pairs], problem: Problem, shapes: Shapes) -> Finding:
    try:
        pairs = list(function(problem))
    except Exception as failure:  # a kernel that raises has failed; the others are still of interest
        return Finding(shapes, Deviation(math.inf, 1.0), f"{type(failure).__name__}: {failure}")
    return Finding(shapes, accuracy.worst(problem.structure.deviation(*pair) for pair in pairs))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of check to `parser`."""
    names = ", ".join(structure.name for structure in STRUCTURES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"structures, or parts of their names, of: {names}")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device to check on (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Checks the structures asked for, printing as it goes; 1 if any kernel failed."""
    names = select("--only", arguments.only, (structure.name for structure in STRUCTURES))
    chosen = [structure for structure in STRUCTURES if structure.name in names]
    device = _device(arguments.device)
    start, failures = time.perf_counter(), 0
    console = Console()
    ways = _ways(device)
    kernels = machine.kernels() if device.type != "cuda" else _gpu_kernels()
    console.print(f"{kernels}, {torch.get_num_threads()} threads, device {device}", highlight=False)
    console.print("Worst normwise error against the dense float64 matrix;")
    console.print("16-bit types: as a multiple of the error of rounding the exact answer.", highlight=False)
    problems = sum(len(structure.cases) for structure in chosen)
    console.print(f"{problems} shapes, square, rectangular and grids, of 1 to {LARGE} features,", highlight=False)
    console.print(f"in float32 to {max(LARGE_SIZES)}; {' or '.join(map(str, MANY_TOKENS))} tokens.\n", highlight=False)
    for structure in chosen:
        if structure.rounding_factor != accuracy.ROUNDING_FACTOR:
            factor = f"{structure.rounding_factor} ×"
            console.print(
                f"{structure.name} rounds between two matrix products too: limit {factor}.\n", highlight=False
            )
    _print_line(console, "structure", "kernel", [str(dtype).removeprefix("torch.") for dtype in DTYPES], "")
    _print_line(console, "", "limit", [_limit(dtype) for dtype in DTYPES], "")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=len(DTYPES) * problems * len(ways))
        for title, way in ways.items():
            if title:
                console.print(f"\n{title}", highlight=False)
            with way:
                for structure in chosen:
                    findings = examine(structure, device, partial(progress.advance, task))
                    failures += sum(not _report(console, structure, name, findings) for name in MAPS)
    checked = len(chosen) * len(MAPS) * len(ways)
    verdict = f"{failures} of {checked} kernels FAILED" if failures else f"all {checked} kernels ok"
    console.print(f"\n{verdict}, {time.perf_counter() - start:.0f} s", highlight=False)
    return 1 if failures else 0


def _ways(device: torch.device) -> dict[str, AbstractContextManager[None]]:
    """The ways that tensors may take on a device, by title."""
    if device.type != "cuda":
        return {"": nullcontext()}
    return {
        "CUDA C++ before Triton": _cuda.using(gpu_rule.ALWAYS_CUDA),
        "Triton before CUDA C++": _cuda.using(gpu_rule.ALWAYS_TRITON),
    }


def _gpu_kernels() -> str:
    """What computes the products on a GPU."""
    cuda, without = _extension.cuda_architectures, _extension.why_no_cuda()
    return ", ".join(
        (
            f"no CUDA C++ ({without})" if without else f"CUDA C++ for {cuda}",
            f"no Triton ({reason})" if (reason := triton.why_not()) else "Triton",
        )
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise UsageError("--device: meta tensors hold no numbers to check")
    return device


def _report(console: Console, structure: Structure, name: str, findings: Findings) -> bool:
    """Prints the line of one kernel, and one for every type that failed; True if all is well."""
    worst = {dtype: max(findings[name, dtype], key=lambda finding: finding.deviation.share) for dtype in DTYPES}
    failed = {dtype: finding for dtype, finding in worst.items() if not finding.deviation.ok}
    cells = [_cell(structure, dtype, finding) for dtype, finding in worst.items()]
    _print_line(console, structure.name, name, cells, "FAILED" if failed else "ok")
    for dtype, finding in failed.items():
        what = finding.raised or f"error {finding.deviation.error:.1e}, limit {finding.deviation.limit:.1e}"
        where = f"{str(dtype).removeprefix('torch.')}, parameters {', '.join(map(str, finding.shapes))}"
        console.print(f"    {escape(where)}: {escape(what)}", highlight=False, soft_wrap=True)
    return not failed


def _print_line(console: Console, structure: str, name: str, cells: list[str], verdict: str) -> None:
    style = "bold red" if verdict == "FAILED" else None
    line = f"{structure:<20}{name:<15}{''.join(f'{cell:>10}' for cell in cells)}  {verdict}"
    console.print(line.rstrip(), style=style, highlight=False, soft_wrap=True)


def _cell(structure: Structure, dtype: torch.dtype, finding: Finding) -> str:
    if finding.raised:
        return "raised"
    if dtype in accuracy.LIMITS:
        return f"{finding.deviation.error:.1e}"
    return f"{structure.rounding_factor * finding.deviation.share:.2f} ×"


def _limit(dtype: torch.dtype) -> str:
    limit = accuracy.LIMITS.get(dtype)
    return f"{accuracy.ROUNDING_FACTOR} ×" if limit is None else f"{limit:.0e}"
