"""What a mixed batch of MiniLM costs: PEFT LoRA's, ours, and ours with many more adapters.

A call is a forward pass without gradients of sentences of one length, each with an adapter of its own drawn from those
there are; adapters sit on query and value. The calls are timed in turns in one process, and a ratio is taken within a
turn. Before that, some rows of ours are compared with what they are alone. Beside whole passes the table has what they
take more than the frozen model, which is what the adapters cost.

`python -m benchmarks.peft_mixed [--adapters 64 1000] [--rows 1024] [--tokens 16] [--threads N]` prints it in Markdown.
"""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from surm_kernels._timing import Effort, samples
from surm_kernels.command.bench import report
from surm_kernels.command.bench.measure import RIVAL_LIMITS, Spread
from surm_kernels.command.bench.records import Grid, duration
from surm_kernels.command.demo.models import ADAPTED_LAYERS, load_encoder
from surm_kernels.command.demo.requirements import model_folder, prepare_environment
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import positive_integer, threads_text
from surm_kernels.peft import SurmConfig

FROZEN, LORA = "frozen", "PEFT LoRA r = 8"
EFFORT = Effort(most=15, fewest=5, seconds=180.0)
LOOKED_AT = 8  # rows that are compared


def lora() -> Any:
    return LoraConfig(r=8, lora_alpha=16, init_lora_weights=False, target_modules=list(ADAPTED_LAYERS))


def circulant() -> Any:
    return SurmConfig(init_weights=False, alpha=100.0, target_modules=list(ADAPTED_LAYERS))


def adapted(encoder: nn.Module, configuration: Callable[[], Any], adapters: int) -> Any:
    """A copy of the encoder with so many adapters, called by their numbers."""
    model = get_peft_model(copy.deepcopy(encoder), configuration(), adapter_name="a0")
    for number in range(1, adapters):
        model.add_adapter(f"a{number}", configuration())
    return model.eval()


def drawn(adapters: int, rows: int) -> list[str]:
    """The adapter of every row."""
    numbers = torch.randint(adapters, (rows,), generator=torch.Generator().manual_seed(2))
    return [f"a{number}" for number in numbers.tolist()]


def require_right(title: str, model: Any, ids: Tensor, names: Sequence[str]) -> None:
    """Some rows of a mixed batch are what they are alone."""
    with torch.no_grad():
        found = model(input_ids=ids, adapter_names=list(names)).last_hidden_state
        for row in range(0, len(names), max(1, len(names) // LOOKED_AT)):
            model.set_adapter(names[row])
            wanted = model(input_ids=ids[row, None]).last_hidden_state
            if (found[row] - wanted[0]).norm() > RIVAL_LIMITS[wanted.dtype] * wanted.norm():
                raise SystemExit(f"{title}: row {row} is not what it is alone")


def call(model: Any, ids: Tensor, **options: Any) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model(input_ids=ids, **options)

    return run


def calls(encoder: nn.Module, counts: Sequence[int], ids: Tensor) -> dict[str, Callable[[], None]]:
    """Of the frozen model, of LoRA with the first count, of ours with each."""
    found = {FROZEN: call(encoder, ids)}
    fewest, rows = counts[0], len(ids)
    model = adapted(encoder, lora, fewest)
    found[f"{LORA}, {fewest} adapters"] = call(model, ids, adapter_names=drawn(fewest, rows))
    for count in counts:
        title, names = f"SURM circulant, {count} adapters", drawn(count, rows)
        model = adapted(encoder, circulant, count)
        require_right(title, model, ids, names)
        found[title] = call(model, ids, adapter_names=names)
    return found


def table(times: Mapping[str, Sequence[float]]) -> list[tuple[tuple[str, ...], ...]]:
    """Every call's time, LoRA's as its multiple, and both beyond the frozen model's."""
    frozen, rival = times[FROZEN], next(times[title] for title in times if title.startswith(LORA))
    more = [own - base for own, base in zip(rival, frozen, strict=True)]
    rows: list[tuple[tuple[str, ...], ...]] = []
    for title, own in times.items():
        extra = [a - b for a, b in zip(own, frozen, strict=True)]
        beyond = ("", "") if title == FROZEN else (duration(statistics.median(extra)), _times(more, extra))
        rows.append(((title,), (duration(statistics.median(own)),), (_times(rival, own),), *((b,) for b in beyond)))
    return rows


def _times(rival: Sequence[float], own: Sequence[float]) -> str:
    spread = Spread.of([theirs / mine for theirs, mine in zip(rival, own, strict=True)])
    return f"{spread.median:.2f}× ({spread.low:.2f} to {spread.high:.2f})"


def main(words: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Mixed batches of MiniLM under PEFT's LoRA and ours, in turns.")
    parser.add_argument("--adapters", type=positive_integer, nargs="+", default=[64, 1000], metavar="N")
    parser.add_argument("--rows", type=positive_integer, default=1024, metavar="N")
    parser.add_argument("--tokens", type=positive_integer, default=16, metavar="N")
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads(), metavar="N")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    prepare_environment()
    torch.manual_seed(0)
    encoder, _ = load_encoder(model_folder())
    encoder.requires_grad_(False).eval()
    ids = torch.randint(1000, 20000, (options.rows, options.tokens))
    with Progress(2) as progress:
        progress.begin("making adapters")
        contenders = calls(encoder, options.adapters, ids)
        progress.advance()
        progress.begin("measuring mixed batches")
        times = dict(zip(contenders, samples(list(contenders.values()), EFFORT), strict=True))
        progress.advance()
    print("\n".join(f"- {name}: {value}" for name, value in report.facts().items()))
    title = f"forward of MiniLM, {options.rows} × {options.tokens} tokens, {threads_text(torch.get_num_threads())}"
    heads = ("adapters, one drawn for each row", "a call", "LoRA's of it", "more than frozen", "LoRA's of that")
    print(report.to_markdown(Grid(title, heads, table(times))))


if __name__ == "__main__":
    main()
