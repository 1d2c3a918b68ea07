"""What a layer computes for a mixed batch: one product for adapters that are alike, otherwise one for each adapter."""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import wide_type
from surm_kernels.block_kinds import CIRCULANT
from surm_kernels.functional import circulant_linear, siva_linear
from surm_kernels.functional._product import cast
from surm_kernels.ops import _mode
from surm_kernels.ops._library import without_autocast
from surm_kernels.ops.grid import grid_by_spectrum, grid_spectrum
from surm_kernels.peft._batch import Batch
from surm_kernels.structures import CirculantProduct, Siva, Structure
from surm_kernels.structures.circulant import Circulant


class Part(Protocol):
    """Adds the updates of some adapters to their rows; all other rows stay as they are."""

    def __call__(self, y: Tensor, x: Tensor, batch: Batch) -> Tensor: ...


class MixedProduct:
    """`y + alpha x W^T`, with an adapter's alpha and W for every row, and what is kept of the last batch's adapters."""

    def __init__(self) -> None:
        self._parts: tuple[tuple[str, ...], list[Part]] | None = None

    def __call__(self, layer: Any, y: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """y, the base's output for x, with every row's update added to it."""
        if x.dim() < 2:
            raise ValueError(f"adapter_names is of rows, got an input of shape {tuple(x.shape)}, which has none")
        batch.names(x.shape[0])
        parts = self._parts
        if parts is None or parts[0] != batch.adapters:
            self._parts = parts = batch.adapters, list(_parts(layer, batch.adapters))
        for part in parts[1]:
            y = part(y, x, batch)
        return y

    def clear(self) -> None:
        """Gives the memory back; for adapters that were changed otherwise than in their values too."""
        self._parts = None

    def __reduce__(self) -> tuple[type, tuple]:
        return MixedProduct, ()  # copies and pickles start empty


def _parts(layer: Any, adapters: Sequence[str]) -> Iterator[Part]:
    kinds: dict[object, list[str]] = {}
    for name in adapters:
        if name in layer.structures:
            kinds.setdefault(_kind(layer, name), []).append(name)
    for kind, names in kinds.items():
        if kind is None:
            yield Groups(layer, names)
        else:
            structure = layer.structures[names[0]]
            yield (SivaBank if isinstance(structure, Siva) else CirculantBank)(layer, names)


def _kind(layer: Any, adapter: str) -> object:
    """What is the same of adapters that one product serves; None of those that need their own."""
    structure: Structure = layer.structures[adapter]
    if isinstance(structure, Siva):
        fixed = getattr(layer, layer.fixed_name)[adapter]
        return structure, fixed.U.dtype, *fixed.fingerprint.tolist()
    square = structure.in_features == structure.out_features
    if square and isinstance(structure, (CirculantProduct, Circulant)):
        return structure if structure.block_size in (None, structure.in_features) else None
    return None


class Groups:
    """Rows sorted by adapter, with the product of its structure for the rows of each."""

    def __init__(self, layer: Any, adapters: Sequence[str]) -> None:
        self._layer, self._adapters = layer, tuple(adapters)

    def __call__(self, y: Tensor, x: Tensor, batch: Batch) -> Tensor:
        order = batch.order(self._adapters, x)
        *own, others = zip(order.split(y), order.split(x), strict=True)
        added = [
            self._layer.added(self._layer.current([name]), *rows)
            for name, rows in zip(self._adapters, own, strict=True)
        ]
        return order.join([*added, others[0]])


class _Bank:
    """Adapters of one structure: their trained tensors in one, with zeros for the rows that have none of them."""

    def __init__(self, layer: Any, adapters: Sequence[str]) -> None:
        self._adapters = tuple(adapters)
        self._updates = [layer.current([name]) for name in adapters]
        self._alphas = [[current.update.scale] for current in self._updates]

    def _with_zeros(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (adapters, n) by their alphas, and one of zeros."""
        alphas = torch.tensor(self._alphas, dtype=rows.dtype, device=rows.device)
        return cast(torch.cat([alphas * rows, rows.new_zeros(1, rows.shape[1])]), dtype)


class SivaBank(_Bank):
    """Values on the same bases."""

    def __call__(self, y: Tensor, x: Tensor, batch: Batch) -> Tensor:
        tensors = [current.tensors() for current in self._updates]
        U, _, V = tensors[0]
        dtype = U.dtype if _checks.autocasts(x) else x.dtype
        s = self._with_zeros(torch.stack([s for _, s, _ in tensors]), dtype)
        index = batch.index(self._adapters, x)
        return siva_linear(x, cast(U, dtype), s, cast(V, dtype), base=y, index=index)


class CirculantBank(_Bank):
    """Square circulants. On the CPU their spectra are kept until a parameter changes, by whatever way."""

    def __init__(self, layer: Any, adapters: Sequence[str]) -> None:
        super().__init__(layer, adapters)
        self._spectra: tuple[Tensor, Tensor] | None = None

    def __call__(self, y: Tensor, x: Tensor, batch: Batch) -> Tensor:
        factors = torch.stack([tensor for current in self._updates for tensor in current.tensors()])
        index = batch.index(self._adapters, x)
        if _is_unrecorded(y, x, factors):
            with torch.no_grad(), without_autocast(x):
                return _by_spectrum(y, x, self._kept_spectra(factors, wide_type(y.dtype))[index])
        c = self._columns(factors, factors.dtype if _checks.autocasts(x) else x.dtype)
        return circulant_linear(x, c, base=y, index=index)

    def _columns(self, factors: Tensor, dtype: torch.dtype) -> Tensor:
        """First columns, (adapters + 1, n), of the products of each adapter's factors."""
        own = factors.view(len(self._adapters), -1, factors.shape[-1]).unbind(1)
        return self._with_zeros(reduce(torch.mul, own), dtype)

    def _kept_spectra(self, factors: Tensor, dtype: torch.dtype) -> Tensor:
        """(adapters + 1, size): it costs less to look at all factors than to transform them."""
        kept = self._spectra
        if kept is None or kept[1].dtype is not dtype or not _equal(kept[0], factors):
            columns = self._columns(factors, dtype)
            spectra = grid_spectrum(columns[:, None, None], CIRCULANT, columns.shape[1], False)
            self._spectra = kept = factors, spectra.view(columns.shape[0], -1)
        return kept[1]


def _by_spectrum(y: Tensor, x: Tensor, spectra: Tensor) -> Tensor:
    """y + x W^T with the spectrum of a circulant W for every row, (rows, size)."""
    shape = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]
    rows, base = cast(x.reshape(shape), y.dtype), y.reshape(shape)
    return grid_by_spectrum(rows, spectra.view(-1), base, CIRCULANT, 1, 1, shape[2], shape[2], 1.0).view(y.shape)


def _is_unrecorded(y: Tensor, x: Tensor, factors: Tensor) -> bool:
    """Whether a call may keep spectra and use them: nobody asks for a derivative, and values are at hand."""
    if not (x.is_cpu and type(y) is Tensor and _mode.is_ordinary(x)):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in (y, x, factors)))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and torch.equal(a, b)
