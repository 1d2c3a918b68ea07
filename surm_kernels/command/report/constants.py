"""A chart of the constants that `surm-kernels tune` measured: from how many tokens on an adapted layer merges."""

import math
from collections.abc import Iterator

import torch
from matplotlib.axes import Axes

from surm_kernels.calibration import FAMILIES
from surm_kernels.command.bench.measure import Spread
from surm_kernels.command.report import plots
from surm_kernels.command.report.charts import Chart
from surm_kernels.command.report.plots import Row
from surm_kernels.cost_constants import MEASURED_TYPES, Table
from surm_kernels.cost_model import break_even_at

SIZE = 768


def charts(table: Table) -> Iterator[Chart]:
    """The tokens from which on a training step is faster merged, a row for each structure."""
    rows = [Row(name, dots) for name in FAMILIES if (dots := _dots(table, name))]
    if rows:

        def draw(axes: Axes) -> None:
            plots.rows_of_dots(axes, rows, "")
            axes.set_xlabel("tokens")

        yield Chart(
            f"tune-{table.place.threads}-threads",
            f"Merged from so many tokens on, {SIZE} → {SIZE}",
            "The tokens of a training step from which on an adapted layer is faster merged than direct, by the "
            "measured constants; a type without a dot is never faster merged.",
            draw,
            height=plots.rows_height(rows) + 0.1,
        )


def _dots(table: Table, name: str) -> dict[str, list[Spread]]:
    structure = FAMILIES[name](SIZE)
    found = {dtype: break_even_at(table.costs(structure, getattr(torch, dtype)), structure) for dtype in MEASURED_TYPES}
    return {dtype: [Spread.of([tokens])] for dtype, tokens in found.items() if math.isfinite(tokens) and tokens >= 1}
