"""`surm-kernels tune`: measures the constants by which an adapted layer chooses its strategy, on this machine.

On a GPU it measures instead by what CUDA tensors go to CUDA C++ or Triton (gpu_calibration.py).
"""

import argparse
import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from surm_kernels import calibration, cost_constants, cost_model
from surm_kernels._timing import Effort
from surm_kernels.calibration import FAMILIES, FULL, QUICK, SIZES
from surm_kernels.command import gpu_calibration, provenance, terminal
from surm_kernels.command.terminal import Progress
from surm_kernels.command.usage import UsageError, add_threads, check_writable, threads_text
from surm_kernels.cost_constants import MEASURED_TYPES, UNREADABLE, Place, Table
from surm_kernels.cost_model import break_even_at
from surm_kernels.structures import Structure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of tune to `parser`."""
    parser.add_argument("--quick", action="store_true", help="fewer repeats: in a hurry, and less exact")
    add_threads(parser, "constants for each")
    parser.add_argument(
        "--device", default="cpu", metavar="DEVICE", help="cpu, or cuda to measure which kernels are faster on a GPU"
    )
    parser.add_argument("--list", action="store_true", help="list what was measured where, and what serves here; end")
    parser.add_argument("--show", action="store_true", help="print what the constants in use lead to and end")
    parser.add_argument("--reset", action="store_true", help="remove the measured constants: the package's serve again")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write to a file of tables, as the package has it, not to the cache; those of other machines in it stay",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and keeps constants, or shows or removes them."""
    if arguments.device != "cpu":
        return gpu_calibration.run(arguments)
    check_writable("--output", arguments.output)
    threads = list(dict.fromkeys(arguments.threads or [torch.get_num_threads()]))
    if arguments.list:
        _list(threads)
        return 0
    if arguments.show or arguments.reset:
        if arguments.reset:
            _reset(threads)
        for number in threads:
            _show(cost_constants.table_in_use(number), number)
        return 0
    others = _tables_in(arguments.output)
    if arguments.output is None:
        _check_cache(threads)
    tables = [_measured(number, QUICK if arguments.quick else FULL) for number in threads]
    for table in tables:
        _show(table, table.place.threads)
    _keep(tables, others, arguments.output)
    return 0


def _tables_in(output: Path | None) -> tuple[Table, ...]:
    """Those that a file of tables has already."""
    try:
        return cost_constants.read_all(output) if output is not None and output.exists() else ()
    except UNREADABLE as error:
        raise UsageError(f"--output: {output} holds something else than tables: {error}") from None


def _check_cache(threads: list[int]) -> None:
    """Refuses a cache that could not be written in the end, before the work is done."""
    for number in threads:
        file = cost_constants.user_file(Place.here(number))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the cache {file.parent} cannot be made: {error.strerror}") from None
        check_writable("the cache", file)


def _measured(threads: int, effort: Effort) -> Table:
    with _threads_set(threads), Progress(len(FAMILIES)) as progress:

        def begin(family: str) -> None:
            progress.begin(f"measuring {family}, {threads_text(threads)}")

        return Table(Place.here(threads), calibration.measure(effort, begin, progress.advance))


def _keep(tables: Sequence[Table], others: Sequence[Table], output: Path | None) -> None:
    """Writes all tables into one file, in the place of older ones of theirs, or each into the user's cache."""
    if output is not None:
        renewed = {replace(table.place, version="") for table in tables}
        kept = (table for table in others if replace(table.place, version="") not in renewed)
        cost_constants.write([*kept, *tables], output)
    for table in tables if output is None else ():
        cost_constants.write(table, cost_constants.user_file(table.place))
    cost_model.forget()
    for file in [output] if output else [cost_constants.user_file(table.place) for table in tables]:
        print(f"wrote {file}")


def _reset(threads: list[int]) -> None:
    for place in map(Place.here, threads):
        for file in (cost_constants.user_file(place), cost_constants.first_use_file(place)):
            found = file.exists()
            file.unlink(missing_ok=True)
            print(f"removed {file}" if found else f"there is no {file}")
    cost_model.forget()


@contextlib.contextmanager
def _threads_set(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _list(threads: Sequence[int]) -> None:
    """What was measured where, and which of it serves with each number of threads."""
    rows = [
        [place.processor, str(place.threads), place.instruction_set, place.products, table.date, place.version, where]
        for table, where in provenance.all_tables()
        for place in (table.place,)
    ]
    headings = ["processor", "threads", "kernels", "matrix\nproducts", "date", "version", "in"]
    print(terminal.table(headings, rows), end="\n\n")
    for number in threads:
        print(terminal.pairs([("threads", str(number)), *provenance.serving(number)]), end="\n\n")


def _show(table: Table, threads: int) -> None:
    """What constants lead to: the tokens from which on a training step is faster merged."""
    print(f"tokens from which on a training step is faster merged, {threads_text(threads)}")
    print(f"{provenance.measured_text(table)}\n")
    at = [(dtype, size) for dtype in MEASURED_TYPES for size in SIZES]
    rows = [[name, *(_tokens(table, make(n), dtype) for dtype, n in at)] for name, make in FAMILIES.items()]
    print(terminal.table(["structure", *(f"{dtype}\n{size}" for dtype, size in at)], rows), end="\n\n")


def _tokens(table: Table, structure: Structure, dtype: str) -> str:
    found = break_even_at(table.costs(structure, getattr(torch, dtype)), structure)
    return f"{found:.0f}" if math.isfinite(found) else "never"
