"""How much more threads help: the products of every structure at 768 features, from few tokens to many.

A call is a product and its gradients, of the tokens and of the parameters, without autograd. It is timed on one thread
and on all in turns; the efficiency is the quotient of the two within a turn. Two rows are yardsticks: copying shows
what the memory allows, a dense matrix what the BLAS library makes of threads.

`python -m benchmarks.threads [--threads N] [--dtype TYPE] [--only STRUCTURE …]` prints a table in Markdown.
"""

import argparse
from collections.abc import Callable, Sequence

import torch

from surm_kernels._timing import Effort, samples
from surm_kernels.calibration import FAMILIES
from surm_kernels.command.bench import report
from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.bench.records import Grid
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer, select, threads_text
from surm_kernels.cost_constants import MEASURED_TYPES

FEATURES = 768
TOKENS = (64, 512, 2048, 8192)
COPY = "copy"
DENSE = "Structure"  # one with nothing but a matrix of parameters
EFFORT = Effort(most=15, fewest=5, seconds=1.5, sample_seconds=4e-3)

Call = Callable[[], object]


def step(name: str, tokens: int, dtype: torch.dtype) -> Call:
    """A structure's product of so many tokens and its gradients, or their copy."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(tokens, FEATURES, generator=generator).to(dtype) for _ in range(2))
    if name == COPY:
        return x.clone
    structure = FAMILIES[name](FEATURES)
    shapes = structure.parameter_shapes().values()
    parameters = [(torch.randn(shape, generator=generator) / FEATURES**0.5).to(dtype) for shape in shapes]
    structure.initialise(parameters, structure.initialisations[-1], generator=generator)  # leaves constants alone
    return lambda: (structure.linear(x, *parameters), structure.gradients(g, x, *parameters))


def on_threads(threads: int, call: Call) -> Call:
    """The call, on so many threads."""

    def bound() -> object:
        torch.set_num_threads(threads)
        return call()

    return bound


@torch.no_grad()
def efficiency(call: Call, threads: int) -> Spread:
    """The time on one thread over that on so many."""
    alone, together = samples([on_threads(1, call), on_threads(threads, call)], EFFORT)
    return Spread.of([one / more for one, more in zip(alone, together, strict=True)])


def main(words: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="One thread beside more, for the products of every structure.")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--dtype", choices=MEASURED_TYPES, default=MEASURED_TYPES[0])
    parser.add_argument("--only", nargs="+", metavar="STRUCTURE", help="structures, by their names or a part of them")
    given = parser.parse_args(words)
    names = select("--only", given.only, [COPY, DENSE, *FAMILIES])
    rows = []
    with Progress(len(names)) as progress:
        for name in names:
            progress.begin(f"measuring {name}")
            spreads = [efficiency(step(name, t, getattr(torch, given.dtype)), given.threads) for t in TOKENS]
            rows.append(((name,), *((f"{one.median:.2f}× ({one.low:.2f} to {one.high:.2f})",) for one in spreads)))
            progress.advance()
    title = f"{FEATURES} features, {given.dtype}, {threads_text(given.threads)} beside one"
    print("\n".join(f"- {name}: {value}" for name, value in report.facts().items()))
    print(report.to_markdown(Grid(title, ("structure", *(f"{t} tokens" for t in TOKENS)), rows)))


if __name__ == "__main__":
    main()
