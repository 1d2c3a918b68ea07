"""What a call costs beside its arithmetic: microseconds of every layer of Python and dispatch, at a size without work.

An adapted layer of 16 features with one token, beside the frozen layer alone and PEFT's LoRA, and a circulant layer
beside a torch.nn.Linear that is trained: the step (forward, the gradients of the input and of what is trained) and the
call without gradients, then what each floor of the adapted step takes by itself, called again and again. A whole step
takes more than its floors: nothing of it is in the processor's caches.

`python -m benchmarks.overhead [--strategy direct|merged] [--dtype TYPE]` prints a table in Markdown, on one thread.
"""

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import nn

from surm_kernels._timing import Effort, samples
from surm_kernels.command.bench import report
from surm_kernels.command.bench.records import Grid
from surm_kernels.cost_constants import MEASURED_TYPES
from surm_kernels.nn import AdaptedLinear, CirculantLinear
from surm_kernels.nn._adapted import record
from surm_kernels.nn._base import require_frozen
from surm_kernels.structures import CirculantProduct

FEATURES = 16
EFFORT = Effort(most=201, fewest=101, seconds=6.0, sample_seconds=1e-3)

Call = Callable[[], object]


class Step:
    """Forward and backward of a layer for one token, with the gradients of the input and of what is trained."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        self.layer = layer.to(dtype)
        self.x = torch.randn(1, FEATURES, dtype=dtype, requires_grad=True)
        self.g = torch.randn(1, FEATURES, dtype=dtype)
        self.leaves = [self.x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    def __call__(self) -> None:
        self.layer(self.x).backward(self.g)
        for leaf in self.leaves:
            leaf.grad = None

    def without_gradients(self) -> None:
        with torch.inference_mode():
            self.layer(self.x)


def frozen() -> nn.Linear:
    return nn.Linear(FEATURES, FEATURES).requires_grad_(False)


def lora() -> nn.Module | None:
    """PEFT's, None where it is not installed."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    model = get_peft_model(nn.Sequential(frozen()), LoraConfig(r=8, target_modules=["0"]))
    layer: nn.Module = model.base_model.model[0]
    return layer


def floors(step: Step) -> dict[str, Call]:
    """Each floor of a step of ours, from the operators up."""
    layer, x, g = step.layer, step.x, step.g
    assert isinstance(layer, AdaptedLinear)
    update, product, parameters = layer._update, layer._product, layer.structured_parameters()
    weight, bias = require_frozen(layer.base)
    inside, values = x.detach(), [parameter.detach() for parameter in parameters]
    assert isinstance(layer.structure, CirculantProduct)
    grid = layer.structure.factored(*values)
    assert grid is not None
    merged = None
    if layer.chosen(1) == "merged":
        merged = product._merged.of(update.structure, update.scale, x.dtype, weight, parameters)

    def unrecorded(call: Call) -> Call:
        return torch.no_grad()(call)

    calls = {
        "forward: the operator": unrecorded(lambda: grid.rows(inside, bias, 1.0)),
        "forward: with the frozen product": unrecorded(lambda: update.product(merged, inside, weight, bias, values)),
        "forward: recorded by autograd": lambda: record(update, merged, x, weight, bias, *parameters),
        "forward: the whole layer": lambda: layer(x),
        "backward: the operator": unrecorded(lambda: grid.gradients(g, inside, 1.0, merged is None)),
        "backward: with the frozen product": unrecorded(
            lambda: update.gradients(merged, g, inside, weight, values, True, True)
        ),
    }
    if merged is not None:
        del calls["forward: the operator"]
        calls["forward: the weight that is kept"] = lambda: product._merged.of(
            update.structure, update.scale, x.dtype, weight, parameters
        )
    return calls


def main(words: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What a call of an adapted layer costs beside its arithmetic.")
    parser.add_argument("--strategy", choices=("direct", "merged"), default="direct")
    parser.add_argument("--dtype", choices=MEASURED_TYPES, default=MEASURED_TYPES[0])
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = getattr(torch, given.dtype)
    ours = AdaptedLinear(frozen(), CirculantProduct(FEATURES, FEATURES), strategy=given.strategy)
    layers = {"frozen layer alone": frozen(), "PEFT LoRA, r = 8": lora(), "adapted, circulant product": ours}
    layers["nn.Linear, trained"] = nn.Linear(FEATURES, FEATURES)
    layers["CirculantLinear"] = CirculantLinear(FEATURES, FEATURES)
    steps = {name: Step(layer, dtype) for name, layer in layers.items() if layer is not None}
    calls: dict[str, Call] = {f"step: {name}": step for name, step in steps.items()}
    calls |= {f"without gradients: {name}": step.without_gradients for name, step in steps.items()}
    calls |= floors(steps["adapted, circulant product"])
    taken = samples(list(calls.values()), EFFORT)
    rows = [((name,), (f"{1e6 * median(times):.1f} µs",)) for name, times in zip(calls, taken, strict=True)]
    print("\n".join(f"- {name}: {value}" for name, value in report.facts().items()))
    print(report.to_markdown(Grid(f"{given.strategy}, {given.dtype}, one thread", ("", "time"), rows)))


if __name__ == "__main__":
    main()
