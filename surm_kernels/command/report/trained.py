"""Charts of what fine-tuning gave: scores against trained numbers, what a step takes, how alike updates are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.demo.models import METHOD_TITLES
from surm_kernels.command.report import plots
from surm_kernels.command.report.charts import Chart, colour, subtitle
from surm_kernels.command.report.plots import Place, Row

MOST = 12  # methods that marks tell apart


@dataclass(frozen=True)
class Outcome:
    """What one method reached in its runs: a score with its spread, over the numbers trained beside the head."""

    method: str
    parameters: int
    score: Spread


@dataclass(frozen=True)
class Score:
    """What is compared: its name, whether it is a share, and what the spread is."""

    name: str
    share: bool
    spread: str


def demo_charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Those of `surm-kernels demo`, which has one run a method."""
    runs = {METHOD_TITLES.get(run["method"], run["method"]): run for run in document["runs"]}
    yield from accuracy_charts("demo-accuracy", "Accuracy against trained numbers", demo_outcomes(document), DEMO_SCORE)
    for what, title, unit, key in (
        ("time", "Time of a training step, methods in turns, median", " ms", "step_milliseconds"),
        ("memory", "Memory of training, growth of the process", " MB", "training_memory_megabytes"),
    ):
        known = [(name, run[key]) for name, run in runs.items() if run[key] is not None]
        rows = [Row(f"{name}: {value:.0f}{unit}", {title: [Spread.of([value])]}) for name, value in known]
        if rows:
            yield _rows_chart(f"demo-{what}", title, rows, unit)


DEMO_SCORE = Score("test accuracy", True, "one seed, with one standard error over the test examples")


def demo_outcomes(document: Mapping[str, Any]) -> list[Outcome]:
    """A run of the demo for each method, with the standard error of its accuracy."""
    outcomes = []
    for run in document["runs"]:
        accuracy = run["test_accuracy"]
        error = (accuracy * (1 - accuracy) / document["arguments"]["test_examples"]) ** 0.5
        spread = Spread(accuracy - error, accuracy, accuracy + error)
        outcomes.append(Outcome(METHOD_TITLES.get(run["method"], run["method"]), run["adapter_parameters"], spread))
    return outcomes


def _rows_chart(name: str, title: str, rows: Sequence[Row], unit: str) -> Chart:
    height = plots.rows_height(rows)
    return Chart(name, title, f"{title}.", lambda axes: plots.rows_of_dots(axes, rows, unit), height, legend=False)


def study_charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Those of a study in examples/: scores against trained numbers, and against examples where they vary."""
    example, summaries = document["example"], study_summaries(document)
    score = _score(summaries)
    for count, group in groupby(summaries, key=lambda one: one["examples"]):
        title = f"{example.replace('_', ' ')}, {count:,} examples: {score.name} against trained numbers"
        outcomes = [_outcome(one, score) for one in group]
        yield from accuracy_charts(f"study-{example}-{count}", title, outcomes, score)
    lines: dict[str, list[Place]] = {}
    for one in summaries:
        lines.setdefault(one["title"], []).append(Place(one["examples"], _spread(one, score)))
    if longer := {title: places for title, places in lines.items() if len(places) > 1}:
        yield _examples_chart(example, longer, score)


def step_charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Those of examples/step_time.py: each method's step over the frozen model's, and its memory."""
    found = document["rows"]
    times = [
        Row(f"{one['title']}: {1e3 * one['seconds']:.0f} ms", {one["title"]: [Spread(*one["multiple"])]})
        for one in found
    ]
    memory = [(one["title"], one["megabytes"]) for one in found if one["megabytes"] is not None]
    growths = [Row(f"{title}: {growth:.0f} MB", {title: [Spread.of([growth])]}) for title, growth in memory]
    for what, title, rows, unit in (
        ("time", "Time of a training step over the frozen model's, median and quartiles", times, "×"),
        ("memory", "Memory of three training steps, growth of the process", growths, " MB"),
    ):
        if rows:
            yield _rows_chart(f"step-{what}", title, rows, unit)


ALIGNED = ("updates", "weights", "outputs")


def alignment_charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """That of examples/pinwheel.py: how alike each update and full training are."""
    rows = [
        Row(f"{one['update']}, {one['parameters']} numbers", {name: [Spread.of(one[name])] for name in ALIGNED})
        for one in document["rows"]
    ]
    if rows:
        title = "Linear CKA with full training"
        caption = (
            f"{title} of the same seed: of the updates, the weights and the outputs, median and quartiles over seeds."
        )
        yield Chart(
            "pinwheel", title, caption, lambda axes: plots.rows_of_dots(axes, rows, ""), plots.rows_height(rows)
        )


#: The charts of what examples/ compare in rows, by the example.
COMPARISONS = {"step_time": step_charts, "pinwheel": alignment_charts}


def study_summaries(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those with a score, by the number of examples."""
    scored = (one for one in document["summary"] if one["mean"] is not None or one["perplexity"] is not None)
    return sorted(scored, key=lambda one: one["examples"])


def _outcome(summary: Mapping[str, Any], score: Score) -> Outcome:
    return Outcome(summary["title"], summary["adapter_parameters"], _spread(summary, score))


def _score(summaries: Sequence[Mapping[str, Any]]) -> Score:
    spread = "mean over the seeds with its sample deviation"
    accurate = all(one["mean"] is not None for one in summaries)
    return Score("test accuracy", True, spread) if accurate else Score("test perplexity", False, spread)


def _spread(summary: Mapping[str, Any], score: Score) -> Spread:
    if not score.share:
        return Spread.of([summary["perplexity"]])
    mean, deviation = summary["mean"], summary["deviation"] or 0.0
    return Spread(mean - deviation, mean, mean + deviation)


def _examples_chart(example: str, series: plots.Lines, score: Score) -> Chart:
    def draw(axes: Axes) -> None:
        plots.lines(axes, series)
        plots.logarithmic_sizes(axes, [place.x for places in series.values() for place in places])
        _score_axis(axes, score)
        axes.set_xlabel("training examples")

    title = f"{example.replace('_', ' ')}: {score.name} against training examples"
    return Chart(f"study-{example}-examples", title, f"{title}, {score.spread}.", draw)


def accuracy_charts(name: str, title: str, outcomes: Sequence[Outcome], score: Score) -> Iterator[Chart]:
    """A score against the numbers trained beside the head; many methods by their families, and each in a row."""
    caption = (
        f"The {score.name} against the numbers trained beside the head, these on a logarithmic axis: {score.spread}. "
        "A line across trains the head alone."
    )
    shown = outcomes if len(outcomes) <= MOST else [replace(one, method=plots.family(one.method)) for one in outcomes]
    if shown:
        yield Chart(name, title, caption, lambda axes: draw_accuracy(axes, shown, score))
    if shown is not outcomes:
        factor, unit = (100.0, " %") if score.share else (1.0, "")
        rows = [
            Row(f"{one.method}, {one.parameters:,} numbers", {plots.family(one.method): [one.score.times(factor)]})
            for one in outcomes
        ]
        yield _rows_chart(f"{name}-methods", f"{title}, method by method", rows, unit)


def draw_accuracy(axes: Axes, outcomes: Sequence[Outcome], score: Score) -> None:
    """A dot for each method with its spread; what trains nothing but the head is a line across."""
    looks = plots.looks(dict.fromkeys(one.method for one in outcomes))
    named: set[str] = set()
    for one in outcomes:
        name, marker = looks[one.method]
        hue = colour(name)
        label = "" if one.method in named else one.method
        named.add(one.method)
        if one.parameters == 0:
            axes.axhline(one.score.median, color=hue, linewidth=1.0, linestyle=(0, (5, 2)), label=label)
            continue
        spread = [[one.score.median - one.score.low], [one.score.high - one.score.median]]
        axes.errorbar(
            [one.parameters], [one.score.median], yerr=spread, color=hue, marker=marker, markersize=5.5,
            linestyle="none", elinewidth=1.0, label=label,
        )  # fmt: skip
    plots.logarithmic_counts(axes)
    _score_axis(axes, score)
    axes.set_xlabel("trained numbers")


def _score_axis(axes: Axes, score: Score) -> None:
    if score.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    subtitle(axes, score.name)
