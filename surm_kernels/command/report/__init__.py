"""`surm-kernels report`: what bench, tune, check, demo, benchmarks/gpu.sh or examples/ wrote as JSON, in pictures.

A file becomes a section (`sections`), its figures charts (`measured`, `trained`, `constants`, `checked`, made of what
`plots` has; `overview` is the first), these become SVG and PNG (`charts`) and all of it one page (`page`).
"""

import argparse
from pathlib import Path

from surm_kernels.command.usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of report to `parser`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSON of any of the commands, examples or gpu.sh"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="folder for index.html and a PNG and an SVG of each picture (default: report)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and the pictures."""
    from surm_kernels.command.demo.report import write_files
    from surm_kernels.command.report import charts, page, sections
    from surm_kernels.command.terminal import Progress

    if arguments.output.exists() and not arguments.output.is_dir():
        raise UsageError(f"--output: {arguments.output} is a file, a folder is wanted")
    found = sections.read(arguments.files)
    pictures: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    with Progress(sum(len(section.charts) for section in found), "drawing") as progress:
        for chart in (chart for section in found for chart in section.charts):
            pictures[chart.name] = charts.svg(chart)
            contents[f"{chart.name}.svg"] = pictures[chart.name].encode()
            contents[f"{chart.name}.png"] = charts.png(chart)
            progress.advance()
    contents["index.html"] = page.html(found, pictures).encode()
    files = write_files(arguments.output, contents)
    print(f"wrote {len(files) - 1} pictures and {files[-1]}")
    return 0
