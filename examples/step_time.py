"""What a training step of the MiniLM table costs in time and memory, by method.

Time: 16 sentences of 32 tokens through all six layers, forward, backward and AdamW's update, all methods taking their
steps in turns, in an order that rotates; multiples of the frozen model's step (forward, backward to the embedded input)
are taken within a turn. Memory: the growth of the peak of a process of its own over three steps, with its model loaded.

`python -m examples.step_time [--methods NAME …] [--seconds N] [--tiny] [--results FOLDER]` shows a table and writes
step_time.json. It says how many other programs wanted the machine; on a shared one, times are no figures to quote.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from examples import program
from examples.methods import METHODS, TABLE
from examples.study import header
from surm_kernels._timing import Effort, samples
from surm_kernels.command import machine, terminal
from surm_kernels.command.demo.models import load_encoder
from surm_kernels.command.demo.report import write_files
from surm_kernels.command.demo.requirements import model_folder, prepare_environment
from surm_kernels.command.peak_memory import PeakMemory
from surm_kernels.command.usage import positive_integer

SENTENCES, TOKENS = 16, 32
FROZEN = "probe"
HEADINGS = ("method", "ms a step", "of the frozen model's", "MB")


def encoder(tiny: bool) -> Any:
    """MiniLM, or a random encoder of one layer."""
    if not tiny:
        return load_encoder(model_folder())[0]
    from transformers import BertConfig, BertModel

    shape = BertConfig(vocab_size=64, hidden_size=384, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return BertModel(shape, add_pooling_layer=False)


def step_of(model: Any, method: str) -> Callable[[], None]:
    """A training step of a copy of the model under a method, on fixed sentences."""
    torch.manual_seed(0)
    body: nn.Module = METHODS[method].adapt(copy.deepcopy(model)).eval()
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(SENTENCES, TOKENS, 384, generator=generator, requires_grad=True)
    gradient = torch.randn(SENTENCES, TOKENS, 384, generator=generator)
    trained = [parameter for parameter in body.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained or [torch.zeros(1)], 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        embedded.grad = None
        output: Tensor = body(inputs_embeds=embedded).last_hidden_state
        output.backward(gradient)
        optimizer.step()

    return step


def memory_of(method: str, tiny: bool, threads: int) -> float | None:
    """Megabytes that three steps add to the peak of this process."""
    torch.set_num_threads(threads)
    prepare_environment()
    step = step_of(encoder(tiny), method)
    memory = PeakMemory.start()
    for _ in range(3):
        step()
    return memory.growth()


def in_fresh_process(call: Callable[..., float | None], *arguments: Any) -> float | None:
    """What a call gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def measured(methods: Sequence[str], tiny: bool, threads: int, effort: Effort) -> list[dict[str, Any]]:
    """The seconds, their multiples of the frozen model's, and the memory of each method."""
    model = encoder(tiny)
    times = samples([step_of(model, method) for method in methods], effort)
    frozen = times[methods.index(FROZEN)]
    rows = []
    for method, own in zip(methods, times, strict=True):
        low, middle, high = statistics.quantiles([mine / other for mine, other in zip(own, frozen, strict=True)], n=4)
        memory = in_fresh_process(memory_of, method, tiny, threads)
        rows.append(
            {
                "method": method,
                "title": METHODS[method].title,
                "seconds": statistics.median(own),
                "multiple": [low, middle, high],
                "megabytes": memory,
            }
        )
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measures, shows and writes."""
    parser = argparse.ArgumentParser(description="Training steps of the MiniLM table in turns, and their memory.")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(TABLE), metavar="METHOD")
    parser.add_argument("--seconds", type=positive_integer, default=120, metavar="N", help="of timing; default: 120")
    parser.add_argument("--threads", type=positive_integer, default=2, metavar="N", help="default: 2")
    parser.add_argument("--tiny", action="store_true", help="a random model and few steps, for tests")
    program.add_results(parser)
    arguments = parser.parse_args(words)
    folder = program.results_folder(arguments.results, arguments.tiny)
    torch.set_num_threads(arguments.threads)
    prepare_environment()
    methods = list(dict.fromkeys([FROZEN, *arguments.methods]))
    effort = Effort(most=3, fewest=3, seconds=1.0) if arguments.tiny else Effort(31, 9, arguments.seconds)
    load = machine.load()
    rows = measured(methods, arguments.tiny, arguments.threads, effort)
    setting = {
        "title": f"training steps of MiniLM, {SENTENCES} × {TOKENS} tokens, query and value of all layers",
        "threads": arguments.threads,
        "load_before": load,
        "shared": load > 0.5,
    }
    document = header("step_time", setting) | {"rows": rows}
    print(terminal.table(HEADINGS, list(map(cells, rows))))
    print("other programs wanted the machine: not to be quoted" if setting["shared"] else "a quiet machine")
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    for file in write_files(folder, {"step_time.json": text.encode()}):
        print(f"wrote {file}")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    low, middle, high = row["multiple"]
    memory = "unknown" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
    return [row["title"], f"{1e3 * row['seconds']:.0f}", f"{middle:.3f}× ({low:.3f} to {high:.3f})", memory]


if __name__ == "__main__":
    program.run(main)
