"""Grids as an adapted layer calls them: rows without groups, a bias, and values that may be the product of two factors.

W is that of `ops.grid` for the values v, or v * factor elementwise. With few tokens the ways around a kernel, views and
products of parameters, take longer than the kernel, so here they are one operator. Not differentiable: a layer calls
these within a Function of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from surm_kernels.block_kinds import KINDS
from surm_kernels.ops._library import define
from surm_kernels.ops._outputs import resized
from surm_kernels.ops.grid import grid, grid_backward, grid_pullback


def _blocks(v: Tensor) -> tuple[int, int]:
    """How many block rows and columns v (values,) or (M, K, values) has."""
    return (1, 1) if v.dim() == 1 else (v.shape[0], v.shape[1])


def _product_fake(
    x: Tensor, v: Tensor, factor: Tensor | None, bias: Tensor | None, kind: int, columns: int, scale: float
) -> Tensor:
    outputs, inputs = _blocks(v)
    torch._check(x.shape[-1] == inputs * columns)
    return x.new_empty(x.shape[0], outputs * KINDS[kind].rows(v.shape[-1], columns))


def _gradients_fake(
    g: Tensor,
    x: Tensor,
    v: Tensor,
    factor: Tensor | None,
    kind: int,
    columns: int,
    scale: float,
    input_gradient: bool,
) -> list[Tensor]:
    inner = [v.new_empty(v.shape) for _ in (v, factor)[: 1 if factor is None else 2]]
    return [x.new_empty(x.shape), *inner] if input_gradient else inner


def _values(v: Tensor, factor: Tensor | None) -> Tensor:
    return (v if factor is None else v * factor).view(1, *_blocks(v), v.shape[-1])


def _product(
    x: Tensor, v: Tensor, factor: Tensor | None, bias: Tensor | None, kind: int, columns: int, scale: float
) -> Tensor:
    base = None if bias is None else bias.expand(1, x.shape[0], -1)
    y = grid(x.unsqueeze(0), _values(v, factor), base, kind, columns, scale, False)
    return resized(y, *y.shape[1:])


def _gradients(
    g: Tensor,
    x: Tensor,
    v: Tensor,
    factor: Tensor | None,
    kind: int,
    columns: int,
    scale: float,
    input_gradient: bool,
) -> list[Tensor]:
    cotangents, rows, found = g.unsqueeze(0), x.unsqueeze(0), []
    if input_gradient:
        x_gradient, gradient = grid_backward(cotangents, rows, _values(v, factor), kind, columns, scale, False)
        found.append(resized(x_gradient, *x.shape))
    else:
        size = KINDS[kind].rows(v.shape[-1], columns)
        gradient = grid_pullback(cotangents, rows, kind, size, columns, scale)
    gradient = gradient.view(v.shape)
    return [*found, gradient] if factor is None else [*found, gradient * factor, gradient * v]


#: `bias + scale * x @ W.T` for rows x (T, inputs): (T, outputs).
factored_grid = define(
    "factored_grid(Tensor x, Tensor v, Tensor? factor, Tensor? bias, int kind, SymInt columns, float scale) -> Tensor",
    _product_fake,
    _product,
)
#: The gradients of `scale * <g, x @ W.T>` with respect to x, where wanted, v and, where there is one, factor.
factored_grid_gradients = define(
    "factored_grid_gradients(Tensor g, Tensor x, Tensor v, Tensor? factor, int kind, SymInt columns, float scale, "
    "bool input_gradient) -> Tensor[]",
    _gradients_fake,
    _gradients,
)


class FactoredGrid(NamedTuple):
    """The grid whose values are v (values,) or (M, K, values), times the factor elementwise where there is one."""

    v: Tensor
    factor: Tensor | None
    kind: int
    columns: int

    def rows(self, x: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        """`bias + scale * x @ W.T`, (T, outputs)."""
        found: Tensor = factored_grid(x, self.v, self.factor, bias, self.kind, self.columns, scale)
        return found

    def gradients(self, g: Tensor, x: Tensor, scale: float, input_gradient: bool) -> list[Tensor | None]:
        """Those of x, None unless wanted, of v and of the factor, if there is one."""
        found = factored_grid_gradients(g, x, self.v, self.factor, self.kind, self.columns, scale, input_gradient)
        return found if input_gradient else [None, *found]
