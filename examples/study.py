"""What the examples have in common: a study of methods by runs whose results are kept as they come.

A run is one training, told by method, number of training examples, learning rate and seed. Every run is written to the
study's file as it ends, and one that is there already is not made again. A file is one JSON object:

    example, setting, machine, versions    what was run, and on what
    summary     one object for every method and number of examples of which a learning rate was chosen:
        method, title, examples, adapter_parameters, head_parameters
        learning_rate, tried        the chosen one, and the validation loss of each, by rate (null where it diverged)
        seeds, accuracies, losses   of the runs at the chosen rate, the latter two on the test set
        mean, deviation             of the accuracies (sample deviation; null for less than two), null where none is
        perplexity                  exp of the mean of the losses
        effective_rank              means of those of the adapted weights before and after, over all seeds, or null
        update_norm                 mean of |dW| / |W| over the adapted weights and all seeds, or null
        loss_curve                  the loss of every training step, mean over the seeds
    runs        one object for every run, see `Run`; training_losses are the losses of every step

The learning rate of a method is the one with the least loss on the validation part, by runs with the first seed: of
three, each four times the one before; while the best is at an end, the next one beyond is tried too, five in all. The
first seed is that of the first run in the file, so that later commands may name other seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from examples.methods import METHODS
from examples.program import add_results
from surm_kernels.command import machine
from surm_kernels.command.demo.report import write_files
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer

FACTOR, MOST = 4.0, 5  # from one learning rate to the next, and how many are tried
PACKAGES = ("transformers", "peft", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Measures:
    """What a run found. Losses are means; those of a part are None where the training diverged."""

    adapter_parameters: int
    head_parameters: int
    training_losses: list[float]
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    effective_rank: list[float] | None = None  # before and after
    update_norm: float | None = None


@dataclass(frozen=True)
class Run:
    """What a run was, and its measures."""

    method: str
    examples: int
    learning_rate: float
    seed: int
    measures: Measures

    @property
    def identity(self) -> tuple[str, int, float, int]:
        return self.method, self.examples, self.learning_rate, self.seed


@dataclass(frozen=True)
class Task:
    """A method to be tried with so many training examples; `usual` is the number for which its rate is looked for."""

    method: str
    examples: int
    usual: int


Train = Callable[[str, int, float, int], Measures]  # of method, examples, learning rate and seed


def next_rate(middle: float, losses: Mapping[float, float]) -> float | None:
    """The next learning rate to try after those that have losses, None where the best is known."""
    for rate in (middle, middle / FACTOR, middle * FACTOR):
        if rate not in losses:
            return rate
    best = best_rate(losses)
    if len(losses) >= MOST or min(losses) < best < max(losses):
        return None
    return best / FACTOR if best == min(losses) else best * FACTOR


def best_rate(losses: Mapping[float, float]) -> float:
    """The learning rate with the least loss, the lowest of equals."""
    return min(sorted(losses), key=losses.__getitem__)


class Results:
    """The file of a study; several processes may add to it."""

    def __init__(self, file: Path, header: Mapping[str, Any]) -> None:
        self.file, self._header = file, header
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(file.with_name(f".{file.name}.lock"))
        with self._lock:
            self.runs = self._read()

    def has(self, *identity: Any) -> bool:
        """Whether the run of a method, a number of examples, a learning rate and a seed was made."""
        return any(run.identity == identity for run in self.runs)

    def tried(self, method: str, examples: int, seed: int) -> dict[float, float]:
        """The validation loss of each learning rate, infinite where the training diverged."""
        return {
            run.learning_rate: math.inf if run.measures.validation_loss is None else run.measures.validation_loss
            for run in self.runs
            if (run.method, run.examples, run.seed) == (method, examples, seed)
        }

    def add(self, run: Run) -> None:
        """Adds a run to the file, beside what other processes have added."""
        with self._lock:
            self.runs = [*(other for other in self._read() if other.identity != run.identity), run]
            write_files(self.file.parent, {self.file.name: self._text().encode()})

    def first_seed(self, method: str, examples: int) -> int | None:
        """The seed with which learning rates were tried, None where none was."""
        return next((run.seed for run in self.runs if (run.method, run.examples) == (method, examples)), None)

    def _read(self) -> list[Run]:
        """The runs of the file; SystemExit where it is another study's, or none."""
        if not self.file.exists():
            return []
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
            runs = [_run(item) for item in document["runs"]]
            there, wanted = (_numbers(each.get("setting", {})) for each in (document, self._header))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"{self.file} is no file of this study: {type(error).__name__}: {error}") from None
        if unknown := {run.method for run in runs} - set(METHODS):
            raise SystemExit(f"{self.file} has methods that are not known: {', '.join(sorted(unknown))}")
        if wanted and there != wanted:
            raise SystemExit(f"{self.file} is of another setting: {there} instead of {wanted}; name another --results")
        return runs

    def _text(self) -> str:
        """Strict JSON, a line for each run."""
        parts: dict[str, Any] = {**self._header, "summary": summary(self.runs), "runs": list(map(_item, self.runs))}
        lines = []
        for name, value in parts.items():
            text = json.dumps(value, allow_nan=False)
            if isinstance(value, list):
                text = "[\n  " + ",\n  ".join(json.dumps(item, allow_nan=False) for item in value) + "\n ]"
            lines.append(f' "{name}": {text}')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _numbers(setting: Mapping[str, Any]) -> dict[str, float]:
    """What of a setting runs have to share; its words may change."""
    return {name: value for name, value in setting.items() if isinstance(value, (int, float))}


def _item(run: Run) -> dict[str, Any]:
    flat = asdict(run)
    return flat | flat.pop("measures")


def _run(item: dict[str, Any]) -> Run:
    identity = {name: item.pop(name) for name in ("method", "examples", "learning_rate", "seed")}
    return Run(**identity, measures=Measures(**item))


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What is chosen and found of every method and number of examples, in the order of the methods."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.examples), []).append(run)
    order = list(METHODS)
    return [_summary_of(*key, groups[key]) for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1]))]


def _summary_of(method: str, examples: int, runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0].seed  # the rates are tried with it before any other seed has its turn
    tried = {run.learning_rate: run.measures.validation_loss for run in runs if run.seed == first}
    rate = best_rate({rate: math.inf if loss is None else loss for rate, loss in tried.items()})
    chosen = [run for run in runs if run.learning_rate == rate]
    found = [run.measures for run in chosen]
    accuracies = [each.test_accuracy for each in found]
    whole = [value for value in accuracies if value is not None]
    losses = [each.test_loss for each in found]
    ranks = [each.effective_rank for each in found if each.effective_rank is not None]
    norms = [each.update_norm for each in found if each.update_norm is not None]
    finite = [loss for loss in losses if loss is not None]
    return {
        "method": method,
        "title": METHODS[method].title,
        "examples": examples,
        "adapter_parameters": found[0].adapter_parameters,
        "head_parameters": found[0].head_parameters,
        "learning_rate": rate,
        "tried": {repr(rate): tried[rate] for rate in sorted(tried)},
        "seeds": [run.seed for run in chosen],
        "accuracies": accuracies,
        "losses": losses,
        "mean": statistics.fmean(whole) if whole else None,
        "deviation": statistics.stdev(whole) if len(whole) > 1 else None,
        "perplexity": math.exp(statistics.fmean(finite)) if finite else None,
        "effective_rank": [round(statistics.fmean(each), 3) for each in zip(*ranks, strict=True)] or None,
        "update_norm": statistics.fmean(norms) if norms else None,
        "loss_curve": [
            round(statistics.fmean(step), 4) for step in zip(*(each.training_losses for each in found), strict=False)
        ],
    }


def carry_out(results: Results, tasks: Sequence[Task], seeds: Sequence[int], train: Train) -> None:
    """Makes all runs that the tasks want and the results do not have."""
    with Progress(len(tasks), "studying") as progress:
        for task in tasks:
            rate = _chosen_rate(results, task, seeds[0], train, progress)
            for seed in seeds:
                _ensure(results, task.method, task.examples, rate, seed, train, progress)
            progress.advance()


def _chosen_rate(results: Results, task: Task, seed: int, train: Train, progress: Progress) -> float:
    """The learning rate of a task, by the rule or by what it follows; `seed` where none was tried before."""
    leader = METHODS[task.method].follows or task.method
    middle = METHODS[leader].learning_rate
    if not middle:
        return 0.0
    while True:
        first = results.first_seed(leader, task.usual)
        tried = results.tried(leader, task.usual, seed if first is None else first)
        rate = next_rate(middle, tried)
        if rate is None:
            return best_rate(tried)
        _ensure(results, leader, task.usual, rate, seed if first is None else first, train, progress)


def _ensure(
    results: Results, method: str, examples: int, rate: float, seed: int, train: Train, progress: Progress
) -> None:
    if results.has(method, examples, rate, seed):
        return
    progress.begin(f"{METHODS[method].title}, {examples} examples, learning rate {rate:g}, seed {seed}")
    measures = train(method, examples, rate, seed)
    results.add(Run(method, examples, rate, seed, measures))
    accuracy = "" if measures.test_accuracy is None else f", accuracy {measures.test_accuracy:.3f}"
    loss = "diverged" if measures.test_loss is None else f"test loss {measures.test_loss:.4f}"
    progress.print(f"  {loss}{accuracy}, {measures.seconds:.1f} s")


def add_arguments(parser: argparse.ArgumentParser, methods: Sequence[str] | None = None) -> None:
    """What all examples can be told; `methods` are those that are tried unless others are named."""
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=methods,
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--tiny", action="store_true", help="a random model and made-up data, for tests")
    add_results(parser)
    parser.add_argument("--threads", type=positive_integer, default=1, metavar="N", help="default: 1")


def header(example: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says before its runs."""
    return {
        "example": example,
        "setting": dict(setting),
        "machine": {"processor": machine.processor(), "cores": machine.cores(), "kernels": machine.kernels()},
        "versions": machine.versions(*PACKAGES),
    }
