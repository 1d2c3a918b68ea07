"""A chart of what `surm-kernels check` found: errors as shares of their limits."""

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes

from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.report import plots
from surm_kernels.command.report.charts import Chart
from surm_kernels.command.report.plots import Row


def charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """The worst error of each structure in each type over all of its kernels, as a share of what is allowed."""
    worst: dict[str, dict[str, float]] = {}
    for one in document["kernels"]:
        if one["error"] is not None:
            types = worst.setdefault(one["structure"], {})
            types[one["dtype"]] = max(types.get(one["dtype"], 0.0), one["error"] / one["limit"])
    rows = [
        Row(structure, {dtype: [Spread.of([share])] for dtype, share in types.items() if share})
        for structure, types in worst.items()
    ]

    def draw(axes: Axes) -> None:
        plots.line_at_one(axes, vertical=True)
        plots.rows_of_dots(axes, rows, "")

    if rows:
        yield Chart(
            "check",
            "Errors as shares of their limits",
            "The worst normwise error against the dense float64 matrix over all kernels of a structure, as a share of "
            "what is allowed; right of 1 it failed.",
            draw,
            height=plots.rows_height(rows),
        )
