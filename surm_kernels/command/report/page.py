"""The report as one HTML file that needs no other: pictures within, style within, no script."""

import base64
import datetime
from collections.abc import Mapping, Sequence
from importlib import resources

import jinja2

from surm_kernels import __version__
from surm_kernels.command.report.charts import COLOURS
from surm_kernels.command.report.sections import Section


def html(sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are the SVG documents of the charts by their names."""
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        sections=sections,
        pictures={name: base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()},
        colours={
            scheme: {name: pair[index] for name, pair in COLOURS.items()}
            for index, scheme in enumerate(("light", "dark"))
        },
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        version=__version__,
    )
