"""Products with generated matrices and their gradients, a panel of rows at a time; ops/generated.py has the kinds.

A panel is multiplied by the tokens straight into its columns of the output; the gradient of a panel goes to the
parameters by a closed formula. 16-bit tokens pass through float32 in groups and are rounded once. Sums over tokens and
panels run in a fixed order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from surm_kernels.reference.ops._rows import wide

PANEL_ROWS = 384  # at most; a matrix product with far fewer rows is slower an entry
SMALL = 64  # rows that need no second panel
TOKENS = 1024  # in a group of 16-bit tokens
FIRST = 16  # powers that need no doubling


def generated(x: Tensor, parameters: Sequence[Tensor], base: Tensor | None, kind: str, scale: float) -> Tensor:
    matrix = _KINDS[kind](x.shape[-1], *parameters)
    y = x.new_empty(*x.shape[:-1], parameters[0].shape[0])
    inputs, outputs = _tokens(x), _tokens(y)
    starts = outputs if base is None else _tokens(base)
    for group in _groups(inputs):
        tokens, start, output = wide(inputs[group]), wide(starts[group]), outputs[group]
        result = _accumulator(output)
        for rows in _panels(parameters[0].shape[0]):
            panel, part = _without_subnormals(matrix.panel(rows)), result[:, rows]
            torch.addmm(start[:, rows], tokens, panel.mT, beta=0 if base is None else 1, alpha=scale, out=part)
            del panel  # before the next one comes
        _store(result, output)
    return y


def generated_backward(
    g: Tensor, x: Tensor, parameters: Sequence[Tensor], kind: str, scale: float, need_x: bool, need_parameters: bool
) -> list[Tensor]:
    matrix = _KINDS[kind](x.shape[-1], *parameters)
    x_gradient = x.new_empty(x.shape if need_x else (0, x.shape[-1]))
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    outer, inner, results = _tokens(g), _tokens(x), _tokens(x_gradient)
    for group in _groups(inner):
        cotangents, tokens, output = wide(outer[group]), wide(inner[group]), results[group]
        result = _accumulator(output)
        for rows in _panels(parameters[0].shape[0]):
            panel, part = _without_subnormals(matrix.panel(rows)), cotangents[:, rows]
            if need_x:
                result.addmm_(part, panel, beta=0 if rows.start == 0 else 1, alpha=scale)
            if need_parameters:
                matrix.add_gradients(rows, panel, part.mT @ tokens, *gradients)
            del panel
        _store(result, output)
    return [x_gradient] * need_x + [gradient * scale for gradient in gradients] * need_parameters


def _tokens(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _groups(tokens: Tensor) -> Iterator[slice]:
    """All tokens at once, or where they have 16 bits groups of them, to be widened."""
    size = TOKENS if tokens.dtype.itemsize == 2 else max(len(tokens), 1)
    for start in range(0, len(tokens), size):
        yield slice(start, start + size)


def _accumulator(output: Tensor) -> Tensor:
    """Where results for the output are computed: the output itself, or a float32 tensor for a 16-bit one."""
    return output if output.dtype.itemsize > 2 else torch.empty_like(output, dtype=torch.float32)


def _store(result: Tensor, output: Tensor) -> None:
    if result is not output:
        output.copy_(result)


def _panels(size: int) -> Iterator[slice]:
    """The rows of each panel: no more than half of them unless there are few."""
    count = max(math.ceil(size / PANEL_ROWS), 2 if size > SMALL else 1)
    height = 16 * math.ceil(size / count / 16)
    for start in range(0, size, height):
        yield slice(start, min(start + height, size))


def _without_subnormals(panel: Tensor) -> Tensor:
    """Subnormal entries, which high powers of small nodes are, become zeros.

    A matrix product can take forty times as long over them.
    """
    return torch.hardshrink(panel, torch.finfo(panel.dtype).tiny, out=panel)


class _Vandermonde:
    """`W[i, j] = v[i]^j`: the first powers from a table, the others by doubling, one multiplication an entry."""

    def __init__(self, columns: int, v: Tensor) -> None:
        self.columns = columns
        self.powers = _Powers(v, columns)
        self.exponents = torch.arange(columns, dtype=v.dtype, device=v.device)

    def panel(self, rows: slice) -> Tensor:
        first = self.powers.first(rows)
        panel = first.new_empty(rows.stop - rows.start, self.columns)
        panel[:, : first.shape[1]] = first
        for step in _doubling(self.columns, first.shape[1]):
            later = panel[:, step : 2 * step]
            torch.mul(panel[:, : later.shape[1]], self.powers.of(step, rows), out=later)
        return panel

    def add_gradients(self, rows: slice, panel: Tensor, gradient: Tensor, v_gradient: Tensor) -> None:
        """The derivative of `v[i]^j` is `j v[i]^(j - 1)`."""
        v_gradient[rows] += gradient[:, 1:].mul_(panel[:, :-1]) @ self.exponents[1:]


class _VandermondeLike:
    """`W[i, j] = v[i] W[i, j - 1] + (G^T H)[i, j]`."""

    def __init__(self, columns: int, v: Tensor, G: Tensor, H: Tensor) -> None:
        self.powers = _Powers(v, columns)
        self.G, self.H = G, H

    def panel(self, rows: slice) -> Tensor:
        panel = self.G[:, rows].mT @ self.H
        for step in _doubling(panel.shape[1]):
            panel[:, step:].add_(self.powers.of(step, rows) * panel[:, :-step])
        return panel

    def add_gradients(
        self, rows: slice, panel: Tensor, gradient: Tensor, v_gradient: Tensor, G_gradient: Tensor, H_gradient: Tensor
    ) -> None:
        """With N the gradient of G^T H, `N[i, j] = gradient[i, j] + v[i] N[i, j + 1]`."""
        inner = gradient
        for step in _doubling(inner.shape[1]):
            inner[:, :-step].add_(self.powers.of(step, rows) * inner[:, step:])
        G_gradient[:, rows] += self.H @ inner.mT
        H_gradient += self.G[:, rows] @ inner
        v_gradient[rows] += inner[:, 1:].mul_(panel[:, :-1]).sum(1)


class _CauchyLike:
    """`W[i, j] = (G^T H)[i, j] / (v[i] - u[j])`."""

    def __init__(self, columns: int, v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> None:
        self.v, self.u, self.G, self.H = v, u, G, H

    def panel(self, rows: slice) -> Tensor:
        return (self.G[:, rows].mT @ self.H).div_(self.v[rows, None] - self.u)

    def add_gradients(
        self,
        rows: slice,
        panel: Tensor,
        gradient: Tensor,
        v_gradient: Tensor,
        u_gradient: Tensor,
        G_gradient: Tensor,
        H_gradient: Tensor,
    ) -> None:
        """The derivative of `1 / (v[i] - u[j])` is its square, with the sign of u[j]."""
        inner = gradient.div_(self.v[rows, None] - self.u)
        G_gradient[:, rows] += self.H @ inner.mT
        H_gradient += self.G[:, rows] @ inner
        inner.mul_(panel)
        v_gradient[rows] -= inner.sum(1)
        u_gradient += inner.sum(0)


_KINDS: dict[str, Any] = {
    "vandermonde": _Vandermonde,
    "vandermonde_like": _VandermondeLike,
    "cauchy_like": _CauchyLike,
}


class _Powers:
    """The powers of nodes that panels need, each rounded once: the first few, then those with exponents 2^k."""

    def __init__(self, v: Tensor, columns: int) -> None:
        first = range(min(FIRST, columns))
        self._place = {exponent: place for place, exponent in enumerate([*first, *_doubling(columns, FIRST)])}
        exponents = torch.tensor(list(self._place), device=v.device)
        self._table = (v.double()[:, None] ** exponents).to(v.dtype)
        self._count = len(first)

    def first(self, rows: slice) -> Tensor:
        """(rows, the first few), from exponent 0."""
        return self._table[rows, : self._count]

    def of(self, exponent: int, rows: slice) -> Tensor:
        """One power of the nodes of some rows, as a column."""
        return self._table[rows, self._place[exponent], None]


def _doubling(columns: int, first: int = 1) -> Iterator[int]:
    """1, 2, 4 and so on below the number of columns, without those below `first`."""
    step = first
    while step < columns:
        yield step
        step *= 2
