"""The block Toeplitz and Hankel product W(t), its transpose, pullback and dense matrix, closed under differentiation.

W(t) is the (M m) x (K n) matrix whose block (p, q) has the entries t[p, q, i - j + n - 1], or t[p, q, i + j] when
reflected; m is `rows`, n `columns`. Every tensor has a leading dimension G of independent problems, which carries vmap.
For frozen parameters there are besides, without derivatives: products by a spectrum that is kept, and merging W(t) of a
single problem into a weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import Form
from surm_kernels.reference.ops import toeplitz as reference


def _toeplitz_fake(
    x: Tensor, t: Tensor, base: Tensor | None, columns: int, scale: float, transposed: bool, reflected: bool
) -> Tensor:
    _, out_blocks, in_blocks, _ = t.shape
    outputs, inputs = out_blocks * _rows(t, columns), in_blocks * columns
    if transposed:
        outputs, inputs = inputs, outputs
    torch._check(x.shape[-1] == inputs)
    return x.new_empty(x.shape[0], x.shape[1], outputs)


def _toeplitz_pullback_fake(g: Tensor, x: Tensor, rows: int, columns: int, scale: float, reflected: bool) -> Tensor:
    return x.new_empty(x.shape[0], g.shape[-1] // rows, x.shape[-1] // columns, rows + columns - 1)


def _toeplitz_backward_fake(
    g: Tensor, x: Tensor, t: Tensor, columns: int, scale: float, reflected: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), t.new_empty(t.shape)


def _toeplitz_dense_fake(t: Tensor, columns: int, reflected: bool) -> Tensor:
    groups, out_blocks, in_blocks, _ = t.shape
    return t.new_empty(groups, out_blocks * _rows(t, columns), in_blocks * columns)


def _toeplitz_dense_adjoint_fake(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    return w.new_empty(w.shape[0], w.shape[1] // rows, w.shape[2] // columns, rows + columns - 1)


def _toeplitz_spectrum_fake(t: Tensor, columns: int, transposed: bool, reflected: bool) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # known to the kernels alone
    return t.new_empty(size, dtype=torch.promote_types(t.dtype, torch.float32))


def _toeplitz_by_spectrum_fake(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
    reflected: bool,
) -> Tensor:
    torch._check(x.shape[-1] == inputs * columns)
    return x.new_empty(x.shape[0], x.shape[1], outputs * rows)


def _toeplitz_merge_fake(weight: Tensor, t: Tensor, columns: int, reflected: bool, scale: float, out: Tensor) -> None:
    for matrix in (weight, out):
        torch._check(matrix.shape == (t.shape[0] * _rows(t, columns), t.shape[1] * columns))


def _rows(t: Tensor, columns: int) -> int:
    return t.shape[-1] - columns + 1


TOEPLITZ = (
    "toeplitz(Tensor x, Tensor t, Tensor? base, SymInt columns, float scale, bool transposed, bool reflected) -> Tensor"
)
PULLBACK = "toeplitz_pullback(Tensor g, Tensor x, SymInt rows, SymInt columns, float scale, bool reflected) -> Tensor"
BACKWARD = (
    "toeplitz_backward(Tensor g, Tensor x, Tensor t, SymInt columns, float scale, bool reflected) -> (Tensor, Tensor)"
)
DENSE = "toeplitz_dense(Tensor t, SymInt columns, bool reflected) -> Tensor"
DENSE_ADJOINT = "toeplitz_dense_adjoint(Tensor w, SymInt rows, SymInt columns, bool reflected) -> Tensor"
SPECTRUM = "toeplitz_spectrum(Tensor t, SymInt columns, bool transposed, bool reflected) -> Tensor"
BY_SPECTRUM = (
    "toeplitz_by_spectrum(Tensor x, Tensor spectrum, Tensor? base, SymInt outputs, SymInt inputs, SymInt rows, "
    "SymInt columns, float scale, bool reflected) -> Tensor"
)
MERGE = "toeplitz_merge(Tensor weight, Tensor t, SymInt columns, bool reflected, float scale, Tensor(a!) out) -> ()"

_toeplitz = define(TOEPLITZ, _toeplitz_fake, reference.toeplitz, cuda=_problems.toeplitz)
_toeplitz_pullback = define(
    PULLBACK, _toeplitz_pullback_fake, reference.toeplitz_pullback, cuda=_problems.toeplitz_pullback
)
_toeplitz_backward = define(
    BACKWARD, _toeplitz_backward_fake, reference.toeplitz_backward, cuda=_problems.toeplitz_backward
)
_toeplitz_dense = define(DENSE, _toeplitz_dense_fake, reference.toeplitz_dense, cuda=_problems.toeplitz_dense)
_toeplitz_dense_adjoint = define(
    DENSE_ADJOINT, _toeplitz_dense_adjoint_fake, reference.toeplitz_dense_adjoint, cuda=_problems.toeplitz_dense_adjoint
)
_toeplitz_spectrum = define(
    SPECTRUM, _toeplitz_spectrum_fake, reference.toeplitz_spectrum, cuda=_problems.toeplitz_spectrum
)
_toeplitz_by_spectrum = define(
    BY_SPECTRUM, _toeplitz_by_spectrum_fake, reference.toeplitz_by_spectrum, cuda=_problems.toeplitz_by_spectrum
)
_toeplitz_merge = define(MERGE, _toeplitz_merge_fake, reference.toeplitz_merge, cuda=_problems.toeplitz_merge)

# scale <g, x W(t)^T>
form = Form(
    "Toeplitz",
    (
        lambda base, _, x, t, columns, scale, reflected: _toeplitz(x, t, base, columns, scale, False, reflected),
        lambda base, g, _, t, columns, scale, reflected: _toeplitz(g, t, base, columns, scale, True, reflected),
        lambda _base, g, x, length, columns, scale, reflected: _toeplitz_pullback(
            g, x, length - columns + 1, columns, scale, reflected
        ),
    ),
    {0: lambda g, x, t, columns, scale, reflected: _toeplitz_backward(g, x, t, columns, scale, reflected)},
    merge=lambda weight, out, t, columns, scale, reflected: toeplitz_merge(
        weight, t.squeeze(0), columns, reflected, scale, out
    ),
    keep=lambda t, columns, _scale, reflected: _kept(t, columns, reflected),
)
# <w, W(t)>
dense_form = Form(
    "ToeplitzDense",
    (
        lambda _base, _, t, columns, reflected: _toeplitz_dense(t, columns, reflected),
        lambda _base, w, length, columns, reflected: _toeplitz_dense_adjoint(
            w, length - columns + 1, columns, reflected
        ),
    ),
)


def toeplitz(
    x: Tensor, t: Tensor, base: Tensor | None, columns: int, scale: float, transposed: bool, reflected: bool
) -> Tensor:
    """`base + scale * x @ W(t).T`, `x @ W(t)` when transposed."""
    if transposed:
        return form.partial(1, base, x, None, t, columns, scale, reflected)
    return form.partial(0, base, None, x, t, columns, scale, reflected)


def _kept(t: Tensor, columns: int, reflected: bool) -> Callable[[Tensor, Tensor | None, float], Tensor]:
    """The product with W(t) by its spectrum."""
    spectrum = toeplitz_spectrum(t, columns, False, reflected)
    (_, outputs, inputs, _), rows = t.shape, _rows(t, columns)
    return lambda x, base, scale: toeplitz_by_spectrum(
        x, spectrum, base, outputs, inputs, rows, columns, scale, reflected
    )


def toeplitz_pullback(g: Tensor, x: Tensor, rows: int, columns: int, scale: float, reflected: bool) -> Tensor:
    """The gradient of `scale * <g, x @ W(t).T>` with respect to t."""
    return form.partial(2, None, g, x, rows + columns - 1, columns, scale, reflected)


def toeplitz_backward(
    g: Tensor, x: Tensor, t: Tensor, columns: int, scale: float, reflected: bool
) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W(t).T>` with respect to x and t."""
    return form.gradients(0, g, x, t, columns, scale, reflected)


def toeplitz_dense(t: Tensor, columns: int, reflected: bool) -> Tensor:
    """The matrix W(t)."""
    return dense_form.partial(0, None, None, t, columns, reflected)


def toeplitz_dense_adjoint(w: Tensor, rows: int, columns: int, reflected: bool) -> Tensor:
    """The sums of w along the diagonals, antidiagonals when reflected: the gradient of `<w, W(t)>`."""
    return dense_form.partial(1, None, w, rows + columns - 1, columns, reflected)


def toeplitz_spectrum(t: Tensor, columns: int, transposed: bool, reflected: bool) -> Tensor:
    """The spectrum of W(t), of its transpose when transposed, for `toeplitz_by_spectrum`.

    A vector in float32, float64 where t (G, M, K, m + n - 1) is, for t's device and this process only. It serves any
    number of tokens of any type that is computed in its own.
    """
    return _toeplitz_spectrum(t, columns, transposed, reflected)


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
) -> Tensor:
    """`toeplitz` without the parameter: `base + scale * x @ W.T` for the W of `outputs` x `inputs` blocks kept.

    The blocks are rows x columns; those of the transpose of M x K blocks m x n are K x M and n x m.
    """
    return _toeplitz_by_spectrum(x, spectrum, base, outputs, inputs, rows, columns, scale, reflected)


def toeplitz_merge(weight: Tensor, t: Tensor, columns: int, reflected: bool, scale: float, out: Tensor) -> None:
    """`out = weight + scale * W(t)`, rounded once; weight may be out.

    t (M, K, m + n - 1) may have any type. weight and out (M m, K n) have one type or one of them is float32; the sum is
    taken in float32, or in float64 where one of them is. The values of a row of out are contiguous.
    """
    _toeplitz_merge(weight, t, columns, reflected, scale, out)
    torch.autograd.graph.increment_version(out)  # which an operator's own write does not
