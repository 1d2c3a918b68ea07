"""A chart as a picture: SVG that follows the reader's light or dark scheme by itself, and PNG.

Charts are drawn in colours of the light scheme. In SVG each becomes a variable, which a media query sets anew in the
dark; text becomes paths, so that no reader's font makes it wider than what was laid out.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: What is drawn in a colour, and the colour in the light and in the dark scheme.
COLOURS = {
    "paper": ("#ffffff", "#14181d"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#5b6570", "#9aa5b1"),
    "grid": ("#d8dee4", "#343b44"),
    "blue": ("#0b66b8", "#58a6ff"),
    "orange": ("#c2500a", "#f0883e"),
    "green": ("#0a7f56", "#3fb98a"),
    "purple": ("#8a4fa3", "#cf8fe8"),
    "gold": ("#97700b", "#dfb23c"),
    "rose": ("#b8336a", "#ff7eb0"),
    "teal": ("#10808c", "#4fc3d0"),
    "grey": ("#6b757f", "#a3adb8"),
}
GUIDE = "∝"  # begins what curves are called that are no measurements, named last
WIDTH = 4.2  # inches: on a phone the letters are still large enough to read
DPI = 200
LEGEND_INCHES = 0.17  # of a line


def subtitle(axes: Axes, text: str) -> None:
    """What the y axis or the dots are, above the axes, so that it takes no width."""
    axes.set_title(text)


def colour(name: str) -> str:
    """A colour as charts are drawn in it."""
    return COLOURS[name][0]


@dataclass(frozen=True)
class Chart:
    """A picture of what was measured.

    Attributes:
        name: of its files.
        title: above it.
        caption: what it shows, for those who do not see it as well.
        draw: fills the axes, one for each panel.
        height: in inches, without the legend.
        legend: below the axes, from their labels.
        panels: side by side, each WIDTH wide at most.
        width: in inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[..., None]
    height: float = 3.0
    legend: bool = True
    panels: int = 1
    width: float = WIDTH


STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "surm_kernels",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": colour("ink"),
    "axes.labelcolor": colour("muted"),
    "axes.edgecolor": colour("grid"),
    "axes.facecolor": colour("paper"),
    "axes.titlecolor": colour("ink"),
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": colour("grid"),
    "grid.linewidth": 0.7,
    "xtick.color": colour("grid"),
    "ytick.color": colour("grid"),
    "xtick.labelcolor": colour("muted"),
    "ytick.labelcolor": colour("muted"),
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": colour("ink"),
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": colour("paper"),
    "savefig.facecolor": colour("paper"),
}


def svg(chart: Chart) -> str:
    """The chart as an SVG document of its own, in the reader's scheme."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure(chart).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": chart.title})
    text = buffer.getvalue()
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name}, {light})")
    light, dark = (";".join(f"--{name}:{pair[scheme]}" for name, pair in COLOURS.items()) for scheme in (0, 1))
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", text[text.index("<svg") :], count=1)


def png(chart: Chart) -> bytes:
    """The chart in the light scheme."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure(chart).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def figure(chart: Chart) -> Figure:
    """The panels with legends below them."""
    figure = Figure(figsize=(chart.width, chart.height), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, chart.panels, squeeze=False)[0])
    chart.draw(*panels)
    if chart.legend and chart.panels == 1:
        labels, handles = _legend(panels[0])
        columns = max(1, int(chart.width * 9 / max(len(label) + 6 for label in labels)))
        figure.set_figheight(chart.height + LEGEND_INCHES * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    elif chart.legend:
        for axes in panels:
            labels, handles = _legend(axes)
            axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, -0.17), borderaxespad=0.0, ncols=2)
    return figure


def _legend(axes: Axes) -> tuple[list[str], list[Any]]:
    """Labels and handles, curves that are no measurements last."""
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(zip(labels, handles, strict=True), key=lambda pair: pair[0].startswith(GUIDE))
    return [label for label, _ in pairs], [handle for _, handle in pairs]
