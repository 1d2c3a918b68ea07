"""The adapters of a mixed batch, by row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: In place of an adapter's name: that row gets the model as it is.
BASE = "__base__"


class Batch:
    """The adapter of every row of a call, looked at once for all layers.

    Args:
        names: of the rows.
        repeats: how many rows of a decoder follow from one, as in beam search.
    """

    def __init__(self, names: Sequence[str], repeats: int = 1) -> None:
        self.adapters = tuple(sorted({*names} - {BASE}))
        self._names, self._repeats = tuple(names), repeats
        self._indices: dict[Any, Tensor] = {}
        self._orders: dict[Any, Order] = {}

    def names(self, rows: int) -> Sequence[str]:
        """Those of the rows of a layer's input."""
        if rows == len(self._names):
            return self._names
        if rows == len(self._names) * self._repeats:
            return [name for name in self._names for _ in range(self._repeats)]
        raise ValueError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self._names)} and "
            f"{rows} respectively; where generate() makes several rows of one, num_beams or num_return_sequences must "
            f"be among its arguments"
        )

    def index(self, adapters: tuple[str, ...], x: Tensor) -> Tensor:
        """Of every row of x its place among the adapters; the rows of all others get the place after the last."""
        key = adapters, x.shape[0], x.device
        if key not in self._indices:
            places = {name: place for place, name in enumerate(adapters)}
            found = [places.get(name, len(adapters)) for name in self.names(x.shape[0])]
            self._indices[key] = torch.tensor(found, dtype=torch.int64, device=x.device)
        return self._indices[key]

    def order(self, adapters: tuple[str, ...], x: Tensor) -> "Order":
        """The rows of x sorted by their place among the adapters."""
        key = adapters, x.shape[0], x.device
        if key not in self._orders:
            self._orders[key] = Order(self.index(adapters, x), len(adapters))
        return self._orders[key]


class Order:
    """Rows sorted by adapter, and back."""

    def __init__(self, index: Tensor, adapters: int) -> None:
        self._sizes = torch.bincount(index, minlength=adapters + 1).tolist()
        self._order = torch.argsort(index, stable=True)
        self._back = torch.argsort(self._order)

    def split(self, t: Tensor) -> Sequence[Tensor]:
        """The rows of every adapter, and at the end those that have none."""
        return t[self._order].split(self._sizes)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Undoes `split`."""
        return torch.cat(list(parts))[self._back]
