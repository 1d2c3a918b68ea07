"""SiVA's bases of the weights of a model: those in use are shared, and decompositions stay in files of the cache.

Equal weights have one pair of bases, as long as somebody holds it: adapters over one layer, tied layers and copies of a
model share the memory. A file has all singular vectors, so whatever is wanted of a weight later comes out of it. They
are rounded to the type of the weight, as its bases are, and of a square weight take twice its bytes.
"""

import ctypes
import functools
import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from surm_kernels import _cache, _checks, siva
from surm_kernels._locks import Lock
from surm_kernels.ops import _mode
from surm_kernels.siva import Decomposition

#: m n min(m, n) from which on a file is worth its place: less is decomposed in some ten milliseconds.
LEAST_WORK = 256**3

#: Seconds after which a bar is shown.
DELAY = 1.0

_FORMAT = 1  # of a file, part of the hash in its name
_NAMES = ("U", "singular_values", "V")

_lock = Lock()  # threads that want one weight decompose it once
_left: WeakValueDictionary[tuple, Tensor] = WeakValueDictionary()
_right: WeakValueDictionary[tuple, Tensor] = WeakValueDictionary()
_counts: dict[tuple, int] = {}
_warned: set[Path] = set()
_progress: ContextVar[tqdm | None] = ContextVar("progress", default=None)


@contextmanager
def decomposing(count: int) -> Iterator[None]:
    """A context in which `bases_of` is called for so many weights: a bar shows how far it is, if it takes a while."""
    with tqdm(total=count, desc="SiVA's bases", unit="weight", delay=DELAY, leave=False) as bar:
        before = _progress.set(bar)
        try:
            yield
        finally:
            _progress.reset(before)


@torch.inference_mode(False)  # what is shared may be trained with
@torch.no_grad()
def bases_of(
    weight: Tensor,
    *,
    perc: float = 0.95,
    k: int | None = None,
    basis: str = "bottom",
    rule: str = "variance",
    precision: str = "float64",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """U (m, k) and V (n, k) of `surm_kernels.siva.bases`, the same tensors for equal weights; not to be written to.

    They are shared as long as somebody holds them, these tensors and not copies. The decomposition is read from the
    cache where one of equal values, type and precision is there, and kept there otherwise. Without values, as on the
    meta device, there is nothing to share.

    Raises:
        TypeError, ValueError: as of `surm_kernels.siva.bases`.
    """
    _checks.require_matrix("weight", weight, "(m, n)")
    if _mode.is_hollow(weight):
        return siva.bases(weight, perc=perc, k=k, basis=basis, rule=rule, precision=precision, seed=seed)
    if type(weight) not in (Tensor, nn.Parameter):
        raise TypeError(f"weight must be a tensor that holds its own values, got {type(weight).__name__}")
    with _lock:
        known = _Weight(weight, precision)
        k = known.count(perc, rule) if k is None else k
        key = (known.hash, weight.device, basis, k, seed if basis == "random" else None)
        U, V = _left.get(key), _right.get(key)
        if U is None or V is None:
            source = weight if basis == "random" else known.decomposition
            U, V = siva.bases(source, k=k, basis=basis, seed=seed)
            _left[key], _right[key] = U, V
    if (bar := _progress.get()) is not None:
        bar.update()
    return U, V


class _Weight:
    """What is known of a weight, each as soon as it is asked for."""

    def __init__(self, weight: Tensor, precision: str) -> None:
        self._weight, self._precision = weight, precision

    @functools.cached_property
    def hash(self) -> str:
        return _hash(f"{_FORMAT} {self._precision}", self._weight)

    @functools.cached_property
    def decomposition(self) -> Decomposition:
        """U and V in the type of the weight."""
        rows, columns = self._weight.shape
        if rows * columns * min(rows, columns) < LEAST_WORK or _cache.bound() == 0:
            return self._decompose()
        file = _cache.decompositions() / f"{self.hash}.safetensors"
        found = _read(file)
        if found is None:
            found = self._decompose()
            _write(found, file)
        return _moved(found, self._weight)

    def count(self, perc: float, rule: str) -> int:
        _checks.require_number("perc", perc)
        key = (self.hash, perc, rule)
        if key not in _counts:
            _counts[key] = siva.count(self.decomposition.singular_values, perc, rule=rule)
        return _counts[key]

    def _decompose(self) -> Decomposition:
        return _moved(siva.decompose(self._weight, precision=self._precision), self._weight)


def _moved(found: Decomposition, like: Tensor) -> Decomposition:
    """A decomposition with bases in the type and on the device of a weight."""
    return replace(found, U=found.U.to(like), V=found.V.to(like))


def _read(file: Path) -> Decomposition | None:
    """What a file holds, or None; one that is damaged is deleted."""
    try:
        with safe_open(file, "pt") as stored:
            tensors = [stored.get_tensor(name) for name in _NAMES]
            whole = (stored.metadata() or {}).get("hash") == _hash("", *tensors)
    except OSError:
        return None
    except SafetensorError:
        whole = False
    if not whole:
        with suppress(OSError):
            file.unlink()
        return None
    with suppress(OSError):  # a folder that several share may be for reading alone
        os.utime(file)
    return Decomposition(*tensors)


def _write(found: Decomposition, file: Path) -> None:
    """Keeps a decomposition, as far as there is room; where that cannot be, one warning says so."""
    tensors = {name: getattr(found, name).cpu().contiguous() for name in _NAMES}
    try:
        if _cache.make_room(file.parent, sum(tensor.nbytes for tensor in tensors.values())):
            with _cache.replacing(file) as unfinished:
                save_file(tensors, unfinished, {"hash": _hash("", *tensors.values())})
    except (OSError, SafetensorError) as error:
        if file.parent not in _warned:
            _warned.add(file.parent)
            text = f"surm_kernels cannot keep SiVA's decompositions in {file.parent} and makes them anew: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _hash(words: str, *tensors: Tensor) -> str:
    """BLAKE2 of words and of tensors: types, shapes and bytes."""
    found = hashlib.blake2b(words.encode(), digest_size=20)
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        found.update(f"{content.dtype} {tuple(content.shape)}".encode())
        found.update((ctypes.c_char * content.nbytes).from_address(content.data_ptr()))
    return found.hexdigest()
