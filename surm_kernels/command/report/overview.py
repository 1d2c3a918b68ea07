"""The picture that comes first: what a step of an adapted layer costs, how fast the products are, what they learn."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes

from surm_kernels.command.bench.case import OURS
from surm_kernels.command.report import charts, measured, plots, trained
from surm_kernels.command.report.charts import Chart
from surm_kernels.command.report.measured import Group, Measured
from surm_kernels.command.report.plots import Row

Document = Mapping[str, Any]
STEP, WIDTH = "adapted-surm", 768  # the case and the features of the first panel
LORA = "PEFT LoRA r=8"
RIVALS = ("torch.fft", "PEFT C3A", "dense")
PRODUCTS = (
    "circulant-forward",
    "circulant-training",
    "block-circulant-training",
    "toeplitz-training",
    "toeplitz-like-training",
)
DTYPE = "float32"


def chart(bench: Document | None, demo: Document | None) -> Chart | None:
    """Three panels, or the first two without a run of the demo; None where bench did not measure what they show."""
    everything = map(Measured.of, bench["measurements"]) if bench else ()
    found = [one for one in everything if one.dtype == DTYPE and OURS in one.samples]
    found = [one for one in found if one.threads == found[0].threads]
    steps = [one for one in found if one.case == STEP and one.point.in_features == WIDTH]
    rows = [row for case in PRODUCTS if (row := _row([one for one in found if one.case == case]))]
    if not steps or not rows:
        return None
    captions = [
        f"Left: a training step of a frozen {WIDTH} → {WIDTH} layer with SURM's circulant update and with PEFT's LoRA, "
        "as a multiple of the frozen layer's.",
        "Middle: products, times faster than what one has today, a dot for every size.",
        "Right: test accuracy of the demo against trained numbers." if demo else "",
    ]

    def draw(*panels: Axes) -> None:
        _draw_step(steps, panels[0])
        plots.line_at_one(panels[1], vertical=True)
        plots.rows_of_dots(panels[1], rows, "×")
        charts.subtitle(panels[1], "products: times faster than")
        if demo:
            trained.draw_accuracy(panels[2], trained.demo_outcomes(demo), trained.DEMO_SCORE)

    number = 3 if demo else 2
    return Chart("gain", "What one gains", " ".join(captions).strip(), draw, 3.6, True, number, 3.3 * number)


def _row(group: Group) -> Row | None:
    """A product beside those of its rivals that are no structure of ours."""
    rivals = [name for name in RIVALS if any(name in one.samples for one in group)]
    dots = {rival: [one.ratio(rival, OURS) for one in group if rival in one.samples] for rival in rivals}
    return Row(group[0].title, dots) if dots else None


def _draw_step(steps: Group, axes: Axes) -> None:
    names = [name for name in (OURS, LORA, measured.FROZEN) if name in steps[0].samples]
    shown = [replace(one, samples={name: one.samples[name] for name in names}) for one in steps]
    measured.draw_tokens(shown, axes)
    charts.subtitle(axes, "a training step over the frozen layer's")
