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

from surm_kernels._widening import widened
from surm_kernels.ops._library import define
from surm_kernels.ops._outputs import in_shape
from surm_kernels.reference.ops import generated as reference

SMALL = 1 << 18  # bytes of a matrix that is one panel
PANEL_ROWS = 384  # at most, of a larger one, and no more than half; a product with far fewer is slower an entry
TOKENS = 1024  # in a group of 16-bit tokens


# v[i]^j for v (m,) in float32 or float64, rounded once, subnormal powers zero; empty rows (T, columns) like x (T, n),
# in memory that is cheap to fill. Neither knows derivatives: those of a panel have closed formulas.
_powers = define(
    "powers(Tensor v, SymInt columns) -> Tensor", lambda v, columns: v.new_empty(v.shape[0], columns), reference.powers
)
_empty_rows = define("empty_rows(Tensor x, SymInt columns) -> Tensor", reference.empty_rows, reference.empty_rows)


def generated(x: Tensor, parameters: Sequence[Tensor], base: Tensor | None, kind: str, scale: float) -> Tensor:
    matrix = _KINDS[kind](x.shape[-1], *parameters)
    inputs = _tokens(x)
    outputs = _empty_rows(inputs, parameters[0].shape[0])
    starts = outputs if base is None else _tokens(base)
    for group in _groups(inputs):
        tokens, start, output = widened(inputs[group]), widened(starts[group]), outputs[group]
        result = _accumulator(output)
        for rows in _panels(parameters[0], x.shape[-1]):
            panel, part = matrix.panel(rows), result[:, rows]
            torch.addmm(start[:, rows], tokens, panel.mT, beta=0 if base is None else 1, alpha=scale, out=part)
            del panel  # before the next one comes
        _store(result, output)
    return in_shape(outputs, *x.shape[:-1], outputs.shape[-1])


def generated_backward(
    g: Tensor, x: Tensor, parameters: Sequence[Tensor], kind: str, scale: float, need_x: bool, need_parameters: bool
) -> list[Tensor]:
    matrix = _KINDS[kind](x.shape[-1], *parameters)
    outer, inner = _tokens(g), _tokens(x)
    results = _empty_rows(inner if need_x else inner[:0], x.shape[-1])
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for group in _groups(inner):
        cotangents, tokens, output = widened(outer[group]), widened(inner[group]), results[group]
        result = _accumulator(output)
        for rows in _panels(parameters[0], x.shape[-1]):
            panel = matrix.panel(rows)
            if need_x:
                result.addmm_(cotangents[:, rows], panel, beta=0 if rows.start == 0 else 1, alpha=scale)
            if need_parameters:
                matrix.add_gradients(rows, panel, cotangents[:, rows].mT @ tokens, *gradients)
            del panel
        _store(result, output)
    x_gradients = [in_shape(results, *x.shape)] if need_x else []
    return x_gradients + [gradient * scale for gradient in gradients] * need_parameters


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


def _panels(v: Tensor, columns: int) -> Iterator[slice]:
    """The rows of each panel."""
    small = len(v) * columns * v.itemsize <= SMALL
    height = len(v) if small else min(PANEL_ROWS, math.ceil(len(v) / 2))
    for start in range(0, len(v), height):
        yield slice(start, min(start + height, len(v)))


def _without_subnormals(panel: Tensor) -> Tensor:
    """Subnormal entries, which high powers of small nodes are, become zeros.

    A matrix product can take forty times as long over them.
    """
    return torch.hardshrink(panel, torch.finfo(panel.dtype).tiny, out=panel)


class _Vandermonde:
    """`W[i, j] = v[i]^j`."""

    def __init__(self, columns: int, v: Tensor) -> None:
        self.v = v
        self.exponents = torch.arange(columns, dtype=v.dtype, device=v.device)

    def panel(self, rows: slice) -> Tensor:
        return _powers(self.v[rows], len(self.exponents))

    def add_gradients(self, rows: slice, panel: Tensor, gradient: Tensor, v_gradient: Tensor) -> None:
        """The derivative of `v[i]^j` is `j v[i]^(j - 1)`."""
        gradient[:, 1:].mul_(panel[:, :-1])
        v_gradient[rows] += gradient @ self.exponents  # the first of which is 0


class _VandermondeLike:
    """`W[i, j] = v[i] W[i, j - 1] + (G^T H)[i, j]`."""

    def __init__(self, columns: int, v: Tensor, G: Tensor, H: Tensor) -> None:
        # From float64: a power of a rounded power would lose a digit with every step.
        self.powers = {step: (v.double() ** step).to(v.dtype)[:, None] for step in _doubling(columns)}
        self.G, self.H = G, H

    def panel(self, rows: slice) -> Tensor:
        panel = self.G[:, rows].mT @ self.H
        for step, power in self.powers.items():
            panel[:, step:].add_(power[rows] * panel[:, :-step])
        return _without_subnormals(panel)

    def add_gradients(
        self, rows: slice, panel: Tensor, gradient: Tensor, v_gradient: Tensor, G_gradient: Tensor, H_gradient: Tensor
    ) -> None:
        """With N the gradient of G^T H, `N[i, j] = gradient[i, j] + v[i] N[i, j + 1]`."""
        inner = gradient
        for step, power in self.powers.items():
            inner[:, :-step].add_(power[rows] * inner[:, step:])
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


def _doubling(columns: int) -> Iterator[int]:
    """1, 2, 4 and so on below the number of columns."""
    step = 1
    while step < columns:
        yield step
        step *= 2
