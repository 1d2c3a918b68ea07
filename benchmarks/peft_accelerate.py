"""What accelerate() is worth: training steps of PEFT's C3A and LoKr with and without it, in turns in one process.

Linear layers of 768 features at several numbers of tokens, and MiniLM with adapters on query and value. A step is
forward, the gradients of what is trained (and, for a layer, of its input) and a small update. Nothing is timed whose
outputs differ; a ratio is taken within a turn.

`python benchmarks/peft_accelerate.py [--threads N]` prints a table in Markdown.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from peft import C3AConfig, LoKrConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from surm_kernels._timing import Effort, samples, wall_clock
from surm_kernels.command.bench import report
from surm_kernels.command.bench.measure import RIVAL_LIMITS, Spread
from surm_kernels.command.bench.records import Grid, duration
from surm_kernels.command.bench.workload import Steps
from surm_kernels.command.demo.models import ADAPTED_LAYERS, load_encoder
from surm_kernels.command.demo.requirements import model_folder, prepare_environment
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer, threads_text
from surm_kernels.peft import accelerated

FEATURES, TOKENS = 768, (512, 1024, 2048)
SENTENCES = ((16, 48), (32, 48))  # of MiniLM: sentences and tokens in each
METHODS: dict[str, Callable[[list[str]], PeftConfig]] = {
    "C3A, block 96": lambda names: C3AConfig(block_size=96, target_modules=names),
    "LoKr, r = 8": lambda names: LoKrConfig(r=8, alpha=8, target_modules=names, init_weights=False),
    "LoKr, r = 8, factor 8": lambda names: LoKrConfig(
        r=8, alpha=8, decompose_factor=8, target_modules=names, init_weights=False
    ),
}
EFFORT = Effort(most=21, fewest=7, seconds=4.0)


@dataclass(frozen=True)
class Step:
    """A training step, on our kernels or on PEFT's own; called, it gives the output."""

    output: Callable[[], Tensor]
    gradient: Tensor  # of the output
    leaves: tuple[Tensor, ...]  # what is trained comes last
    update: Steps
    trained: int
    accelerated: bool

    def __call__(self) -> Tensor:
        y = self.output()
        gradients = torch.autograd.grad(y, self.leaves, self.gradient)
        self.update(gradients[-self.trained :])
        return y.detach()


def clock(call: Callable[[], object], calls: int) -> float:
    """The seconds of a step; switching is not timed."""
    with accelerated() if isinstance(call, Step) and call.accelerated else nullcontext():
        return wall_clock(call, calls)


def steps(output: Callable[[], Tensor], model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Step, Step]:
    """With and without accelerate(), of the same model."""
    trained = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    leaves, gradient = (*inputs, *trained), torch.randn_like(output())
    ours, own = (Step(output, gradient, leaves, Steps(trained), len(trained), on) for on in (True, False))
    return ours, own


def layer_steps(method: str, tokens: int) -> tuple[Step, Step]:
    """Of a linear layer."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(FEATURES, FEATURES)), METHODS[method](["0"])).train()
    x = torch.randn(tokens, FEATURES, requires_grad=True)
    return steps(lambda: model(x), model, (x,))


def encoder_steps(method: str, sentences: int, tokens: int) -> tuple[Step, Step]:
    """Of MiniLM, without dropout."""
    torch.manual_seed(0)
    encoder, _ = load_encoder(model_folder())
    model = get_peft_model(encoder, METHODS[method](list(ADAPTED_LAYERS))).eval()
    words = torch.randint(1000, 20000, (sentences, tokens))
    mask = torch.ones_like(words)
    return steps(lambda: model(input_ids=words, attention_mask=mask).last_hidden_state, model, ())


def row(title: str, pair: tuple[Step, Step]) -> tuple[tuple[str, ...], ...]:
    """The times of both and their ratio, quartiles in brackets; refused where the outputs differ."""
    with accelerated():
        found = pair[0].output()
    wanted = pair[1].output()
    if (found - wanted).norm() > RIVAL_LIMITS[wanted.dtype] * wanted.norm():
        raise SystemExit(f"{title}: the outputs differ")
    ours, own = samples(pair, EFFORT, clock)
    ratio = Spread.of([theirs / mine for theirs, mine in zip(own, ours, strict=True)])
    spread = f"{ratio.median:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"
    return (title,), (duration(statistics.median(own)),), (duration(statistics.median(ours)),), (spread,)


def main(words: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Training steps of PEFT's C3A and LoKr with and without accelerate().")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads(), metavar="N")
    torch.set_num_threads(parser.parse_args(words).threads)
    prepare_environment()
    cases = {
        f"{method}, {FEATURES} → {FEATURES} × {tokens}": partial(layer_steps, method, tokens)
        for method in METHODS
        for tokens in TOKENS
    } | {
        f"{method}, MiniLM q and v, {sentences} × {tokens}": partial(encoder_steps, method, sentences, tokens)
        for method in METHODS
        for sentences, tokens in SENTENCES
    }
    rows = []
    with Progress(len(cases)) as progress:
        for title, make in cases.items():
            progress.begin(f"measuring {title}")
            rows.append(row(title, make()))
            progress.advance()
    title = f"training steps, float32, {threads_text(torch.get_num_threads())}"
    print("\n".join(f"- {name}: {value}" for name, value in report.facts().items()))
    print(report.to_markdown(Grid(title, ("step", "PEFT", "accelerated", "times faster"), rows)))


if __name__ == "__main__":
    main()
