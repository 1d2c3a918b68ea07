"""Measuring at first use: an adapted layer of a kind that this processor has no constants of measures its kind, once.

Nothing is measured unless SURM_KERNELS_TUNE=first-use allows it, nor where the user's own table or one of the package
is of this processor. What is found lies in a file of the cache, which every later process takes as it is; of processes
that start together one measures and the others wait for it.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from surm_kernels import _environment, calibration, cost_constants, cost_model
from surm_kernels._locks import Lock
from surm_kernels.cost_constants import Place, Table
from surm_kernels.ops import _mode
from surm_kernels.structures import Structure

#: What a process may take in all, a little under the 2 s that are promised, since a call that has begun is ended.
SECONDS = 1.5
#: After which a lock is that of a process that has died.
LOCK_SECONDS = 30.0
_POLL_SECONDS = 0.02

_one_at_a_time = Lock()
_offered: set[tuple[Place, str]] = set()
_taken = 0.0


def offer(structure: Structure, parameters: Sequence[Tensor]) -> None:
    """Measures the family of a structure if that is allowed, wanted and not done; nothing is ever raised.

    Only for a layer with values on the CPU, and never while a call is compiled, faked, traced or transformed.
    """
    try:
        if _environment.read("SURM_KERNELS_TUNE") != "first-use":
            return
        if not all(parameter.is_cpu and _mode.has_values(parameter) for parameter in parameters):
            return
        place = Place.here(torch.get_num_threads())
        with _one_at_a_time:
            _measure_once(place, structure)
    except Exception as error:  # a user's training does not end for want of constants
        warnings.warn(f"surm_kernels could not measure at first use: {error}", RuntimeWarning, stacklevel=2)


def _measure_once(place: Place, structure: Structure) -> None:
    family = next(name for name in cost_constants.family_names(structure) if name in calibration.FAMILIES)
    if (place, family) in _offered:
        return
    _offered.add((place, family))
    if cost_constants.read(cost_constants.user_file(place), place) is not None:
        return
    if cost_constants.nearest_shipped(place).place.is_like(place) or _is_kept(place, family):
        return
    size = math.sqrt(structure.in_features * structure.out_features)
    with _counted() as left, _locked(cost_constants.first_use_file(place), left) as alone:
        if alone and not _is_kept(place, family):
            _keep(place, family, size, left())
    cost_model.forget()


def _is_kept(place: Place, family: str) -> bool:
    """Whether the file of first use has a family."""
    table = cost_constants.read(cost_constants.first_use_file(place), place, whole=False)
    return table is not None and family in table.families


def _keep(place: Place, family: str, size: float, seconds: float) -> None:
    """Measures a family and adds it to the file; what did not end in time is left to the next process."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.device("cpu"):
        found = calibration.measure_within(seconds, family, size)
    if not all(found.values()):
        return
    file = cost_constants.first_use_file(place)
    table = cost_constants.read(file, place, whole=False) or Table(place, {})
    cost_constants.write(replace(table, families={**table.families, family: found}), file)


@contextmanager
def _counted() -> Iterator[Callable[[], float]]:
    """Counts the time within; gives what is left of what a process may take."""
    global _taken
    start, before = time.perf_counter(), _taken
    try:
        yield lambda: SECONDS - before - (time.perf_counter() - start)
    finally:
        _taken = before + time.perf_counter() - start


@contextmanager
def _locked(file: Path, left: Callable[[], float]) -> Iterator[bool]:
    """Waits for its turn among processes, and gives whether it came in time."""
    lock = file.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while left() > 0:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            with suppress(FileNotFoundError):
                if time.time() - lock.stat().st_mtime > LOCK_SECONDS:
                    lock.unlink()
        time.sleep(_POLL_SECONDS)
    else:
        yield False
        return
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
