"""SURM's Table 8: which updates of a weight resemble those of full training, by centred kernel alignment (CKA).

A network with a hidden layer of 64 x 64 learns which of five arms of a pinwheel a point belongs to. Its embedding is
random and stays so; the head is trained, and the hidden layer either in full or by an update of about 128 numbers on
top of its random weight. Linear CKA (Kornblith et al., 2019) compares each with full training of the same seed: the
updates, the weights, and the hidden layer's outputs on points that were not trained on. The learning rate is the one
of five with the least loss on test points, in the mean over three seeds that are used for nothing else.

`python -m examples.pinwheel [--seeds N] [--tiny] [--results FOLDER]` shows a table and writes pinwheel.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import program
from examples.study import header
from surm_kernels import structures
from surm_kernels.command import terminal
from surm_kernels.command.demo.report import write_files
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer

ARMS, WIDTH, POINTS = 5, 64, 500
TWIST = 0.25
RATES = tuple(1e-3 * 4**power for power in range(5))
CHOOSING = 3  # seeds to choose a rate by
MEASURES = ("updates", "weights", "outputs", "accuracy")
HEADINGS = ("update", "numbers", "rate", *MEASURES)

UPDATES: dict[str, structures.Structure | None] = {
    "full": None,
    "LoRA r = 1": structures.LowRank(WIDTH, WIDTH, rank=1),
    "Kronecker": structures.Kronecker(WIDTH, WIDTH),
    "circulant": structures.CirculantProduct(WIDTH, WIDTH),
    "symmetric Toeplitz": structures.SymmetricToeplitz(WIDTH, WIDTH),
    "product of two": structures.ToeplitzProduct(WIDTH, WIDTH),
    "Toeplitz": structures.Toeplitz(WIDTH, WIDTH),
}


def pinwheel(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and the arms they belong to (count,): normal along five arms, turned by e^radius."""
    labels = torch.arange(POINTS) % ARMS
    points = torch.randn(POINTS, 2, generator=generator) * torch.tensor([0.3, 0.05]) + torch.tensor([1.0, 0.0])
    angles = 2 * torch.pi * labels / ARMS + TWIST * points[:, 0].exp()
    cosine, sine = angles.cos(), angles.sin()
    x, y = points.unbind(1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=1), labels


class Network(nn.Module):
    """relu(x E + e), relu(h (W + dW)^T), a head; an update dW of a structure, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(2, WIDTH), nn.Linear(WIDTH, ARMS)
        self.middle = nn.Linear(WIDTH, WIDTH, bias=False)
        self.structure: structures.Structure | None = None
        self.update = nn.ParameterList()

    def adapt(self, structure: structures.Structure | None) -> list[Tensor]:
        """What is trained: the head, and the middle layer's weight or its update."""
        head = list(self.head.parameters())
        if structure is None:
            return [*head, self.middle.weight]
        self.structure = structure
        self.update.extend(nn.Parameter(torch.empty(shape)) for shape in structure.parameter_shapes().values())
        structure.initialise(tuple(self.update), "paper" if "paper" in structure.initialisations else "layer")
        return [*head, *self.update]

    def weight(self) -> Tensor:
        """W + dW."""
        return self.middle.weight if self.structure is None else self.middle.weight + self.structure.dense(*self.update)

    def outputs(self, points: Tensor) -> Tensor:
        """The hidden layer's, (count, WIDTH)."""
        return F.relu(F.linear(F.relu(self.embedding(points)), self.weight()))

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.head(self.outputs(points))
        return logits


def fit(network: Network, trained: Sequence[Tensor], data: tuple[Tensor, Tensor], rate: float, steps: int) -> None:
    """Adam on all points at once."""
    optimizer = torch.optim.Adam(trained, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(data[0]), data[1]).backward()
        optimizer.step()


def alignment(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two matrices whose rows belong together: |Y^T X|^2 / (|X^T X| |Y^T Y|), columns centred.

    0 where one of them is constant.
    """
    x, y = (each.double() - each.double().mean(0) for each in (first, second))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return ((y.T @ x).square().sum() / norms).item() if norms else 0.0


def trained(seed: int, name: str, rate: float, steps: int) -> tuple[Network, Tensor, tuple[Tensor, Tensor]]:
    """A network that learnt the pinwheel, its hidden weight before, and points to test on."""
    torch.manual_seed(seed)
    network, generator = Network(), torch.Generator().manual_seed(seed)
    before = network.middle.weight.detach().clone()
    data, test = pinwheel(generator), pinwheel(generator)
    fit(network, network.adapt(UPDATES[name]), data, rate, steps)
    return network, before, test


@torch.no_grad()
def measured(network: Network, full: Network, before: Tensor, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Alignments with full training, and the share of test points told right."""
    right = (network(test[0]).argmax(1) == test[1]).float().mean().item()
    return {
        "updates": alignment(network.weight() - before, full.weight() - before),
        "weights": alignment(network.weight(), full.weight()),
        "outputs": alignment(network.outputs(test[0]), full.outputs(test[0])),
        "accuracy": right,
    }


def best_rate(name: str, seeds: Sequence[int], steps: int) -> float:
    """The learning rate with the least loss on test points, mean over seeds that are not used else."""

    def loss(rate: float) -> float:
        found = []
        for seed in seeds:
            network, _, test = trained(seed, name, rate, steps)
            with torch.no_grad():
                found.append(F.cross_entropy(network(test[0]), test[1]).nan_to_num(torch.inf).item())
        return statistics.fmean(found)

    return min(RATES, key=loss)


def study(seeds: int, steps: int) -> list[dict[str, Any]]:
    """The measures of every update, one for each seed."""
    rows = []
    with Progress(len(UPDATES), "fitting pinwheels") as progress:
        others = range(seeds, seeds + CHOOSING)
        rate = best_rate("full", others, steps)
        full = [trained(seed, "full", rate, steps)[0] for seed in range(seeds)]
        progress.advance()
        for name, structure in UPDATES.items():
            if structure is None:
                continue
            progress.begin(f"fitting {name}")
            rate = best_rate(name, others, steps)
            found = []
            for seed, other in enumerate(full):
                network, before, test = trained(seed, name, rate, steps)
                found.append(measured(network, other, before, test))
            count = sum(each.numel() for each in network.update)
            values = {measure: [each[measure] for each in found] for measure in MEASURES}
            rows.append({"update": name, "parameters": count, "learning_rate": rate, **values})
            progress.advance()
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Fits, shows and writes."""
    parser = argparse.ArgumentParser(description="SURM's Table 8: alignment with full training on a pinwheel.")
    parser.add_argument("--seeds", type=positive_integer, default=10, metavar="N", help="how many; default: 10")
    parser.add_argument("--tiny", action="store_true", help="twenty steps, for tests")
    program.add_results(parser)
    arguments = parser.parse_args(words)
    folder = program.results_folder(arguments.results, arguments.tiny)
    torch.set_num_threads(1)
    steps = 20 if arguments.tiny else 300
    rows = study(arguments.seeds, steps)
    setting = {
        "title": "pinwheel of five arms",
        "points": POINTS,
        "width": WIDTH,
        "steps": steps,
        "seeds": arguments.seeds,
    }
    document = header("pinwheel", setting) | {"rows": rows}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(terminal.table(HEADINGS, list(map(cells, rows))))
    for file in write_files(folder, {"pinwheel.json": text.encode()}):
        print(f"wrote {file}")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: mean and deviation of each measure."""
    parts = [row["update"], f"{row['parameters']}", f"{row['learning_rate']:g}"]
    for measure in MEASURES:
        deviation = statistics.stdev(row[measure]) if len(row[measure]) > 1 else 0.0
        parts.append(f"{statistics.fmean(row[measure]):.3f} ± {deviation:.3f}")
    return parts


if __name__ == "__main__":
    program.run(main)
