"""How good the choice of an adapted layer is: `strategy="auto"` beside direct and merged, over a grid of 30 shapes.

The grid is fixed: 1 to 16384 tokens, 192 to 4096 features, rectangular layers too, every structure, both types, with
and without gradients. A training step is forward, the gradients of x and of the parameters, and a small update of
these, so that a merged weight is formed anew in each; in inference nothing changes. The three strategies are timed in
turns, after their results were compared; a ratio is auto's time over the shorter of the other two in the same turn.

`python benchmarks/auto_grid.py [--out FOLDER] [--threads N]` shows a table and writes auto_grid.json and auto_grid.md.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surm_kernels import structures
from surm_kernels._timing import Effort
from surm_kernels.command.bench import report
from surm_kernels.command.bench.measure import Contender, Results, Workload, measure
from surm_kernels.command.bench.records import Grid, duration
from surm_kernels.command.bench.workload import Steps
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer, threads_text
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Structure

STRATEGIES = ("direct", "merged", "auto")
LIMIT = 1.1  # times the best is near enough
EFFORT = Effort(most=15, fewest=3, seconds=3.0, warm_up=2)


@dataclass(frozen=True)
class Shape:
    """A layer and a call: the structure by name, its sizes, tokens and type, and whether it is trained."""

    structure: str
    in_features: int
    out_features: int
    tokens: int
    dtype: str
    training: bool
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Structure:
        made: Structure = getattr(structures, self.structure)(self.in_features, self.out_features, **self.options)
        return made

    def __str__(self) -> str:
        options = "".join(f" {value}" for value in self.options.values())
        sizes = f"{self.in_features} → {self.out_features}"
        use = "training" if self.training else "inference"
        return f"{self.structure}{options}, {sizes} × {self.tokens}, {self.dtype}, {use}"


def _training(
    structure: str, /, n: int, tokens: int, dtype: str = "float32", m: int | None = None, **options: Any
) -> Shape:
    return Shape(structure, n, m or n, tokens, dtype, True, options)


def _inference(structure: str, n: int, tokens: int, dtype: str = "float32", m: int | None = None) -> Shape:
    return Shape(structure, n, m or n, tokens, dtype, False)


GRID = (
    _training("Circulant", 768, 2048),
    _training("Circulant", 768, 64),
    _training("Circulant", 192, 16384),
    _training("Circulant", 4096, 512),
    _training("Circulant", 768, 256, m=3072),
    _training("Circulant", 1024, 4096, "bfloat16"),
    _training("Circulant", 4096, 128, "bfloat16"),
    _training("SkewCirculant", 1536, 32),
    _training("BlockCirculant", 1024, 1024, block_size=128),
    _training("Toeplitz", 3072, 2048, m=768),
    _training("Toeplitz", 768, 16, "bfloat16"),
    _training("SymmetricToeplitz", 384, 1),
    _training("Hankel", 1024, 8192),
    _training("ToeplitzLike", 768, 4096, rank=2),
    _training("ToeplitzLike", 2048, 64, rank=2),
    _training("HankelLike", 384, 256, rank=2),
    _training("Kronecker", 768, 8192),
    _training("Kronecker", 2048, 128, "bfloat16"),
    _training("LowRank", 1024, 256, rank=8),
    _training("Siva", 768, 2048, k=404),
    _training("Siva", 768, 64, k=404),
    _training("Siva", 1024, 1024, "bfloat16", m=512, k=256),
    _training("CirculantProduct", 768, 256),
    _training("ToeplitzProduct", 512, 16),
    _training("Vandermonde", 192, 1024),
    _training("VandermondeLike", 192, 512, rank=2),
    _training("CauchyLike", 384, 256, rank=2),
    _training("Hydra", 768, 4096, structure="toeplitz"),
    _inference("Circulant", 4096, 1, "bfloat16"),
    _inference("Toeplitz", 768, 4096, m=3072),
)


@dataclass(frozen=True)
class Row:
    """What was found at a shape: what auto chose, and seconds a call of each strategy for every turn.

    There are none where the results of the strategies differ.
    """

    shape: Shape
    chosen: str
    samples: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        """Auto's time over the shorter of the others in the same turn, the median; infinite without times."""
        turns = zip(*(self.samples.get(strategy, []) for strategy in STRATEGIES), strict=True)
        return statistics.median([auto / min(direct, merged) for direct, merged, auto in turns] or [math.inf])

    @property
    def is_near(self) -> bool:
        """Whether auto is near enough to the best."""
        return self.ratio <= LIMIT

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio if math.isfinite(self.ratio) else None
        return {"shape": vars(self.shape), "chosen": self.chosen, "ratio": ratio, "seconds": self.samples}


def layer(shape: Shape, strategy: str) -> AdaptedLinear:
    """The layer of a shape; the update is as large as the weight, so that 16 bits can hold the sum."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        base = nn.Linear(shape.in_features, shape.out_features, dtype=getattr(torch, shape.dtype))
        structure = shape.make()
        made = AdaptedLinear(base, structure, strategy=strategy, initialisation=structure.initialisations[0])
        return made.train(shape.training)


def call(layer: AdaptedLinear, x: Tensor, g: Tensor | None) -> Callable[[], Results]:
    """A training step where the gradient of the output is given, else inference."""
    if g is None:
        return lambda: (layer(x),)
    trained = tuple(parameter for parameter in layer.parameters() if parameter.requires_grad)
    leaves, step = (x.detach().requires_grad_(), *trained), Steps(trained)

    def training_step() -> Results:
        y = layer(leaves[0])
        gradients = torch.autograd.grad(y, leaves, g)
        step(gradients[1:])
        return y, *gradients

    return training_step


def row(shape: Shape, effort: Effort) -> Row:
    """Measures the strategies at a shape."""
    generator, dtype = torch.Generator().manual_seed(1), getattr(torch, shape.dtype)
    x = torch.randn(shape.tokens, shape.in_features, generator=generator).to(dtype)
    g = torch.randn(shape.tokens, shape.out_features, generator=generator).to(dtype) if shape.training else None
    made = {strategy: layer(shape, strategy) for strategy in STRATEGIES}
    contenders = tuple(Contender(strategy, call(one, x, g)) for strategy, one in made.items())

    def direct() -> Results:
        return tuple(t.double() for t in call(layer(shape, "direct"), x, g)())

    found = measure(Workload(contenders, direct, shape.training), effort)
    agree = len(found.samples) == len(STRATEGIES)
    return Row(shape, made["auto"].chosen(shape.tokens, dtype, shape.training), found.samples if agree else {})


def measure_all(grid: Sequence[Shape], effort: Effort) -> list[Row]:
    """Measures every shape, with progress shown."""
    rows = []
    with Progress(len(grid)) as progress:
        for shape in grid:
            progress.begin(f"measuring {shape}")
            rows.append(row(shape, effort))
            progress.advance()
    return rows


def table(rows: Sequence[Row]) -> Grid:
    """The times of the strategies and auto's choice."""
    near = sum(one.is_near for one in rows)
    title = (
        f"auto is within {LIMIT - 1:.0%} of the best at {near} of {len(rows)}, {threads_text(torch.get_num_threads())}"
    )
    return Grid(title, ("layer × tokens", *STRATEGIES, "chosen", "auto over best"), [_cells(one) for one in rows])


def _cells(one: Row) -> list[tuple[str, ...]]:
    if not one.samples:
        return [(str(one.shape),), *((("not measured",),) * len(STRATEGIES)), (one.chosen,), ("results differ",)]
    times = [(duration(statistics.median(one.samples[strategy])),) for strategy in STRATEGIES]
    return [(str(one.shape),), *times, (one.chosen,), (f"{one.ratio:.2f}×" + ("" if one.is_near else " !"),)]


def main(words: Sequence[str] | None = None) -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description="How near an adapted layer's auto is to the best strategy.")
    parser.add_argument("--out", type=Path, default=Path("auto_grid_results"), metavar="FOLDER")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads(), metavar="N")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    rows = measure_all(GRID, EFFORT)
    grid, facts = table(rows), report.facts()
    print(f"\n{report.to_text(grid)}\n")
    files = arguments.out / "auto_grid.json", arguments.out / "auto_grid.md"
    document = {**facts, "threads": arguments.threads, "rows": [one.to_json() for one in rows]}
    files[0].write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    files[1].write_text(
        "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n\n" + report.to_markdown(grid)
    )
    for file in files:
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
