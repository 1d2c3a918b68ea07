"""Whose the constants are by which adapted layers choose: words for info and tune."""

import json
from collections.abc import Iterator
from pathlib import Path

from surm_kernels import _cache, cost_constants
from surm_kernels.command.usage import threads_text
from surm_kernels.cost_constants import UNREADABLE, Place, Table

PRODUCTS_MATTER = "SiVA, low-rank and generated matrices are products themselves, in 16 bits above all"


def place_text(place: Place) -> str:
    """A place in words."""
    kinds = f"kernels {place.instruction_set}, matrix products {place.products}"
    return f"{place.processor}, {threads_text(place.threads)}, {kinds}"


def measured_text(table: Table) -> str:
    """Where, when and with which version a table was measured."""
    return f"measured on {place_text(table.place)}, {table.date}, version {table.place.version}"


def serving(threads: int) -> list[tuple[str, str]]:
    """What chooses strategies with so many threads, and how well it fits this process, as facts."""
    here, table = Place.here(threads), cost_constants.table_in_use(threads)
    file, part = cost_constants.user_file(here), cost_constants.first_use_file(here)
    is_own = table.place == here and file.exists()
    facts = [("strategies", f"by constants {measured_text(table)}: {file if is_own else 'those of the package'}")]
    if not is_own and (first := cost_constants.read(part, here, whole=False)):
        facts.append(("first use", f"{', '.join(first.families)}: measured here, {first.date}: {part}"))
    return [*facts, ("constants fit", fit_text(table.place, here))]


def fit_text(place: Place, here: Place) -> str:
    """Whether constants of a place are this one's own, and what to run if they are not."""
    differences = [
        f"{name} {ours}, not {theirs}"
        for name, ours, theirs in (
            ("the processor is", here.processor, place.processor),
            ("kernels use", here.instruction_set, place.instruction_set),
            ("matrix products run on", here.products, place.products),
            ("operations take", threads_text(here.threads), threads_text(place.threads)),
        )
        if ours != theirs
    ]
    if not differences:
        return "they are this machine's own"
    why = f" ({PRODUCTS_MATTER})" if here.products != place.products else ""
    command = f"surm-kernels tune --threads {here.threads}"
    return f"they are not this machine's own: {'; '.join(differences)}{why}; `{command}` measures them here"


def all_tables() -> Iterator[tuple[Table, str]]:
    """Every table there is, with what holds it: the package's, then those in the cache."""
    for table in cost_constants.read_all(cost_constants.SHIPPED):
        yield table, "the package"
    for pattern, source in (("costs-*.json", "the cache"), ("first-use-*.json", "the cache, first use")):
        for file in sorted(_cache.folder().glob(pattern)):
            if found := _readable(file):
                yield found, source


def _readable(file: Path) -> Table | None:
    try:
        return Table.from_json(json.loads(file.read_text(encoding="utf-8")), whole=False)
    except UNREADABLE:
        return None
