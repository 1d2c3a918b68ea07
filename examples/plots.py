"""Pictures of studies, from their files: `python -m examples.plots FILE …` draws them anew."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples import program
from surm_kernels.command.demo.report import write_files

#: A family of methods by the beginning of their names: what it is called, its colour and its mark.
FAMILIES = {
    "lora": ("LoRA", "#d55e00", "o"),
    "circulant": ("SURM", "#0072b2", "D"),
    "toeplitz": ("SURM", "#0072b2", "D"),
    "kronecker": ("SURM", "#0072b2", "D"),
    "ldr": ("SURM", "#0072b2", "D"),
    "block_circulant": ("SURM", "#0072b2", "D"),
    "hydra": ("HyDRA", "#cc79a7", "P"),
    "siva": ("SiVA", "#009e73", "^"),
    "adapter": ("adapters after layers", "#8c564b", "X"),
    "": ("other methods of PEFT", "#7a7a7a", "s"),
}
COLOURS = ("#7a7a7a", "#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7")
Entry = dict[str, Any]  # one of the summary of a study's file


def family(method: str) -> tuple[str, str, str]:
    """Name, colour and mark of the family of a method."""
    return next(found for start, found in FAMILIES.items() if method.startswith(start))


def draw(file: Path) -> list[Path]:
    """All pictures that a study's file has something for, beside it."""
    document = program.read(file)
    title, usual = document["setting"]["title"], document["setting"]["examples"]
    summary = document["summary"]
    entries = [entry for entry in summary if entry["examples"] == usual]
    pictures = {file.stem: by_parameters(entries, title)}
    if any(entry["examples"] != usual for entry in summary):
        pictures[f"{file.stem}_low_resource"] = by_examples(summary, title)
    starts = [entry for entry in entries if entry["method"] in ("circulant", "circulant_repo", "circulant_random")]
    if len(starts) > 1:
        pictures[f"{file.stem}_starts"] = loss_curves(starts, title)
    return write_files(file.parent, {f"{name}.png": _png(figure) for name, figure in pictures.items()})


def by_parameters(entries: Sequence[Entry], title: str) -> Figure:
    """Accuracy, or perplexity where there is none, over trained numbers; bars are sample deviations over the seeds."""
    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    measure = "mean" if any(entry["mean"] is not None for entry in entries) else "perplexity"
    seen = set()
    for entry in entries:
        height = entry[measure]
        if height is None:
            continue
        if not entry["adapter_parameters"]:
            axes.axhline(height, color="#7a7a7a", linestyle="--", linewidth=1)
            axes.annotate("nothing adapted", (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom")
            continue
        name, colour, mark = family(entry["method"])
        spread = entry["deviation"] if measure == "mean" else None
        axes.errorbar(
            entry["adapter_parameters"], height, yerr=spread, color=colour, marker=mark, linestyle="", elinewidth=0.8,
            alpha=0.85, label=None if name in seen else name,
        )  # fmt: skip
        seen.add(name)
    axes.set_xscale("log")
    _style(axes, title, "trained numbers beside the head", {"mean": "test accuracy"}.get(measure, "test perplexity"))
    if seen:
        axes.legend(frameon=False, fontsize=9)
    return figure


def by_examples(summary: Sequence[Entry], title: str) -> Figure:
    """Accuracy over the number of training examples, for methods that were tried with several."""
    figure = Figure(figsize=(8, 4.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(entry["method"] for entry in summary))
    lines = [[entry for entry in summary if entry["method"] == method and entry["mean"]] for method in methods]
    for line, colour in zip([each for each in lines if len(each) > 1], COLOURS, strict=False):
        axes.errorbar(
            [entry["examples"] for entry in line], [entry["mean"] for entry in line],
            yerr=[entry["deviation"] or 0.0 for entry in line], color=colour, marker="o", capsize=2,
            label=f"{line[0]['title']}, {line[0]['adapter_parameters']:,}",
        )  # fmt: skip
    axes.set_xscale("log")
    _style(axes, title, "training examples", "test accuracy")
    axes.legend(frameon=False, fontsize=9)
    return figure


def loss_curves(entries: Sequence[Entry], title: str) -> Figure:
    """Training losses, running means over ten steps, each a mean over the seeds."""
    figure = Figure(figsize=(8, 4.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    for entry, colour in zip(entries, COLOURS[1:], strict=False):
        curve = entry["loss_curve"]
        smooth = [sum(curve[max(0, step - 9) : step + 1]) / min(10, step + 1) for step in range(len(curve))]
        axes.plot(
            range(1, len(smooth) + 1), smooth, color=colour, label=f"{entry['title']}, {entry['learning_rate']:g}"
        )
    _style(axes, title, "training step", "training loss")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _style(axes: Axes, title: str, along: str, up: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(along)
    axes.set_ylabel(up)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def main() -> None:
    """Draws the pictures of all files."""
    parser = argparse.ArgumentParser(description="Pictures of studies, beside their files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for file in parser.parse_args().files:
        print(*draw(file), sep="\n")


if __name__ == "__main__":
    program.run(main)
