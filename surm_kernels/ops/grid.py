"""The product with a grid of blocks, its transpose, pullback and dense matrix, closed under differentiation.

W(values) is the (M m) x (K n) matrix whose block (p, q) is circulant, skew-circulant, Toeplitz or Hankel, made of
values[p, q]; the kinds are those of block_kinds.py, m is `rows` and n `columns` of a block. The values may be float32
beside 16-bit rows, and then their gradient is. Every tensor has a leading dimension G of independent problems, which
carries vmap. For frozen parameters there are besides, without derivatives: products by a spectrum that is kept, and
merging W(values) of a single problem into a weight.
"""

import torch
from torch import Tensor

from surm_kernels._widening import wide_type
from surm_kernels.block_kinds import KINDS
from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import Multilinear, MultilinearForm
from surm_kernels.ops._primitive import Primitive, Product, Work, transform_work
from surm_kernels.reference.ops import grid as reference


def _sizes(values: Tensor, kind: int, columns: int) -> tuple[int, int]:
    """The size of W, for values (..., M, K, size)."""
    outputs, inputs, size = values.shape[-3:]
    return outputs * KINDS[kind].rows(size, columns), inputs * columns


def _grid_fake(
    x: Tensor, values: Tensor, base: Tensor | None, kind: int, columns: int, scale: float, transposed: bool
) -> Tensor:
    outputs, inputs = _sizes(values, kind, columns)
    if transposed:
        outputs, inputs = inputs, outputs
    torch._check(x.shape[-1] == inputs)
    return x.new_empty(x.shape[0], x.shape[1], outputs)


def _grid_pullback_fake(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> Tensor:
    blocks = g.shape[-1] // rows, x.shape[-1] // columns
    return x.new_empty(x.shape[0], *blocks, KINDS[kind].values(rows, columns))


def _grid_backward_fake(
    g: Tensor, x: Tensor, values: Tensor, kind: int, columns: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), values.new_empty(values.shape)


def _grid_dense_fake(values: Tensor, kind: int, columns: int) -> Tensor:
    return values.new_empty(values.shape[0], *_sizes(values, kind, columns))


def _grid_dense_adjoint_fake(w: Tensor, kind: int, rows: int, columns: int) -> Tensor:
    blocks = w.shape[1] // rows, w.shape[2] // columns
    return w.new_empty(w.shape[0], *blocks, KINDS[kind].values(rows, columns))


def _grid_spectrum_fake(values: Tensor, kind: int, columns: int, transposed: bool) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # known to the kernels alone
    return values.new_empty(size, dtype=wide_type(values.dtype))


def _grid_by_spectrum_fake(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    kind: int,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
) -> Tensor:
    torch._check(x.shape[-1] == inputs * columns)
    return x.new_empty(x.shape[0], x.shape[1], outputs * rows)


def _grid_merge_fake(
    weight: Tensor, values: Tensor, kind: int, columns: int, scale: float, key: Tensor | None, out: Tensor
) -> None:
    for matrix in (weight, out):
        torch._check(matrix.shape == _sizes(values, kind, columns))


_grid = define(
    "grid(Tensor x, Tensor values, Tensor? base, int kind, SymInt columns, float scale, bool transposed) -> Tensor",
    _grid_fake,
    reference.grid,
    cuda=_problems.grid,
)
_grid_pullback = define(
    "grid_pullback(Tensor g, Tensor x, int kind, SymInt rows, SymInt columns, float scale) -> Tensor",
    _grid_pullback_fake,
    reference.grid_pullback,
    cuda=_problems.grid_pullback,
)
_grid_backward = define(
    "grid_backward(Tensor g, Tensor x, Tensor values, int kind, SymInt columns, float scale, bool transposed) -> "
    "(Tensor, Tensor)",
    _grid_backward_fake,
    reference.grid_backward,
    cuda=_problems.grid_backward,
)
_grid_dense = define(
    "grid_dense(Tensor values, int kind, SymInt columns) -> Tensor",
    _grid_dense_fake,
    reference.grid_dense,
    cuda=_problems.grid_dense,
)
_grid_dense_adjoint = define(
    "grid_dense_adjoint(Tensor w, int kind, SymInt rows, SymInt columns) -> Tensor",
    _grid_dense_adjoint_fake,
    reference.grid_dense_adjoint,
    cuda=_problems.grid_dense_adjoint,
)
#: The spectrum of W, of its transpose when transposed, for `grid_by_spectrum`: a vector in float32, float64 where the
#: values are, for their device and this process only. It serves any number of tokens of any type computed in its own.
grid_spectrum = define(
    "grid_spectrum(Tensor values, int kind, SymInt columns, bool transposed) -> Tensor",
    _grid_spectrum_fake,
    reference.grid_spectrum,
    cuda=_problems.grid_spectrum,
)
#: `grid` without the values: `base + scale * x @ W.T` for the W of `outputs` x `inputs` blocks kept. The blocks are
#: rows x columns; those of the transpose of M x K blocks m x n are K x M and n x m.
grid_by_spectrum = define(
    "grid_by_spectrum(Tensor x, Tensor spectrum, Tensor? base, int kind, SymInt outputs, SymInt inputs, SymInt rows, "
    "SymInt columns, float scale) -> Tensor",
    _grid_by_spectrum_fake,
    reference.grid_by_spectrum,
    cuda=_problems.grid_by_spectrum,
)
_grid_merge = define(
    "grid_merge(Tensor weight, Tensor values, int kind, SymInt columns, float scale, Tensor? key, Tensor(a!) out) "
    "-> ()",
    _grid_merge_fake,
    reference.grid_merge,
    cuda=_problems.grid_merge,
)


class _Form(MultilinearForm):
    """Argument values (1, M, K, size); constants kind and columns."""

    def sizes(self, w: Primitive) -> tuple[int, int]:
        kind, columns = w.constants
        _, outputs, inputs, size = w.arguments[0].shape
        return outputs * KINDS[kind].rows(size, columns), inputs * columns

    def dense(self, w: Primitive) -> Tensor:
        return grid_dense(w.arguments[0], *w.constants).squeeze(0)

    def merge(self, w: Primitive, weight: Tensor, scale: float, key: Tensor | None, out: Tensor) -> bool:
        types = {weight.dtype, out.dtype}
        if (len(types) == 2 and torch.float32 not in types) or (out.stride(1) != 1 and out.shape[1] != 1):
            return False
        kind, columns = w.constants
        grid_merge(weight, w.arguments[0].squeeze(0), kind, columns, scale, key, out)
        return True

    def keep(self, w: Primitive) -> Product:
        (values,), (kind, columns) = w.arguments, w.constants
        spectrum = grid_spectrum(values, kind, columns, False)
        _, outputs, inputs, size = values.shape
        rows = KINDS[kind].rows(size, columns)
        return lambda x, base, scale: grid_by_spectrum(x, spectrum, base, kind, outputs, inputs, rows, columns, scale)

    def work(self, w: Primitive) -> Work:
        (_, outputs, inputs, size), (kind, columns) = w.arguments[0].shape, w.constants
        rows = KINDS[kind].rows(size, columns)
        length = KINDS[kind].transform(rows, columns)
        products = outputs * inputs * length if outputs * inputs > 1 else 0
        return Work((outputs + inputs) * transform_work(length) + products, outputs * rows * inputs * columns)


# scale <g, x W(values)^T>
form = _Form(
    "Grid",
    (
        lambda base, _, x, values, scale, kind, columns: _grid(x, values, base, kind, columns, scale, False),
        lambda base, g, _, values, scale, kind, columns: _grid(g, values, base, kind, columns, scale, True),
        lambda _base, g, x, size, scale, kind, columns: _grid_pullback(
            g, x, kind, KINDS[kind].rows(size, columns), columns, scale
        ),
    ),
    {
        0: lambda g, x, values, scale, kind, columns: _grid_backward(g, x, values, kind, columns, scale, False),
        1: lambda g, x, values, scale, kind, columns: _grid_backward(x, g, values, kind, columns, scale, True),
    },
)
# <w, W(values)>
dense_form = Multilinear(
    "GridDense",
    (
        lambda _base, _, values, kind, columns: _grid_dense(values, kind, columns),
        lambda _base, w, size, kind, columns: _grid_dense_adjoint(w, kind, KINDS[kind].rows(size, columns), columns),
    ),
)


def grid(
    x: Tensor, values: Tensor, base: Tensor | None, kind: int, columns: int, scale: float, transposed: bool
) -> Tensor:
    """`base + scale * x @ W.T`, `x @ W` when transposed."""
    if transposed:
        return form.partial(1, base, x, None, values, scale, kind, columns)
    return form.partial(0, base, None, x, values, scale, kind, columns)


def grid_pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ W.T>` with respect to the values."""
    return form.partial(2, None, g, x, KINDS[kind].values(rows, columns), scale, kind, columns)


def grid_backward(
    g: Tensor, x: Tensor, values: Tensor, kind: int, columns: int, scale: float, transposed: bool
) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W.T>`, `x @ W` when transposed, with respect to x and the values."""
    if transposed:
        return form.gradients_at(1, x, g, values, scale, kind, columns)
    return form.gradients_at(0, g, x, values, scale, kind, columns)


def grid_dense(values: Tensor, kind: int, columns: int) -> Tensor:
    """The matrix W."""
    return dense_form.partial(0, None, None, values, kind, columns)


def grid_dense_adjoint(w: Tensor, kind: int, rows: int, columns: int) -> Tensor:
    """The sums of the entries of w that one value fills, with its sign: the gradient of `<w, W>`."""
    return dense_form.partial(1, None, w, KINDS[kind].values(rows, columns), kind, columns)


def grid_merge(
    weight: Tensor, values: Tensor, kind: int, columns: int, scale: float, key: Tensor | None, out: Tensor
) -> None:
    """`out = weight + scale * W`, rounded once, to nearest or stochastically by the key; weight may be out.

    The values (M, K, size) may have any type. weight and out (M m, K n) have one type or one of them is float32; the
    sum is taken in float32, or in float64 where one of them is. The values of a row of out are contiguous. With a key
    out has 16 bits.
    """
    _grid_merge(weight, values, kind, columns, scale, key, out)
    torch.autograd.graph.increment_version(out)  # which an operator's own write does not
