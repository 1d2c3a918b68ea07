"""One run: a model adapted, trained, tested, and what its training did to the weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from examples.study import Measures
from surm_kernels import siva
from surm_kernels.command.demo.training import LossOf, Trained, training_steps

Evaluate = Callable[[], tuple[float, float | None]]  # the mean loss and the accuracy of a part of the data


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def train(
    model: nn.Module,
    head: nn.Module | None,
    rates: tuple[float, float],
    loss_of: LossOf,
    batches: Sequence[Sequence[int]],
    validate: Evaluate,
    test: Evaluate,
) -> Measures:
    """Trains a model that is adapted, and its head, at their learning rates, and measures what became of them."""
    heads = trainable(head) if head is not None else []
    adapters = trainable(model)
    trained: Trained = ((heads, rates[0]), (adapters, rates[1]))
    losses: list[float] = []
    start = time.perf_counter()
    diverged = False
    try:
        for loss, _ in training_steps(loss_of, trained, batches):
            losses.append(round(loss, 5))
    except FloatingPointError:
        diverged = True
    seconds = time.perf_counter() - start
    counts = (sum(each.numel() for each in adapters), sum(each.numel() for each in heads))
    if diverged:
        return Measures(*counts, losses, seconds)
    with torch.no_grad():
        validation, tested = validate(), test()
        if not math.isfinite(validation[0] + tested[0]):
            return Measures(*counts, losses, seconds)
        ranks, norm = spectra(model)
    return Measures(*counts, losses, seconds, *validation, *tested, ranks, norm)


def updates(model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of every layer that PEFT or we adapted, the frozen weight and its update, both (m, n)."""
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "get_delta_weight") and layer.supports_lora_conversion():
            yield layer.base_layer.weight, layer.get_delta_weight("default")


def spectra(model: nn.Module) -> tuple[list[float] | None, float | None]:
    """Means over the adapted weights: effective ranks before and after, and the update's norm over the weight's."""
    pairs = list(updates(model))
    if not pairs:
        return None, None
    before = statistics.fmean(siva.effective_rank(weight) for weight, _ in pairs)
    after = statistics.fmean(siva.effective_rank(weight + update) for weight, update in pairs)
    norm = statistics.fmean((update.norm() / weight.norm()).item() for weight, update in pairs)
    return [before, after], norm
