"""The measured constants of the cost model: what they are, those of a place, and the files they lie in.

The package ships tables of one machine in cost_constants.json. `surm-kernels tune` measures a table of the machine at
hand and leaves it in the user's cache, in a file for each place: processor, threads, instruction set and version.
"""

import json
import math
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from surm_kernels import _cache, _extension, _processor
from surm_kernels.structures import Structure

SHIPPED = Path(__file__).with_suffix(".json")

#: The types that are measured, and the one whose constants serve another type.
MEASURED_TYPES = ("float32", "bfloat16")
_SERVED_BY = {torch.float64: "float32", torch.float32: "float32", torch.float16: "bfloat16", torch.bfloat16: "bfloat16"}


class Costs(NamedTuple):
    """Seconds of a call and seconds of a unit of token work for each pass, and seconds of a unit of merge work."""

    linear_call: float
    linear: float
    gradients_call: float
    gradients: float
    pullback_call: float
    pullback: float
    merge: float


@dataclass(frozen=True)
class Place:
    """What constants belong to: processor, threads, instruction set of the kernels and version of the package."""

    processor: str
    threads: int
    instruction_set: str
    version: str

    @classmethod
    def here(cls, threads: int) -> "Place":
        """This process with so many threads."""
        from surm_kernels import __version__  # the package imports this module before it has a version

        return cls(_processor.name(), threads, _extension.instruction_set or "reference", __version__)


@dataclass(frozen=True)
class Table:
    """The constants of a place: of every family of structures and type, at a few sizes in ascending order."""

    place: Place
    families: dict[str, dict[str, dict[int, Costs]]]

    def costs(self, structure: Structure, dtype: torch.dtype) -> Costs:
        """The constants of a structure, interpolated in the logarithm of its size; beyond all sizes the outermost."""
        family = next(name for name in family_names(structure) if name in self.families)
        at = self.families[family][_SERVED_BY[dtype]]
        sizes = list(at)
        size = math.sqrt(structure.in_features * structure.out_features)
        right = bisect_right(sizes, size)
        if right in (0, len(sizes)):
            return at[sizes[max(0, right - 1)]]
        below, above = sizes[right - 1], sizes[right]
        share = math.log(size / below) / math.log(above / below)
        return Costs(*(a + share * (b - a) for a, b in zip(at[below], at[above], strict=True)))

    def to_json(self) -> dict[str, Any]:
        """The table as it stands in a file."""
        return {**asdict(self.place), "columns": Costs._fields, "families": self.families}

    @classmethod
    def from_json(cls, document: Any) -> "Table":
        """The table of `to_json`; ValueError, KeyError, TypeError or AttributeError for anything else."""
        place = Place(*(document[name] for name in Place.__dataclass_fields__))
        families = {
            family: {dtype: _sizes(types[dtype]) for dtype in MEASURED_TYPES}
            for family, types in document["families"].items()
        }
        if Structure.__name__ not in families:
            raise ValueError(f"there is no family {Structure.__name__}")
        return cls(place, families)


def family_names(structure: Structure) -> list[str]:
    """What a structure's family may be called, the most special first: its classes, with and without that of blocks.

    The last is Structure, the family that serves whatever has none of its own.
    """
    classes = [one.__name__ for one in type(structure).__mro__]
    blocks = getattr(structure, "structure", None)  # of HyDRA's
    return [name for one in classes for name in ([f"{one} {blocks}", one] if blocks else [one])]


def _sizes(columns: dict[str, Sequence[float]]) -> dict[int, Costs]:
    """The constants at each size, checked."""
    at = {size: Costs(*map(float, columns[str(size)])) for size in sorted(map(int, columns))}
    numbers = [number for costs in at.values() for number in costs]
    if not at or min(at) < 1 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"sizes must be positive and constants finite and not negative, got {at}")
    return at


@cache
def table_in_use(threads: int) -> Table:
    """The user's constants for this process with so many threads, else of those in the package the nearest."""
    place = Place.here(threads)
    return _users(place) or min(_shipped(), key=lambda table: _distance(table.place, place))


def _users(place: Place) -> Table | None:
    """The user's constants of a place; a file that does not hold them is ignored with a warning."""
    file = user_file(place)
    try:
        table = Table.from_json(json.loads(file.read_text(encoding="utf-8")))
        if table.place == place:
            return table
        found = f"its constants are of {table.place}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
    warnings.warn(f"surm_kernels ignores {file}, {found}; `surm-kernels tune` writes it anew", RuntimeWarning, 2)
    return None


@cache
def _shipped() -> tuple[Table, ...]:
    return tuple(map(Table.from_json, json.loads(SHIPPED.read_text(encoding="utf-8"))))


def _distance(place: Place, other: Place) -> tuple[bool, float]:
    """How badly constants of one place fit another: the kernels count first, then the ratio of the threads."""
    return place.instruction_set != other.instruction_set, abs(math.log(place.threads / other.threads))


def forget() -> None:
    """Has the files read anew."""
    table_in_use.cache_clear()
    _shipped.cache_clear()


def user_file(place: Place) -> Path:
    """Where a user's own constants of a place lie."""
    return _cache.file(f"costs {place.version} {place.processor} {place.instruction_set} {place.threads} threads")


def write(tables: Table | Sequence[Table], file: Path) -> None:
    """Writes a table, or several as the package ships them; at any time the file is the old one or the new one."""
    document = tables.to_json() if isinstance(tables, Table) else [table.to_json() for table in tables]
    text = json.dumps(document, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)  # a line a size
    _cache.write(text + "\n", file)
