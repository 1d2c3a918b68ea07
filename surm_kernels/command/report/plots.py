"""What charts are made of: lines over a logarithmic axis with a spread at each place, and rows of dots with a name."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.report.charts import colour

#: How a contender looks wherever it occurs: colour and marker.
LOOKS = {
    "surm_kernels": ("blue", "o"),
    "torch.fft": ("orange", "s"),
    "PEFT LoRA r=8": ("green", "^"),
    "LoRA r=8": ("green", "^"),
    "PEFT C3A": ("purple", "D"),
    "dense": ("grey", "v"),
    "ours, direct": ("teal", "P"),
    "x.clone()": ("gold", "X"),
    "device copy": ("gold", "X"),
    "circulant of ours": ("teal", "P"),
}
#: The colour of a family of methods, by a word of a method's title; its members differ by their markers.
FAMILIES = {
    "HyDRA": "teal", "SiVA": "purple", "LoRA": "green", "C3A": "rose", "LoKr": "gold", "FourierFT": "orange",
    "VeRA": "grey", "SURM": "blue", "circulant": "blue", "probe": "ink", "CirculantDiagonal": "ink",
}  # fmt: skip
MARKERS = "oDsPX^v<>ph*d8"
OTHER_LOOKS = (("rose", "p"), ("gold", "h"), ("teal", "<"), ("purple", ">"), ("grey", "d"), ("orange", "*"))
LEAST_GAP = 0.11  # of an axis, between labels of its ticks


@dataclass(frozen=True)
class Place:
    """A median with its quartiles somewhere on an axis."""

    x: float
    spread: Spread


Lines = Mapping[str, Sequence[Place]]


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name, its own or its family's where it has one."""
    others = itertools.cycle(OTHER_LOOKS)

    def look(name: str, marker: str) -> tuple[str, str]:
        hue = FAMILIES.get(family(name))
        return LOOKS.get(name) or ((hue, marker) if hue else next(others))

    return {name: look(name, marker) for name, marker in zip(names, itertools.cycle(MARKERS), strict=False)}


def family(name: str) -> str:
    """The word of a method's title that says its family, "others" where none does."""
    return next((word for word in FAMILIES if word in name), "others")


def lines(axes: Axes, series: Lines) -> None:
    """A line for each name through its medians, with the quartiles at each place."""
    for name, (hue, marker) in looks(series).items():
        places = sorted(series[name], key=lambda place: place.x)
        low, middle, high = ([getattr(one.spread, part) for one in places] for part in ("low", "median", "high"))
        below = [m - a for a, m in zip(low, middle, strict=True)]
        above = [b - m for b, m in zip(high, middle, strict=True)]
        axes.errorbar(
            [place.x for place in places],
            middle,
            yerr=(below, above),
            color=colour(hue),
            marker=marker,
            elinewidth=1.0,
            label=name,
            zorder=3 if name == "surm_kernels" else 2,
        )


def guide(axes: Axes, label: str, start: tuple[float, float], sizes: Sequence[float], power: float, log: bool) -> None:
    """A dashed curve from a point on, growing as a power of the size, times its logarithm where `log`."""
    first, value = start

    def height(size: float) -> float:
        return value * (size / first) ** power * (math.log(size) / math.log(first) if log else 1.0)

    style = (0, (1, 1.5)) if log else (0, (5, 2))
    axes.plot(sizes, list(map(height, sizes)), color=colour("muted"), linestyle=style, linewidth=1.0, label=label)


def logarithmic_sizes(axes: Axes, sizes: Iterable[float]) -> None:
    """A logarithmic x axis that names sizes that occur, as many as there is room for."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_apart(sorted(set(sizes)))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def _apart(sizes: Sequence[float]) -> list[float]:
    """Of ascending sizes the last, and those before that are far enough from the next one kept."""
    span = math.log(sizes[-1] / sizes[0]) or 1.0
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log(kept[-1] / size) / span >= LEAST_GAP:
            kept.append(size)
    return kept[::-1]


def logarithmic_counts(axes: Axes) -> None:
    """A logarithmic x axis of large numbers, with room beside the outermost."""
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(_few(*axes.get_xlim(), decades=1.3))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def logarithmic_seconds(axes: Axes) -> None:
    """A logarithmic y axis of seconds."""
    _logarithmic_y(axes)
    axes.yaxis.set_major_formatter(EngFormatter(unit="s"))


def multiples(axes: Axes, logarithmic: bool) -> None:
    """A y axis of multiples."""
    if logarithmic:
        _logarithmic_y(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _logarithmic_y(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_few(*axes.get_ylim(), decades=2.0))
    axes.yaxis.set_minor_locator(NullLocator())


def _few(low: float, high: float, decades: float) -> Locator:
    """Ticks of a logarithmic axis: powers of ten from so many decades on, else 2 and 5 as well, else round numbers."""
    span = math.log10(high / low)
    if span < 1:
        return FixedLocator([one for one in MaxNLocator(4).tick_values(low, high) if low <= one <= high])
    return LogLocator(subs=(1.0,) if span > decades else (1.0, 2.0, 5.0))


@dataclass(frozen=True)
class Row:
    """A named line of a chart with dots of each series on it."""

    name: str
    dots: Mapping[str, Sequence[Spread]]

    @property
    def text(self) -> str:
        """The name in as many lines as it takes."""
        return "\n".join(textwrap.wrap(self.name, NAME_LETTERS))

    @property
    def inches(self) -> float:
        """What it takes of a chart's height."""
        return DOT_INCHES + LINE_INCHES * (1 + self.text.count("\n"))


NAME_LETTERS = 62  # in a line
NAME_SIZE = 8.0
LINE_INCHES, DOT_INCHES = 0.14, 0.22


def rows_height(rows: Sequence[Row]) -> float:
    """Inches that rows take, with the axis below."""
    return 0.45 + sum(row.inches for row in rows)


def rows_of_dots(axes: Axes, rows: Sequence[Row], unit: str) -> None:
    """Rows from the top, each under its name, over a logarithmic axis; a line to the quartiles of a dot."""
    heights = [sum(row.inches for row in rows[: index + 1]) for index in range(len(rows))]
    names = dict.fromkeys(name for row in rows for name in row.dots)
    for name, (hue, marker) in looks(names).items():
        found = [(height, one) for height, row in zip(heights, rows, strict=True) for one in row.dots.get(name, ())]
        at, spreads = zip(*found, strict=True)
        axes.hlines(at, [s.low for s in spreads], [s.high for s in spreads], color=colour(hue), linewidth=1.2)
        axes.plot([s.median for s in spreads], at, color=colour(hue), marker=marker, linestyle="none", label=name)
    for height, row in zip(heights, rows, strict=True):
        axes.annotate(
            row.text,
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5.5),
            textcoords="offset points",
            fontsize=NAME_SIZE,
            linespacing=1.1,
            color=colour("ink"),
            bbox={"facecolor": colour("paper"), "edgecolor": "none", "pad": 0.6},
            in_layout=False,
        )
    axes.set_ylim(heights[-1] + DOT_INCHES / 2, 0)
    axes.set_yticks(heights, [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(_few(*axes.get_xlim(), decades=1.5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))


def line_at_one(axes: Axes, vertical: bool = False) -> None:
    """Where both are as fast."""
    (axes.axvline if vertical else axes.axhline)(1.0, color=colour("ink"), linewidth=0.9, zorder=1)
