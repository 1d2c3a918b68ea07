"""SURM's Figure 1 (left): four families of 50 parameters each, fitted to random positive semidefinite 50 x 50 matrices.

The paper (arXiv 2406.17740) compares low rank, Kronecker, circulant and symmetric Toeplitz matrices on one kind of
random matrix. Here are several kinds, those where low rank wins among them. Every fit is the nearest member of its
family in Frobenius norm, in closed form, so no optimiser decides the result. Rows have L2 norm 1, as in the paper.

`python benchmarks/figure1.py [--out FOLDER] [--trials N] [--seed N]` shows a table and writes figure1.json and
figure1.png.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from surm_kernels import dense
from surm_kernels.command import machine, terminal
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer
from surm_kernels.structures import Circulant, Structure, SymmetricToeplitz

SIZE = 50  # rows, columns, and parameters of every family
LEFT = (10, 5)  # shape of A in the Kronecker product of A and its transpose
COLOURS = ("#8c8c8c", "#e08214", "#2166ac", "#1b7837")


def square_vector(matrix: Tensor) -> Tensor:
    """The v whose `outer(v, v)` is nearest to a square matrix.

    |M - v v^T|^2 = |M|^2 - 2 v^T S v + |v|^4 with S the symmetric part of M, least at the leading eigenvector of S
    with the eigenvalue as squared length, or at 0 where no eigenvalue is positive.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values[-1].clamp(min=0).sqrt() * vectors[:, -1]


def nearest_low_rank(matrix: Tensor) -> Tensor:
    """The nearest v v^T."""
    v = square_vector(matrix)
    return torch.outer(v, v)


def nearest_kronecker(matrix: Tensor) -> Tensor:
    """The nearest Kronecker product of A and its transpose.

    Van Loan and Pitsianis: its entries are A[i, j] A[l, k], so rearranged to rows (i, j) and columns (l, k) it is
    a a^T with a the entries of A.
    """
    p, q = LEFT
    blocks = matrix.reshape(p, q, q, p)  # i, k, j, l
    a = square_vector(blocks.permute(0, 2, 3, 1).reshape(p * q, p * q)).reshape(LEFT)
    return torch.kron(a, a.T.contiguous())


def nearest_in(structure: Structure) -> Callable[[Tensor], Tensor]:
    """The nearest matrix of a structure."""
    return lambda matrix: structure.dense(*structure.nearest(matrix))


FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "low rank": nearest_low_rank,
    "Kronecker": nearest_kronecker,
    "circulant": nearest_in(Circulant(SIZE, SIZE)),
    "symmetric Toeplitz": nearest_in(SymmetricToeplitz(SIZE, SIZE)),
}


def normal_factor(generator: torch.Generator) -> Tensor:
    """A Wishart matrix: B B^T with normal entries."""
    return _gram(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))


def uniform_factor(generator: torch.Generator) -> Tensor:
    """B B^T with entries uniform in [0, 1): the mean is a large part of rank 1."""
    return _gram(torch.rand(SIZE, SIZE, generator=generator, dtype=torch.float64))


def thin_factor(generator: torch.Generator) -> Tensor:
    """B B^T with normal entries and 3 columns."""
    return _gram(torch.randn(SIZE, 3, generator=generator, dtype=torch.float64))


def decaying_spectrum(generator: torch.Generator) -> Tensor:
    """Random eigenvectors, every eigenvalue half the one before."""
    vectors, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return _gram(vectors * 0.5 ** (torch.arange(SIZE) / 2))


def radial_kernel(generator: torch.Generator) -> Tensor:
    """exp(-d^2 / (2 0.1^2)) for points in [0, 1) in ascending order."""
    return _radial_kernel(_places(generator).sort().values)


def shuffled_radial_kernel(generator: torch.Generator) -> Tensor:
    """The same for points in random order."""
    return _radial_kernel(_places(generator))


def stationary(generator: torch.Generator) -> Tensor:
    """The covariance of a stationary process: ten cosines of random frequency and weight, and white noise."""
    frequencies = torch.pi * torch.rand(10, generator=generator, dtype=torch.float64)
    weights = torch.rand(10, generator=generator, dtype=torch.float64)
    lags = torch.arange(SIZE, dtype=torch.float64)
    covariance = (weights[:, None] * torch.cos(frequencies[:, None] * lags)).sum(0)
    covariance[0] += 1
    return dense.toeplitz(torch.cat([covariance[1:].flip(0), covariance]), SIZE)


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.T


def _places(generator: torch.Generator) -> Tensor:
    return torch.rand(SIZE, generator=generator, dtype=torch.float64)


def _radial_kernel(places: Tensor) -> Tensor:
    return torch.exp(-((places[:, None] - places) ** 2) / (2 * 0.1**2))


DRAWINGS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "BBᵀ, B normal": normal_factor,
    "BBᵀ, B uniform": uniform_factor,
    "BBᵀ, B of rank 3": thin_factor,
    "halving spectrum": decaying_spectrum,
    "RBF, sorted": radial_kernel,
    "RBF, shuffled": shuffled_radial_kernel,
    "stationary": stationary,
}


@dataclass(frozen=True)
class Result:
    """Relative Frobenius errors of one family on one kind of matrix, one for every trial."""

    drawing: str
    family: str
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.errors)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.errors) if len(self.errors) > 1 else 0.0


def relative_error(fit: Tensor, matrix: Tensor) -> float:
    """The Frobenius norm of the difference over that of the matrix."""
    return ((fit - matrix).norm() / matrix.norm()).item()


def measure(trials: int, seed: int) -> list[Result]:
    """Fits every family to the same matrices of every kind."""
    results = []
    with Progress(len(DRAWINGS) * trials) as progress:
        for drawing, draw in DRAWINGS.items():
            progress.begin(f"fitting {drawing}")
            generator = torch.Generator().manual_seed(seed)
            errors: dict[str, list[float]] = {family: [] for family in FAMILIES}
            for _ in range(trials):
                matrix = torch.nn.functional.normalize(draw(generator), dim=1)
                for family, nearest in FAMILIES.items():
                    errors[family].append(relative_error(nearest(matrix), matrix))
                progress.advance()
            results += [Result(drawing, family, tuple(errors[family])) for family in FAMILIES]
    return results


def table(results: Sequence[Result], trials: int) -> str:
    """Mean and deviation of every error, the least of a row with an arrow."""
    title = f"relative error, {SIZE} parameters, mean±deviation of {trials} trials, {SIZE} × {SIZE}"
    rows = []
    for drawing in DRAWINGS:
        row = [one for one in results if one.drawing == drawing]
        least = min(one.mean for one in row)
        rows.append([drawing, *(f"{'→ ' * (one.mean == least)}{one.mean:.3f}±{one.deviation:.3f}" for one in row)])
    return f"{title}\n\n{terminal.table(['matrix', *FAMILIES], rows)}"


def write_json(results: Sequence[Result], trials: int, seed: int, file: Path) -> None:
    """Every error with what is needed to find it again."""
    document = {
        "source": "SURM, arXiv 2406.17740, Figure 1 (left)",
        "size": SIZE,
        "parameters": SIZE,
        "trials": trials,
        "seed": seed,
        "versions": machine.versions("matplotlib"),
        "results": [{**vars(one), "mean": one.mean, "deviation": one.deviation} for one in results],
    }
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_plot(results: Sequence[Result], trials: int, file: Path) -> None:
    """A group of bars for every kind of matrix."""
    figure = Figure(figsize=(12, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(FAMILIES)
    for index, (family, colour) in enumerate(zip(FAMILIES, COLOURS, strict=True)):
        bars = [one for one in results if one.family == family]
        places = [group + (index - (len(FAMILIES) - 1) / 2) * width for group in range(len(bars))]
        means, deviations = [one.mean for one in bars], [one.deviation for one in bars]
        axes.bar(places, means, width, yerr=deviations, color=colour, label=family, error_kw={"linewidth": 1})
    axes.set_xticks(range(len(DRAWINGS)), [name.replace(", ", ",\n") for name in DRAWINGS])
    axes.set_ylabel("relative Frobenius error")
    axes.set_title(
        f"Nearest matrix of {SIZE} parameters to a positive semidefinite {SIZE} × {SIZE} matrix, {trials} trials",
        loc="left",
        fontsize=12,
        fontweight="bold",
    )
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(FAMILIES), frameon=False)
    figure.savefig(file)


def main(words: Sequence[str] | None = None) -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description="SURM's Figure 1 (left): which family fits which random matrix.")
    parser.add_argument("--out", type=Path, default=Path("figure1_results"), metavar="FOLDER")
    parser.add_argument("--trials", type=positive_integer, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = measure(arguments.trials, arguments.seed)
    print(f"\n{table(results, arguments.trials)}\n")
    files = arguments.out / "figure1.json", arguments.out / "figure1.png"
    write_json(results, arguments.trials, arguments.seed, files[0])
    write_plot(results, arguments.trials, files[1])
    for file in files:
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
