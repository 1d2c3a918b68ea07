"""What the choice of a kernel for a CUDA tensor depends on: for each operator a function with its signature.

A spectrum is kept and used by one backend, whatever the type of the tokens, so those problems have the type of the
arithmetic.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels import gpu_rule
from surm_kernels._widening import wide_type
from surm_kernels.block_kinds import KINDS
from surm_kernels.gpu_rule import Problem


def _few(rows: Tensor) -> bool:
    return rows.shape[0] * rows.shape[1] < gpu_rule.FEW_TOKENS


def grid(
    x: Tensor, values: Tensor, base: Tensor | None, kind: int, columns: int, scale: float, transposed: bool
) -> Problem:
    dtype = torch.promote_types(x.dtype, values.dtype)
    return _grid("grid", dtype, values.shape[1:], kind, columns, transposed, _few(x))


def grid_pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> Problem:
    outputs, inputs = g.shape[2] // rows, x.shape[2] // columns
    return Problem("grid_pullback", x.dtype, outputs, inputs, rows, columns, few_tokens=_few(x), kind=kind)


def grid_backward(
    g: Tensor, x: Tensor, values: Tensor, kind: int, columns: int, scale: float, transposed: bool
) -> Problem:
    dtype = torch.promote_types(x.dtype, values.dtype)
    return _grid("grid_backward", dtype, values.shape[1:], kind, columns, False, _few(x))


def grid_dense(values: Tensor, kind: int, columns: int) -> Problem:
    return _grid("grid_dense", values.dtype, values.shape[1:], kind, columns)


def grid_dense_adjoint(w: Tensor, kind: int, rows: int, columns: int) -> Problem:
    outputs, inputs = w.shape[1] // rows, w.shape[2] // columns
    return Problem("grid_dense_adjoint", w.dtype, outputs, inputs, rows, columns, kind=kind)


def grid_spectrum(values: Tensor, kind: int, columns: int, transposed: bool) -> Problem:
    return _grid("grid_spectrum", wide_type(values.dtype), values.shape[1:], kind, columns, transposed)


def grid_by_spectrum(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    kind: int,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
) -> Problem:
    return Problem("grid_by_spectrum", wide_type(x.dtype), outputs, inputs, rows, columns, kind=kind)


def grid_merge(
    weight: Tensor, values: Tensor, kind: int, columns: int, scale: float, key: Tensor | None, out: Tensor
) -> Problem:
    return _grid("grid_merge", values.dtype, values.shape, kind, columns)


def _grid(
    operator: str,
    dtype: torch.dtype,
    blocks: Sequence[int],
    kind: int,
    columns: int,
    transposed: bool = False,
    few_tokens: bool = False,
) -> Problem:
    """Of a grid whose values are (M, K, size)."""
    outputs, inputs, size = blocks
    rows = KINDS[kind].rows(size, columns)
    if transposed:
        outputs, inputs, rows, columns = inputs, outputs, columns, rows
    return Problem(operator, dtype, outputs, inputs, rows, columns, few_tokens=few_tokens, kind=kind)


def ldr(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    base: Tensor | None,
    width: int,
    scale: float,
    transposed: bool,
    reflected: bool,
) -> Problem:
    return _low_displacement_rank("ldr", left)


def ldr_pullback_left(g: Tensor, x: Tensor, right: Tensor, scale: float, reflected: bool) -> Problem:
    return _low_displacement_rank("ldr_pullback_left", right)


def ldr_pullback_right(g: Tensor, x: Tensor, left: Tensor, scale: float, reflected: bool) -> Problem:
    return _low_displacement_rank("ldr_pullback_right", left)


def ldr_backward(g: Tensor, x: Tensor, left: Tensor, right: Tensor, scale: float, reflected: bool) -> Problem:
    return _low_displacement_rank("ldr_backward", left)


def _low_displacement_rank(operator: str, generator: Tensor) -> Problem:
    _, rank, size = generator.shape
    return Problem(operator, generator.dtype, rows=size, columns=size, rank=rank)


def kronecker(x: Tensor, a: Tensor, b: Tensor, base: Tensor | None, scale: float, transposed: bool) -> Problem:
    return Problem("kronecker", x.dtype, *a.shape[1:], *b.shape[1:])


def kronecker_pullback_left(g: Tensor, x: Tensor, b: Tensor, scale: float) -> Problem:
    _, r, s = b.shape
    return Problem("kronecker_pullback_left", x.dtype, g.shape[2] // r, x.shape[2] // s, r, s)


def kronecker_pullback_right(g: Tensor, x: Tensor, a: Tensor, scale: float) -> Problem:
    _, p, q = a.shape
    return Problem("kronecker_pullback_right", x.dtype, p, q, g.shape[2] // p, x.shape[2] // q)


def kronecker_backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Problem:
    return Problem("kronecker_backward", x.dtype, *a.shape[1:], *b.shape[1:])


def diagonal(x: Tensor, u: Tensor, s: Tensor, v: Tensor, base: Tensor | None, scale: float) -> Problem:
    return Problem("diagonal", x.dtype, rows=u.shape[1], columns=v.shape[1], rank=u.shape[2])


def diagonal_pullback(g: Tensor, x: Tensor, u: Tensor, v: Tensor, scale: float) -> Problem:
    return Problem("diagonal_pullback", x.dtype, rows=u.shape[1], columns=v.shape[1], rank=u.shape[2])


def diagonal_backward(g: Tensor, x: Tensor, u: Tensor, s: Tensor, v: Tensor, scale: float) -> Problem:
    return Problem("diagonal_backward", x.dtype, rows=u.shape[1], columns=v.shape[1], rank=u.shape[2])


def circulant_bank(
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, kind: int, scale: float, transposed: bool
) -> Problem:
    return Problem("circulant_bank", x.dtype, rows=c.shape[1], columns=c.shape[1])


def diagonal_bank(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Problem:
    return Problem("diagonal_bank", x.dtype, rows=u.shape[0], columns=v.shape[0], rank=u.shape[1])


def stochastic_sum(weight: Tensor, addend: Tensor, key: Tensor, out: Tensor) -> Problem:
    return Problem("stochastic_sum", out.dtype)


def rounding_key(first: Tensor, others: Sequence[Tensor], seed: int) -> Problem:
    return Problem("rounding_key", torch.int64)


def generated(x: Tensor, parameters: Sequence[Tensor], base: Tensor | None, kind: str, scale: float) -> Problem:
    return Problem("generated", _widest(x, *parameters), rows=parameters[0].shape[0], columns=x.shape[-1])


def generated_backward(
    g: Tensor, x: Tensor, parameters: Sequence[Tensor], kind: str, scale: float, need_x: bool, need_parameters: bool
) -> Problem:
    return Problem("generated_backward", _widest(x, *parameters), rows=parameters[0].shape[0], columns=x.shape[-1])


def _widest(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
