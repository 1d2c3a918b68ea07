"""What a training step of MiniLM costs under PEFT's methods and ours, and how long an adapter takes to start.

A step is forward, backward through the whole encoder (its input embeddings want a gradient, so the frozen model has a
backward too) and a small update of what is trained; adapters sit on query and value. The methods take their steps in
turns in one process, and a ratio is taken within a turn. Before that, our methods' outputs are compared with those of
their merged weights. The start is get_peft_model, save_pretrained and from_pretrained on a model of SmolLM2's shape.

`python benchmarks/peft_step.py [--threads N]` prints two tables in Markdown.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import C3AConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from surm_kernels._timing import Effort, samples
from surm_kernels.command.bench import report
from surm_kernels.command.bench.measure import RIVAL_LIMITS, Spread
from surm_kernels.command.bench.records import Grid, duration
from surm_kernels.command.bench.workload import Steps
from surm_kernels.command.demo.models import ADAPTED_LAYERS, load_encoder
from surm_kernels.command.demo.requirements import model_folder, prepare_environment
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer, threads_text
from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig

SENTENCES = ((8, 48), (32, 48))  # and tokens in each
OURS = ("SURM circulant", "SURM Toeplitz", "HyDRA", "SiVA")
EFFORT = Effort(most=31, fewest=9, seconds=60.0)


def configurations(layers: Sequence[str]) -> dict[str, Any]:
    """Of the methods, the frozen model without one."""
    targets = list(layers)
    return {
        "SURM circulant": SurmConfig(target_modules=targets),
        "frozen": None,
        "PEFT LoRA r = 8": LoraConfig(r=8, lora_alpha=16, target_modules=targets),
        "PEFT C3A, block 96": C3AConfig(block_size=96, target_modules=targets),
        "SURM Toeplitz": SurmConfig(structure="toeplitz", target_modules=targets),
        "HyDRA": HydraConfig(target_modules=targets),
        "SiVA": SivaConfig(target_modules=targets),
    }


class Step:
    """A training step of a model on fixed embeddings of its input."""

    def __init__(self, model: nn.Module, embedded: Tensor) -> None:
        self._model = model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._embedded = embedded.detach().requires_grad_()
        self._update = Steps(tuple(self._trained))
        self._gradient = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(1))

    def output(self) -> Tensor:
        return self._model(inputs_embeds=self._embedded).last_hidden_state

    def __call__(self) -> None:
        _, *gradients = torch.autograd.grad(self.output(), [self._embedded, *self._trained], self._gradient)
        if gradients:
            self._update(gradients)


def adapted(encoder: nn.Module, configuration: Any) -> nn.Module:
    """A copy of the encoder in training mode without dropout, adapted."""
    model: Any = copy.deepcopy(encoder).requires_grad_(False)
    if configuration is not None:
        torch.manual_seed(0)
        model = get_peft_model(model, configuration)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def require_right(title: str, model: Any, step: Step) -> None:
    """The output of a model that took a few steps is that of its merged weights."""
    for _ in range(3):
        step()
    with torch.no_grad():
        found = step.output()
        model.merge_adapter()
        wanted = step.output()
        model.unmerge_adapter()
    if (found - wanted).norm() > RIVAL_LIMITS[wanted.dtype] * wanted.norm():
        raise SystemExit(f"{title}: the output is not that of the merged weights")


def step_rows(encoder: Any, sentences: int, tokens: int) -> list[tuple[tuple[str, ...], ...]]:
    """Every method's time, and its multiple of the frozen model's."""
    torch.manual_seed(0)
    embedded = encoder.embeddings.word_embeddings(torch.randint(1000, 20000, (sentences, tokens)))
    models = {title: adapted(encoder, c) for title, c in configurations(ADAPTED_LAYERS).items()}
    steps = {title: Step(model, embedded) for title, model in models.items()}
    for title in OURS:
        require_right(title, models[title], steps[title])
    times = dict(zip(steps, samples(list(steps.values()), EFFORT), strict=True))
    return [
        (
            (f"{title}, {sentences} × {tokens}",),
            (duration(statistics.median(times[title])),),
            (_multiple(times, title),),
        )
        for title in steps
    ]


def _multiple(times: Mapping[str, Sequence[float]], title: str) -> str:
    spread = Spread.of([own / frozen for own, frozen in zip(times[title], times["frozen"], strict=True)])
    return f"{spread.median:.3f}× ({spread.low:.3f} to {spread.high:.3f})"


def start(model: nn.Module, configuration: Any) -> Callable[[], None]:
    """Making an adapter, saving it, and loading it on the same base."""

    def call() -> None:
        copied: Any = copy.deepcopy(configuration)
        adapted: Any = get_peft_model(model, copied)
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            PeftModel.from_pretrained(adapted.unload(), folder).unload()

    return call


def start_rows() -> list[tuple[tuple[str, ...], ...]]:
    """Of SURM's circulant and of LoRA, on random weights in the shape of SmolLM2-135M."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=1024,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model = LlamaForCausalLM(shape)
    found = configurations(("q_proj", "v_proj"))
    chosen = {title: start(model, found[title]) for title in ("SURM circulant", "PEFT LoRA r = 8")}
    times = dict(zip(chosen, samples(list(chosen.values()), EFFORT), strict=True))
    ours, theirs = times.values()
    spread = Spread.of([mine / own for mine, own in zip(ours, theirs, strict=True)])
    ratios = (f"{spread.median:.2f}× ({spread.low:.2f} to {spread.high:.2f})", "1×")
    return [
        ((title,), (duration(statistics.median(times[title])),), (ratio,))
        for title, ratio in zip(chosen, ratios, strict=True)
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Training steps of MiniLM under PEFT's methods and ours, in turns.")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads(), metavar="N")
    torch.set_num_threads(parser.parse_args(words).threads)
    prepare_environment()
    encoder, _ = load_encoder(model_folder())
    rows = []
    with Progress(len(SENTENCES) + 1) as progress:
        for sentences, tokens in SENTENCES:
            progress.begin(f"measuring steps of {sentences} × {tokens} tokens")
            rows += step_rows(encoder, sentences, tokens)
            progress.advance()
        progress.begin("measuring the start")
        starts = start_rows()
        progress.advance()
    threads = threads_text(torch.get_num_threads())
    print("\n".join(f"- {name}: {value}" for name, value in report.facts().items()))
    title = f"training steps of MiniLM, query and value, float32, {threads}"
    print(report.to_markdown(Grid(title, ("method, sentences × tokens", "a step", "of the frozen model's"), rows)))
    title = f"get_peft_model, save, load; shape of SmolLM2, {threads}"
    print(report.to_markdown(Grid(title, ("method", "time", "of LoRA's"), starts)))


if __name__ == "__main__":
    main()
