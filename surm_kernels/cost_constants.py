"""The measured constants of the cost model: what they are, those of a place, and the files they lie in.

The package ships tables of a few machines in cost_constants.json. `surm-kernels tune` measures a table of the machine
at hand and leaves it in the user's cache, in a file for each `Place`. Where there is none, families that were measured
at first use (first_use.py) take the place of those in the nearest table of the package.
"""

import datetime
import json
import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from surm_kernels import _cache, _extension, _json, _processor
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


#: Instruction sets of our kernels and of the platform's matrix products, the slowest first.
INSTRUCTION_SETS = ("reference", "baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Place:
    """What constants belong to.

    Attributes:
        processor: by its name.
        threads: of an operation.
        instruction_set: of our kernels.
        products: what the platform's matrix products run on, of which SiVA, low rank and generated matrices are made.
        version: of the package.
    """

    processor: str
    threads: int
    instruction_set: str
    products: str
    version: str

    @classmethod
    def here(cls, threads: int) -> "Place":
        """This process with so many threads."""
        from surm_kernels import __version__  # the package imports this module before it has a version

        kernels = _extension.instruction_set or "reference"
        return cls(_processor.name(), threads, kernels, _processor.products(), __version__)

    def is_like(self, other: "Place") -> bool:
        """Whether it is the same processor, doing the same; threads and version may be others."""
        return replace(self, threads=other.threads, version=other.version) == other


#: By name, type and size.
Families = dict[str, dict[str, dict[int, Costs]]]

#: What reading a file that holds no table raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Table:
    """The constants of a place: of families of structures and each type, at a few sizes in ascending order.

    Every structure has a family in a whole table, which holds that of Structure.
    """

    place: Place
    families: Families
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).date().isoformat())

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
        return {**asdict(self.place), "date": self.date, "columns": Costs._fields, "families": self.families}

    @classmethod
    def from_json(cls, document: Any, whole: bool = True) -> "Table":
        """The table of `to_json`, or a part of one; one of `UNREADABLE` for anything else."""
        place = Place(*(document[name] for name in Place.__dataclass_fields__))
        families = {
            family: {dtype: _sizes(types[dtype]) for dtype in MEASURED_TYPES}
            for family, types in document["families"].items()
        }
        if whole and Structure.__name__ not in families:
            raise ValueError(f"there is no family {Structure.__name__}")
        return cls(place, families, str(document["date"]))


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
    """The constants for this process with so many threads.

    The user's; else of those in the package the nearest, with the families that were measured at first use.
    """
    place = Place.here(threads)
    if (measured := read(user_file(place), place)) is not None:
        return measured
    nearest, part = nearest_shipped(place), read(first_use_file(place), place, whole=False)
    return nearest if part is None else replace(nearest, families={**nearest.families, **part.families})


def read(file: Path, place: Place, whole: bool = True) -> Table | None:
    """The constants of a place in a file of the cache; a file that does not hold them is ignored with a warning."""
    try:
        table = Table.from_json(json.loads(file.read_text(encoding="utf-8")), whole)
        if table.place == place:
            return table
        found = f"its constants are of {table.place}"
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        found = f"{type(error).__name__}: {error}"
    remedy = "`surm-kernels tune` writes it anew" if whole else "the next first use writes it anew"
    warnings.warn(f"surm_kernels ignores {file}, {found}; {remedy}", RuntimeWarning, 2)
    return None


def read_all(file: Path) -> tuple[Table, ...]:
    """Tables as the package ships them; one of `UNREADABLE` for anything else."""
    return tuple(map(Table.from_json, json.loads(file.read_text(encoding="utf-8"))))


@cache
def _shipped() -> tuple[Table, ...]:
    return read_all(SHIPPED)


def nearest_shipped(place: Place) -> Table:
    """Of the tables in the package the one that fits a place best."""
    return min(_shipped(), key=lambda table: _distance(table.place, place))


def _distance(place: Place, other: Place) -> tuple[float, ...]:
    """How badly constants of one place fit another.

    Our kernels count first, then what matrix products run on, the processor, its maker and the ratio of the threads.
    """
    return (
        _steps(place.instruction_set, other.instruction_set),
        _steps(place.products, other.products),
        place.processor != other.processor,
        place.processor.split()[:1] != other.processor.split()[:1],
        abs(math.log(place.threads / other.threads)),
    )


def _steps(one: str, other: str) -> int:
    """How far two instruction sets are apart; one that is not known here is far from all others."""
    if one == other or not {one, other} <= set(INSTRUCTION_SETS):
        return 0 if one == other else len(INSTRUCTION_SETS)
    return abs(INSTRUCTION_SETS.index(one) - INSTRUCTION_SETS.index(other))


def forget() -> None:
    """Has the files read anew."""
    table_in_use.cache_clear()
    _shipped.cache_clear()


def user_file(place: Place) -> Path:
    """Where a user's own constants of a place lie."""
    return _cache.file(f"costs {_words(place)}")


def first_use_file(place: Place) -> Path:
    """Where the families lie that were measured at first use."""
    return _cache.file(f"first use {_words(place)}")


def _words(place: Place) -> str:
    kinds = f"{place.instruction_set} products {place.products}"
    return f"{place.version} {place.processor} {kinds} {place.threads} threads"


def write(tables: Table | Sequence[Table], file: Path) -> None:
    """Writes a table, or several as the package ships them; at any time the file is the old one or the new one."""
    document = tables.to_json() if isinstance(tables, Table) else [table.to_json() for table in tables]
    _cache.write(_json.text(document), file)
