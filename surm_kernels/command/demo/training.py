"""One method trained and tested: the same examples, batches, head and schedule whichever the method.

A step is timed from the choice of its examples to the end of the optimizer's update, and between steps a run waits for
its turn. The figure of a method is the median over the first epoch. There the probe computes the features of its
examples, which do not change and are kept for the epochs that follow, whose steps are those of the head alone.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional as F

from surm_kernels.command.demo.data import EncodedExamples, Snippet
from surm_kernels.command.demo.models import SentenceClassifier
from surm_kernels.command.peak_memory import PeakMemory

BATCH_SIZE = 32
TEST_BATCH_SIZE = 64
TOKENS = 48
HEAD_LEARNING_RATE = 5e-3
WARM_UP_SHARE = 0.3
EVALUATIONS = 5


@dataclass(frozen=True)
class Settings:
    """What one run needs to know; small, so that it can be sent to a process of its own."""

    method: str
    epochs: int
    train_examples: int
    test_examples: int
    seed: int
    threads: int | None
    adapter_learning_rate: float


@dataclass(frozen=True)
class Event:
    """What a run tells before it waits for its turn: how many steps are done, and the accuracy where it has tested."""

    step: int
    steps: int
    accuracy: float | None = None


@dataclass
class RunResult:
    """The figures of one run; times in milliseconds or seconds and memory in megabytes, as the names say."""

    method: str
    test_accuracy: float
    adapter_parameters: int
    head_parameters: int
    adapter_learning_rate: float
    step_milliseconds: float
    head_step_milliseconds: float | None
    training_memory_megabytes: float | None
    peak_resident_megabytes: float | None
    training_seconds: float
    threads: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


Emit = Callable[[Event], None]
LogitsOf = Callable[[Sequence[int]], torch.Tensor]  # of the examples at some indices
LossOf = Callable[[Sequence[int]], torch.Tensor]  # likewise, their mean
Trained = Sequence[tuple[Sequence[torch.nn.Parameter], float]]  # groups of parameters, each with its learning rate


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    pad_token_id: int

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]: ...


def encode(snippets: Sequence[Snippet], tokenizer: Tokenizer) -> EncodedExamples:
    """The snippets as token ids, cut to TOKENS, and their labels."""
    tokens = tokenizer([snippet.text for snippet in snippets], truncation=True, max_length=TOKENS)["input_ids"]
    labels = torch.tensor([snippet.label for snippet in snippets])
    return EncodedExamples(tokens, labels, tokenizer.pad_token_id)


def whole_model(model: SentenceClassifier, examples: EncodedExamples) -> LogitsOf:
    """Logits through encoder and head, for methods that train inside the encoder."""

    def logits(indices: Sequence[int]) -> torch.Tensor:
        batch = examples.batch(indices)
        found: torch.Tensor = model(batch.tokens, batch.mask)
        return found

    return logits


def head_only(model: SentenceClassifier, examples: EncodedExamples) -> LogitsOf:
    """Logits of the head over the frozen encoder's features, which are computed once an example."""
    rows: dict[int, torch.Tensor] = {}

    def logits(indices: Sequence[int]) -> torch.Tensor:
        if missing := [index for index in indices if index not in rows]:
            batch = examples.batch(missing)
            with torch.no_grad():
                rows.update(zip(missing, model.features(batch.tokens, batch.mask), strict=True))
        found: torch.Tensor = model.head(torch.stack([rows[index] for index in indices]))
        return found

    return logits


def accuracy(logits_of: LogitsOf, examples: EncodedExamples) -> float:
    """Share of all examples that are classified correctly."""
    correct = 0
    with torch.inference_mode():
        for indices in examples.sorted_batches(TEST_BATCH_SIZE):
            correct += int((logits_of(indices).argmax(dim=1) == examples.labels[indices]).sum())
    return correct / len(examples)


def all_batches(examples: EncodedExamples, epochs: int, seed: int) -> list[list[int]]:
    """The batches of all epochs in order; they depend on the examples and the seed alone."""
    generator = random.Random(seed)
    return [batch for _ in range(epochs) for batch in examples.shuffled_batches(BATCH_SIZE, generator)]


def evaluation_steps(steps: int, evaluations: int = EVALUATIONS) -> set[int]:
    """Evenly spread steps after which the test set is classified, the last one among them."""
    return {max(1, round(steps * number / evaluations)) for number in range(1, evaluations + 1)}


def make_optimizer(trained: Trained, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW under a one-cycle schedule, each group with a learning rate of its own."""
    groups = [(list(parameters), rate) for parameters, rate in trained if parameters]
    optimizer = torch.optim.AdamW([{"params": parameters} for parameters, _ in groups])
    rates = [rate for _, rate in groups]
    # A share that ends its warm-up exactly at the first step divides by zero, so very short runs warm up for half.
    warm_up = WARM_UP_SHARE if steps * WARM_UP_SHARE > 2 else 0.5
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(steps, 4), pct_start=warm_up)
    return optimizer, schedule


def training_steps(
    loss_of: LossOf, trained: Trained, batches: Sequence[Sequence[int]]
) -> Iterator[tuple[float, float]]:
    """Trains on `batches` and yields the loss and the seconds of every step."""
    optimizer, schedule = make_optimizer(trained, len(batches))
    for step, indices in enumerate(batches, start=1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(indices)
        loss.backward()
        optimizer.step()
        schedule.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"training diverged: the loss of step {step} is {value}")
        yield value, time.perf_counter() - start


def cross_entropy(logits_of: LogitsOf, labels: torch.Tensor) -> LossOf:
    """The mean cross-entropy of the examples at some indices."""
    return lambda indices: F.cross_entropy(logits_of(indices), labels[list(indices)])


def run_method(
    model: SentenceClassifier, train: EncodedExamples, test: EncodedExamples, settings: Settings, emit: Emit
) -> RunResult:
    """Trains `model` in place and returns its figures; `emit` hears of every step and test, and keeps it waiting."""
    memory = PeakMemory.start()
    batches = all_batches(train, settings.epochs, settings.seed)
    steps, evaluate_after = len(batches), evaluation_steps(len(batches))
    frozen = not model.adapter_parameters()
    logits_of = head_only if frozen else whole_model
    train_logits, test_logits = logits_of(model, train), logits_of(model, test)
    losses: list[float] = []
    seconds: list[float] = []
    accuracies: list[tuple[int, float]] = []
    emit(Event(0, steps))
    trained = (
        (list(model.head.parameters()), HEAD_LEARNING_RATE),
        (model.adapter_parameters(), settings.adapter_learning_rate),
    )
    for loss, duration in training_steps(cross_entropy(train_logits, train.labels), trained, batches):
        losses.append(loss)
        seconds.append(duration)
        emit(Event(len(losses), steps))
        if len(losses) in evaluate_after:
            accuracies.append((len(losses), accuracy(test_logits, test)))
            emit(Event(len(losses), steps, accuracies[-1][1]))
    first_epoch = steps // settings.epochs
    later = seconds[first_epoch:]
    return RunResult(
        method=settings.method,
        test_accuracy=accuracies[-1][1],
        adapter_parameters=sum(parameter.numel() for parameter in model.adapter_parameters()),
        head_parameters=sum(parameter.numel() for parameter in model.head.parameters()),
        adapter_learning_rate=settings.adapter_learning_rate,
        step_milliseconds=1e3 * statistics.median(seconds[:first_epoch]),
        head_step_milliseconds=1e3 * statistics.median(later) if frozen and later else None,
        training_memory_megabytes=memory.growth(),
        peak_resident_megabytes=memory.peak(),
        training_seconds=sum(seconds),
        threads=torch.get_num_threads(),
        losses=losses,
        accuracies=accuracies,
    )
