"""What the demo leaves behind: the table on the screen, the figures as JSON, the learning curves as PNG.

Both files are complete in memory before the first is written, and each is renamed into place, so that a failure leaves
either nothing or what was there before.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from surm_kernels.command import terminal
from surm_kernels.command.demo.models import METHOD_TITLES
from surm_kernels.command.demo.training import RunResult

CURVES_FILE = "learning_curves.png"
RESULTS_FILE = "results.json"
COLOURS = {
    "probe": "#7a7a7a", "lora": "#d55e00", "surm": "#0072b2", "toeplitz": "#56b4e9", "hydra": "#cc79a7",
    "siva": "#009e73",
}  # fmt: skip
MARKERS = {"probe": "s", "lora": "o", "surm": "D", "toeplitz": "v", "hydra": "P", "siva": "^"}
SMOOTHING = 0.9


HEADINGS = (
    "method", "test\naccuracy", "adapter\nparameters", "head\nparameters", "ms a step\n(median)", "training\nmemory",
)  # fmt: skip


def results_table(results: Sequence[RunResult]) -> str:
    """One row a run."""
    return terminal.table(HEADINGS, [_cells(result) for result in results])


def _cells(result: RunResult) -> list[str]:
    memory = result.training_memory_megabytes
    return [
        METHOD_TITLES[result.method],
        f"{result.test_accuracy:.3f}",
        f"{result.adapter_parameters:,}",
        f"{result.head_parameters:,}",
        f"{result.step_milliseconds:.0f}",
        "unknown" if memory is None else f"{memory:.0f} MB",
    ]


def _points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f} points"


def summary_lines(results: Sequence[RunResult], test_examples: int) -> list[str]:
    """What the table means and how its figures were measured."""
    by_method = {result.method: result for result in results}
    probe, lora = by_method.get("probe"), by_method.get("lora")
    ours = {title: by_method.get(method) for method, title in METHOD_TITLES.items() if method not in ("probe", "lora")}
    lines = []
    for title, result in ours.items():
        if result and probe:
            lines.append(f"{title} against the probe: {_points(result.test_accuracy - probe.test_accuracy)}")
        if result and lora:
            share = lora.adapter_parameters / result.adapter_parameters
            gain = _points(result.test_accuracy - lora.test_accuracy)
            lines.append(f"{title} against LoRA: {gain} with 1/{share:.0f} of the adapter parameters")
    accuracy = results[-1].test_accuracy
    error = 100 * (accuracy * (1 - accuracy) / test_examples) ** 0.5
    lines.append(f"standard error of an accuracy over {test_examples:,} test reviews: {error:.1f} points")
    lines.append("ms a step: median over the first epoch, in which all methods take every step in turns")
    lines.append("training memory: growth of the process's peak over its size with the model loaded")
    if probe:
        lines.append("the probe's features are computed once, in the first epoch; its later steps are the head's alone")
    return lines


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    smooth, total = [], 0.0
    for count, value in enumerate(values, start=1):
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        smooth.append(total / (1 - SMOOTHING**count))
    return smooth


def _spread(heights: Sequence[float], distance: float) -> list[float]:
    """The heights in their order, moved apart as little as needed to be `distance` from each other."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    spread = list(heights)
    for below, above in pairwise(order):
        lack = distance - (spread[above] - spread[below])
        if lack > 0:
            spread[above] += lack
    return spread


def _label_ends(axes: Axes, results: Sequence[RunResult]) -> None:
    """Writes every run's final accuracy beside the end of its line."""
    bottom, top = axes.get_ylim()
    heights = _spread([result.test_accuracy for result in results], distance=0.05 * (top - bottom))
    for result, height in zip(results, heights, strict=True):
        axes.annotate(
            f"{result.test_accuracy:.3f}",
            (result.accuracies[-1][0], height),
            xytext=(9, 0),
            textcoords="offset points",
            color=COLOURS[result.method],
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )


def _style(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def learning_curves(results: Sequence[RunResult]) -> bytes:
    """PNG with test accuracy and training loss of all runs over the steps."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    accuracy_axes, loss_axes = figure.subplots(1, 2)
    for result in results:
        colour, marker = COLOURS[result.method], MARKERS[result.method]
        label = f"{METHOD_TITLES[result.method]}, {result.adapter_parameters:,} adapter parameters"
        steps, accuracies = zip(*result.accuracies, strict=True)
        accuracy_axes.plot(steps, accuracies, color=colour, marker=marker, markersize=6, linewidth=2, label=label)
        train_steps = range(1, len(result.losses) + 1)
        loss_axes.plot(train_steps, result.losses, color=colour, linewidth=0.8, alpha=0.22)
        loss_axes.plot(train_steps, _smoothed(result.losses), color=colour, linewidth=2)
    _label_ends(accuracy_axes, results)
    for axes in (accuracy_axes, loss_axes):
        axes.set_xlim(left=0)
    _style(accuracy_axes, "Test accuracy", "share of test reviews classified correctly")
    _style(loss_axes, "Training loss, running mean (faint: each step)", "cross-entropy")
    figure.suptitle("MiniLM on movie reviews, fresh or rotten", fontsize=13)
    figure.legend(*accuracy_axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def to_json(document: Mapping[str, Any]) -> bytes:
    """The document as strict JSON text."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("utf-8")


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Writes all files into `folder`, which is made where it is missing; none appears before all are on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    try:
        for name, content in contents.items():
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            written[folder / name] = Path(temporary)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
        for target, source in written.items():
            source.replace(target)
    finally:
        for source in written.values():
            source.unlink(missing_ok=True)
    return list(written)
