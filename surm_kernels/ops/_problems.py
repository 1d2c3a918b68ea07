"""What the choice of a kernel for a CUDA tensor depends on: for each operator a function with its signature.

A spectrum is kept and used by one backend, whatever the type of the tokens, so those problems have the type of the
arithmetic.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from surm_kernels import gpu_rule
from surm_kernels.gpu_rule import Problem


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _few(rows: Tensor) -> bool:
    return rows.shape[0] * rows.shape[1] < gpu_rule.FEW_TOKENS


def krylov(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Problem:
    _, outputs, inputs, block = v.shape
    if transposed:
        outputs, inputs = inputs, outputs
    return Problem("krylov", x.dtype, outputs, inputs, block, block, few_tokens=_few(x))


def krylov_pullback(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Problem:
    outputs, inputs = g.shape[2] // block, x.shape[2] // block
    return Problem("krylov_pullback", x.dtype, outputs, inputs, block, block, few_tokens=_few(x))


def krylov_backward(g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool) -> Problem:
    _, outputs, inputs, block = v.shape
    return Problem("krylov_backward", x.dtype, outputs, inputs, block, block, few_tokens=_few(x))


def krylov_dense(v: Tensor, sign: int) -> Problem:
    return Problem("krylov_dense", v.dtype, v.shape[1], v.shape[2], v.shape[3], v.shape[3])


def krylov_dense_adjoint(w: Tensor, block: int, sign: int) -> Problem:
    return Problem("krylov_dense_adjoint", w.dtype, w.shape[1] // block, w.shape[2] // block, block, block)


def krylov_spectrum(v: Tensor, sign: int, transposed: bool) -> Problem:
    _, outputs, inputs, block = v.shape
    if transposed:
        outputs, inputs = inputs, outputs
    return Problem("krylov_spectrum", _wide(v.dtype), outputs, inputs, block, block)


def krylov_by_spectrum(
    x: Tensor, spectrum: Tensor, base: Tensor | None, outputs: int, inputs: int, block: int, sign: int, scale: float
) -> Problem:
    return Problem("krylov_by_spectrum", _wide(x.dtype), outputs, inputs, block, block)


def krylov_merge(weight: Tensor, v: Tensor, sign: int, scale: float, out: Tensor) -> Problem:
    return Problem("krylov_merge", v.dtype, v.shape[0], v.shape[1], v.shape[2], v.shape[2])


def toeplitz(
    x: Tensor, t: Tensor, base: Tensor | None, columns: int, scale: float, transposed: bool, reflected: bool
) -> Problem:
    (_, outputs, inputs, _), rows = t.shape, t.shape[3] - columns + 1
    if transposed:
        outputs, inputs, rows, columns = inputs, outputs, columns, rows
    return Problem(
        "toeplitz", torch.promote_types(x.dtype, t.dtype), outputs, inputs, rows, columns, few_tokens=_few(x)
    )


def toeplitz_pullback(g: Tensor, x: Tensor, rows: int, columns: int, scale: float, reflected: bool) -> Problem:
    outputs, inputs = g.shape[2] // rows, x.shape[2] // columns
    return Problem("toeplitz_pullback", x.dtype, outputs, inputs, rows, columns, few_tokens=_few(x))


def toeplitz_backward(g: Tensor, x: Tensor, t: Tensor, columns: int, scale: float, reflected: bool) -> Problem:
    (_, outputs, inputs, length), dtype = t.shape, torch.promote_types(x.dtype, t.dtype)
    return Problem("toeplitz_backward", dtype, outputs, inputs, length - columns + 1, columns, few_tokens=_few(x))


def toeplitz_dense(t: Tensor, columns: int, reflected: bool) -> Problem:
    return Problem("toeplitz_dense", t.dtype, t.shape[1], t.shape[2], t.shape[3] - columns + 1, columns)


def toeplitz_dense_adjoint(w: Tensor, rows: int, columns: int, reflected: bool) -> Problem:
    return Problem("toeplitz_dense_adjoint", w.dtype, w.shape[1] // rows, w.shape[2] // columns, rows, columns)


def toeplitz_spectrum(t: Tensor, columns: int, transposed: bool, reflected: bool) -> Problem:
    (_, outputs, inputs, _), rows = t.shape, t.shape[3] - columns + 1
    if transposed:
        outputs, inputs, rows, columns = inputs, outputs, columns, rows
    return Problem("toeplitz_spectrum", _wide(t.dtype), outputs, inputs, rows, columns)


def toeplitz_by_spectrum(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
    reflected: bool,
) -> Problem:
    return Problem("toeplitz_by_spectrum", _wide(x.dtype), outputs, inputs, rows, columns)


def toeplitz_merge(weight: Tensor, t: Tensor, columns: int, reflected: bool, scale: float, out: Tensor) -> Problem:
    return Problem("toeplitz_merge", t.dtype, t.shape[0], t.shape[1], t.shape[2] - columns + 1, columns)


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
    x: Tensor, c: Tensor, index: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool
) -> Problem:
    return Problem("circulant_bank", x.dtype, rows=c.shape[1], columns=c.shape[1])


def diagonal_bank(
    x: Tensor, u: Tensor, s: Tensor, v: Tensor, index: Tensor, base: Tensor | None, scale: float
) -> Problem:
    return Problem("diagonal_bank", x.dtype, rows=u.shape[0], columns=v.shape[0], rank=u.shape[1])


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
