"""The block Krylov product W(v), its transpose, its pullback and its dense matrix, closed under differentiation.

W(v) is the (M b) x (K b) matrix whose block (p, q) is f-circulant with first column v[p, q], f = sign = 1 or -1. Every
tensor has a leading dimension G of independent problems, which carries vmap. For frozen parameters there are besides,
without derivatives: products by a spectrum that is kept, and merging W(v) of a single problem into a weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels.ops import _problems
from surm_kernels.ops._library import define
from surm_kernels.ops._multilinear import Form
from surm_kernels.reference.ops import krylov as reference


def _krylov_fake(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
    _, outputs, inputs, block = v.shape
    if transposed:
        outputs, inputs = inputs, outputs
    torch._check(x.shape[-1] == inputs * block)
    return x.new_empty(x.shape[0], x.shape[1], outputs * block)


def _krylov_pullback_fake(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], g.shape[-1] // block, x.shape[-1] // block, block)


def _krylov_backward_fake(
    g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), v.new_empty(v.shape)


def _krylov_dense_fake(v: Tensor, sign: int) -> Tensor:
    groups, outputs, inputs, block = v.shape
    return v.new_empty(groups, outputs * block, inputs * block)


def _krylov_dense_adjoint_fake(w: Tensor, block: int, sign: int) -> Tensor:
    return w.new_empty(w.shape[0], w.shape[1] // block, w.shape[2] // block, block)


def _krylov_spectrum_fake(v: Tensor, sign: int, transposed: bool) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # known to the kernels alone
    return v.new_empty(size, dtype=torch.promote_types(v.dtype, torch.float32))


def _krylov_by_spectrum_fake(
    x: Tensor, spectrum: Tensor, base: Tensor | None, outputs: int, inputs: int, block: int, sign: int, scale: float
) -> Tensor:
    torch._check(x.shape[-1] == inputs * block)
    return x.new_empty(x.shape[0], x.shape[1], outputs * block)


def _krylov_merge_fake(weight: Tensor, v: Tensor, sign: int, scale: float, out: Tensor) -> None:
    outputs, inputs, block = v.shape
    for matrix in (weight, out):
        torch._check(matrix.shape == (outputs * block, inputs * block))


KRYLOV = "krylov(Tensor x, Tensor v, Tensor? base, int sign, float scale, bool transposed) -> Tensor"
PULLBACK = "krylov_pullback(Tensor g, Tensor x, SymInt block, int sign, float scale) -> Tensor"
BACKWARD = "krylov_backward(Tensor g, Tensor x, Tensor v, int sign, float scale, bool transposed) -> (Tensor, Tensor)"
DENSE = "krylov_dense(Tensor v, int sign) -> Tensor"
DENSE_ADJOINT = "krylov_dense_adjoint(Tensor w, SymInt block, int sign) -> Tensor"
SPECTRUM = "krylov_spectrum(Tensor v, int sign, bool transposed) -> Tensor"
BY_SPECTRUM = (
    "krylov_by_spectrum(Tensor x, Tensor spectrum, Tensor? base, SymInt outputs, SymInt inputs, SymInt block, "
    "int sign, float scale) -> Tensor"
)
MERGE = "krylov_merge(Tensor weight, Tensor v, int sign, float scale, Tensor(a!) out) -> ()"

_krylov = define(KRYLOV, _krylov_fake, reference.krylov, cuda=_problems.krylov)
_krylov_pullback = define(PULLBACK, _krylov_pullback_fake, reference.krylov_pullback, cuda=_problems.krylov_pullback)
_krylov_backward = define(BACKWARD, _krylov_backward_fake, reference.krylov_backward, cuda=_problems.krylov_backward)
_krylov_dense = define(DENSE, _krylov_dense_fake, reference.krylov_dense, cuda=_problems.krylov_dense)
_krylov_dense_adjoint = define(
    DENSE_ADJOINT, _krylov_dense_adjoint_fake, reference.krylov_dense_adjoint, cuda=_problems.krylov_dense_adjoint
)
_krylov_spectrum = define(SPECTRUM, _krylov_spectrum_fake, reference.krylov_spectrum, cuda=_problems.krylov_spectrum)
_krylov_by_spectrum = define(
    BY_SPECTRUM, _krylov_by_spectrum_fake, reference.krylov_by_spectrum, cuda=_problems.krylov_by_spectrum
)
_krylov_merge = define(MERGE, _krylov_merge_fake, reference.krylov_merge, cuda=_problems.krylov_merge)

# scale <g, x W(v)^T>
form = Form(
    "Krylov",
    (
        lambda base, _, x, v, sign, scale: _krylov(x, v, base, sign, scale, False),
        lambda base, g, _, v, sign, scale: _krylov(g, v, base, sign, scale, True),
        lambda _base, g, x, block, sign, scale: _krylov_pullback(g, x, block, sign, scale),
    ),
    {
        0: lambda g, x, v, sign, scale: _krylov_backward(g, x, v, sign, scale, False),
        1: lambda g, x, v, sign, scale: _krylov_backward(x, g, v, sign, scale, True),
    },
    merge=lambda weight, out, v, sign, scale: krylov_merge(weight, v.squeeze(0), sign, scale, out),
    keep=lambda v, sign, _scale: _kept(v, sign),
)
# <w, W(v)>
dense_form = Form(
    "KrylovDense",
    (
        lambda _base, _, v, sign: _krylov_dense(v, sign),
        lambda _base, w, block, sign: _krylov_dense_adjoint(w, block, sign),
    ),
)


def krylov(x: Tensor, v: Tensor, base: Tensor | None, sign: int, scale: float, transposed: bool) -> Tensor:
    """`base + scale * x @ W(v).T`, `x @ W(v)` when transposed."""
    if transposed:
        return form.partial(1, base, x, None, v, sign, scale)
    return form.partial(0, base, None, x, v, sign, scale)


def _kept(v: Tensor, sign: int) -> Callable[[Tensor, Tensor | None, float], Tensor]:
    """The product with W(v) by its spectrum."""
    spectrum = krylov_spectrum(v, sign, False)
    _, outputs, inputs, block = v.shape
    return lambda x, base, scale: krylov_by_spectrum(x, spectrum, base, outputs, inputs, block, sign, scale)


def krylov_pullback(g: Tensor, x: Tensor, block: int, sign: int, scale: float) -> Tensor:
    """The gradient of `scale * <g, x @ W(v).T>` with respect to v."""
    return form.partial(2, None, g, x, block, sign, scale)


def krylov_backward(g: Tensor, x: Tensor, v: Tensor, sign: int, scale: float, transposed: bool) -> tuple[Tensor, ...]:
    """The gradients of `scale * <g, x @ W(v).T>`, `x @ W(v)` when transposed, with respect to x and v."""
    if transposed:
        return form.gradients(1, x, g, v, sign, scale)
    return form.gradients(0, g, x, v, sign, scale)


def krylov_dense(v: Tensor, sign: int) -> Tensor:
    """The matrix W(v)."""
    return dense_form.partial(0, None, None, v, sign)


def krylov_dense_adjoint(w: Tensor, block: int, sign: int) -> Tensor:
    """The sums of w along the f-circulant diagonals: the gradient of `<w, W(v)>`."""
    return dense_form.partial(1, None, w, block, sign)


def krylov_spectrum(v: Tensor, sign: int, transposed: bool) -> Tensor:
    """The spectrum of W(v), of its transpose when transposed, for `krylov_by_spectrum`.

    A vector in float32, float64 where v (G, M, K, b) is, for v's device and this process only. It serves any number of
    tokens of any type that is computed in its own.
    """
    return _krylov_spectrum(v, sign, transposed)


def krylov_by_spectrum(
    x: Tensor, spectrum: Tensor, base: Tensor | None, outputs: int, inputs: int, block: int, sign: int, scale: float
) -> Tensor:
    """`krylov` without the parameter: `base + scale * x @ W.T` for the W of `outputs` x `inputs` blocks kept.

    The transpose of a W with M x K blocks has K outputs and M inputs.
    """
    return _krylov_by_spectrum(x, spectrum, base, outputs, inputs, block, sign, scale)


def krylov_merge(weight: Tensor, v: Tensor, sign: int, scale: float, out: Tensor) -> None:
    """`out = weight + scale * W(v)`, rounded once; weight may be out.

    v (M, K, b) may have any type. weight and out (M b, K b) have one type or one of them is float32; the sum is taken
    in float32, or in float64 where one of them is. The values of a row of out are contiguous.
    """
    _krylov_merge(weight, v, sign, scale, out)
    torch.autograd.graph.increment_version(out)  # which an operator's own write does not
