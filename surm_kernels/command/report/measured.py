"""Charts of what `surm-kernels bench` or benchmarks/gpu.sh has measured, from the JSON of either."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes

from surm_kernels.command.bench import cases
from surm_kernels.command.bench.case import OURS, Point
from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.report import plots
from surm_kernels.command.report.charts import Chart, subtitle
from surm_kernels.command.report.plots import Place, Row
from surm_kernels.command.usage import threads_text

COPIES = ("x.clone()", "device copy")
FROZEN = "frozen alone"
LEAST_PLACES = 3  # that make a line
MATMUL = "torch.matmul"  # of another size: no rival


@dataclass(frozen=True)
class Measured:
    """One case at one size: seconds of each contender in every repeat."""

    case: str
    title: str
    point: Point
    dtype: str
    threads: int | None
    samples: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Measured":
        """An entry of the JSON; a contender that was refused has no samples."""
        samples = {name: found["seconds"] for name, found in entry.get("contenders", {}).items() if found["seconds"]}
        point = Point(entry["in_features"], entry["out_features"], entry["tokens"])
        title = entry.get("title") or TITLES.get(entry["case"], entry["case"])
        return cls(entry["case"], title, point, entry["dtype"], entry.get("threads"), samples)

    @property
    def group(self) -> tuple[str, str, int]:
        """What a chart is of."""
        return self.case, self.dtype, self.threads or 0

    @property
    def threads_text(self) -> str:
        """In words, none where it is not the processor that computes."""
        return threads_text(self.threads) if self.threads else ""

    @property
    def label(self) -> str:
        """What a chart is called."""
        return ", ".join(filter(None, [self.title, self.dtype, self.threads_text]))

    def seconds(self, name: str) -> Spread:
        return Spread.of(self.samples[name])

    def ratio(self, above: str, below: str) -> Spread:
        """The time of one contender over another's, within each repeat."""
        return Spread.of([a / b for a, b in zip(self.samples[above], self.samples[below], strict=True)])


TITLES = {case.name: case.title for case in cases.CASES} | {case.name: case.title for case in cases.MEMORY_CASES}
Group = Sequence[Measured]


def charts(document: Mapping[str, Any], prefix: str) -> list[Chart]:
    """Every chart that a document has the sizes for; names begin with the prefix."""
    entries = document.get("measurements", document.get("rows", []))
    measured = [one for one in map(Measured.of, entries) if OURS in one.samples]
    groups = [list(group) for _, group in groupby(measured, key=lambda one: one.group)]
    makers: tuple[Callable[[Group], Chart | None], ...] = (tokens_chart, scaling_chart, roofline_chart)
    found = [chart for make in makers for group in groups if (chart := make(group))]
    found += [*ratio_charts(groups), *memory_charts(document.get("memory", []))]
    return [_named(chart, prefix) for chart in found]


def _named(chart: Chart, prefix: str) -> Chart:
    return replace(chart, name=f"{prefix}-{chart.name}")


def _name(kind: str, group: Group) -> str:
    return "-".join([kind, group[0].case, group[0].dtype, *group[0].threads_text.split()])


def scaling_chart(group: Group) -> Chart | None:
    """Time a token against n, both logarithmic, beside curves that grow as n log n and n²."""
    square = [one for one in group if one.point.square and FROZEN not in one.samples]
    sizes = sorted({one.point.in_features for one in square})
    if len(sizes) < LEAST_PLACES or len({one.point.tokens for one in square}) < LEAST_PLACES:
        return None
    return Chart(
        _name("scaling", group),
        group[0].label,
        "Time a token against features n, both on logarithmic axes, median and quartiles; dotted, growth as n log n "
        "from our first point, dashed as n².",
        partial(_draw_scaling, square, sizes),
    )


def _draw_scaling(square: Group, sizes: Sequence[int], axes: Axes) -> None:
    series = _series(square, lambda one, name: _a_token(one.seconds(name), one.point.tokens))
    plots.lines(axes, series)
    first = min(series[OURS], key=lambda place: place.x)
    above = min(series.get("dense", series[OURS]), key=lambda place: place.x)
    plots.guide(axes, "∝ n log n", (first.x, first.spread.median), sizes, 1.0, log=True)
    plots.guide(axes, "∝ n²", (above.x, above.spread.median), sizes, 2.0, log=False)
    plots.logarithmic_sizes(axes, sizes)
    plots.logarithmic_seconds(axes)
    axes.set_xlabel("features n")
    subtitle(axes, "time a token")


def _a_token(spread: Spread, tokens: int) -> Spread:
    return Spread(spread.low / tokens, spread.median / tokens, spread.high / tokens)


def _series(group: Group, value: Callable[[Measured, str], Spread], leave_out: Sequence[str] = ()) -> plots.Lines:
    """A line for each contender over the features."""
    names = dict.fromkeys(name for one in group for name in one.samples if name not in (*leave_out, MATMUL))
    return {
        name: [Place(one.point.in_features, value(one, name)) for one in group if name in one.samples] for name in names
    }


def roofline_chart(group: Group) -> Chart | None:
    """Times as multiples of a copy of as many bytes, which no product can fall below."""
    copy = next((name for name in COPIES if all(name in one.samples for one in group)), None)
    square = [one for one in group if one.point.square]
    if copy is None or len({one.point.in_features for one in square}) < LEAST_PLACES:
        return None

    def draw(axes: Axes) -> None:
        plots.lines(axes, _series(square, lambda one, name: one.ratio(name, str(copy)), leave_out=(str(copy),)))
        plots.line_at_one(axes)
        plots.logarithmic_sizes(axes, [one.point.in_features for one in square])
        plots.multiples(axes, logarithmic=True)
        axes.set_xlabel("features n")
        subtitle(axes, f"time over {copy}")

    return Chart(
        _name("roofline", group),
        group[0].label,
        f"Time as a multiple of {copy}, which only moves the bytes: the line at 1 is the roof that memory sets. "
        "Median and quartiles of ratios within a repeat.",
        draw,
    )


def tokens_chart(group: Group) -> Chart | None:
    """A step as a multiple of the frozen layer's against tokens, at the width that has most numbers of them."""
    if FROZEN not in group[0].samples:
        return None
    widths = [one.point.in_features for one in group]
    width = max(dict.fromkeys(widths), key=widths.count)
    at = [one for one in group if one.point.in_features == width]
    if len({one.point.tokens for one in at}) < LEAST_PLACES:
        return None
    return Chart(
        _name("tokens", group),
        f"{group[0].label}, {width} features",
        "Time of a step as a multiple of the frozen layer alone, against tokens; median and quartiles of ratios "
        "within a repeat.",
        partial(draw_tokens, at),
    )


def draw_tokens(at: Group, axes: Axes) -> None:
    """Fills axes with the multiples of a group at one width."""
    names = [name for name in at[0].samples if name != FROZEN]
    plots.lines(axes, {name: [Place(one.point.tokens, one.ratio(name, FROZEN)) for one in at] for name in names})
    plots.line_at_one(axes)
    plots.logarithmic_sizes(axes, [one.point.tokens for one in at])
    plots.multiples(axes, logarithmic=False)
    axes.set_xlabel("tokens")
    subtitle(axes, "step over the frozen layer's")


def ratio_charts(groups: Sequence[Group]) -> Iterator[Chart]:
    """How many times faster than each rival, a dot for every size: products, then layers and models."""
    rows: dict[tuple[str, str, str], list[Row]] = {}
    for group in groups:
        rivals = dict.fromkeys(name for one in group for name in one.samples if name not in (OURS, *COPIES, MATMUL))
        dots = {rival: [one.ratio(rival, OURS) for one in group if rival in one.samples] for rival in rivals}
        what = ("layers", "Adapted layers and models") if FROZEN in group[0].samples else ("products", "Products")
        if dots:
            rows.setdefault((*what, group[0].threads_text), []).append(Row(_row_name(group), dots))
    for (name, title, threads), found in rows.items():
        yield Chart(
            "-".join(["ratios", name, *threads.split()]),
            ", ".join([f"{title}: times faster", *filter(None, [threads])]),
            "The rival's time over ours, a dot for every size with its quartiles: right of 1, ours is faster.",
            partial(_draw_ratios, found),
            height=plots.rows_height(found),
        )


def _row_name(group: Group) -> str:
    sizes = sorted({one.point.in_features for one in group})
    span = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
    return f"{group[0].title}, {group[0].dtype}, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{span}"


def _draw_ratios(rows: Sequence[Row], axes: Axes) -> None:
    plots.line_at_one(axes, vertical=True)
    plots.rows_of_dots(axes, rows, "×")


def memory_charts(entries: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Megabytes beside the rival's, a row for each size."""
    known = [one for one in entries if one["extra_megabytes"]]
    if known:
        places: dict[str, dict[str, list[Spread]]] = {}
        for one in known:
            size = str(Point(one["in_features"], one["out_features"], one["tokens"]))
            name = f"{TITLES.get(one['case'], one['case']).removeprefix('memory of ')}, {size}"
            places.setdefault(name, {}).setdefault(one["method"], []).append(Spread.of([one["extra_megabytes"]]))
        rows = [Row(name, dots) for name, dots in places.items()]
        yield Chart(
            "memory",
            "Memory of a pass",
            "Megabytes beyond input, output and gradients, on a logarithmic axis; what keeps nothing has no dot.",
            lambda axes: plots.rows_of_dots(axes, rows, " MB"),
            height=plots.rows_height(rows),
        )
