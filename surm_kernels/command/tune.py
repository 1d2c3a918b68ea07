"""`surm-kernels tune`: measures the constants by which an adapted layer chooses its strategy, on this machine.

On a GPU it measures instead by what CUDA tensors go to CUDA C++ or Triton (gpu_calibration.py).
"""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from surm_kernels import cost_constants, cost_model
from surm_kernels.command import calibration, gpu_calibration
from surm_kernels.command.calibration import FAMILIES, FULL, QUICK, SIZES, Effort
from surm_kernels.command.usage import UsageError, check_writable, positive_integer, threads_text
from surm_kernels.cost_constants import MEASURED_TYPES, Place, Table
from surm_kernels.cost_model import break_even_at
from surm_kernels.structures import Structure

WIDTH_OF_A_FILE = 150  # where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of tune to `parser`."""
    parser.add_argument("--quick", action="store_true", help="fewer repeats: in a hurry, and less exact")
    parser.add_argument(
        "--threads",
        nargs="+",
        type=positive_integer,
        metavar="N",
        help="numbers of threads, constants for each (default: what torch chooses for this machine)",
    )
    parser.add_argument(
        "--device", default="cpu", metavar="DEVICE", help="cpu, or cuda to measure which kernels are faster on a GPU"
    )
    parser.add_argument("--show", action="store_true", help="print what the constants in use lead to and end")
    parser.add_argument("--reset", action="store_true", help="remove the measured constants: the package's serve again")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write all to a file, as the package has it, not to the cache"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and keeps constants, or shows or removes them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    if arguments.device != "cpu":
        return gpu_calibration.run(arguments, console)
    check_writable("--output", arguments.output)
    threads = list(dict.fromkeys(arguments.threads or [torch.get_num_threads()]))
    if arguments.show or arguments.reset:
        if arguments.reset:
            _reset(console, threads)
        for number in threads:
            _show(console, cost_constants.table_in_use(number), number)
        return 0
    if arguments.output is None:
        _check_cache(threads)
    tables = [_measured(console, number, QUICK if arguments.quick else FULL) for number in threads]
    for table in tables:
        _show(console, table, table.place.threads)
    _keep(console, tables, arguments.output)
    return 0


def _check_cache(threads: list[int]) -> None:
    """Refuses a cache that could not be written in the end, before the work is done."""
    for number in threads:
        file = cost_constants.user_file(Place.here(number))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the cache {file.parent} cannot be made: {error.strerror}") from None
        check_writable("the cache", file)


def _measured(console: Console, threads: int, effort: Effort) -> Table:
    with _threads_set(threads), _progress(console, threads) as advance:
        return Table(Place.here(threads), calibration.measure(effort, advance))


def _keep(console: Console, tables: Sequence[Table], output: Path | None) -> None:
    """Writes all tables into one file, or each into the user's cache."""
    if output is not None:
        cost_constants.write(tables, output)
    for table in tables if output is None else ():
        cost_constants.write(table, cost_constants.user_file(table.place))
    cost_model.forget()
    for file in [output] if output else [cost_constants.user_file(table.place) for table in tables]:
        console.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


def _reset(console: Console, threads: list[int]) -> None:
    for number in threads:
        file = cost_constants.user_file(Place.here(number))
        found = file.exists()
        file.unlink(missing_ok=True)
        text = f"removed {file}" if found else f"there is no {file}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    cost_model.forget()


@contextlib.contextmanager
def _threads_set(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _progress(console: Console, threads: int) -> Iterator[Callable[[str], None]]:
    """Shows which family is measured; without a terminal, a line for each."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(FAMILIES))
        started = 0

        def advance(family: str) -> None:
            nonlocal started
            title = f"measuring {family}, {threads_text(threads)}"
            progress.update(task, description=title, completed=started)
            started += 1
            if not console.is_terminal:
                console.print(title, highlight=False)

        yield advance


def _show(console: Console, table: Table, threads: int) -> None:
    """What constants lead to: the tokens from which on a training step is faster merged."""
    place = table.place
    for line in (
        f"tokens from which on a training step is faster merged, {threads_text(threads)}",
        f"measured on {place.processor}, {threads_text(place.threads)}, {place.instruction_set}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    grid = Grid("structure", box=box.SIMPLE_HEAD)
    for dtype in MEASURED_TYPES:
        for size in SIZES:
            grid.add_column(f"{dtype}\n{size}", justify="right")
    for name, make in FAMILIES.items():
        grid.add_row(name, *(_tokens(table, make(n), dtype) for dtype in MEASURED_TYPES for n in SIZES))
    console.print(grid)


def _tokens(table: Table, structure: Structure, dtype: str) -> str:
    found = break_even_at(table.costs(structure, getattr(torch, dtype)), structure)
    return f"{found:.0f}" if math.isfinite(found) else "never"
