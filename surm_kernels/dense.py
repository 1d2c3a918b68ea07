"""Structured matrices by kernel, differentiable: the names of `functional` without `_linear`.

They raise a TypeError for a parameter that is no floating tensor and a ValueError for a shape that does not fit.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels._widening import wide_type, widened
from surm_kernels.functional._product import cast
from surm_kernels.ops._primitive import Primitive


def circulant(c: Tensor) -> Tensor:
    """The n x n circulant matrix with first column c, `W[i, j] = c[(i - j) % n]`; c is (n,).

    c of (M, K, b) gives the M b x K b matrix of such blocks.
    Equivalent to `torch.from_numpy(scipy.linalg.circulant(c))`.
    """
    _require_columns("c", c)
    return _matrix(_matrices.circulant, c=c)


def skew_circulant(s: Tensor) -> Tensor:
    """The n x n skew-circulant matrix with first column s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j; s is (n,).

    s of (M, K, b) gives the M b x K b matrix of such blocks.
    Equivalent to `reference.krylov(s, -1)`.
    """
    _require_columns("s", s)
    return _matrix(_matrices.skew_circulant, s=s)


def block_circulant(c: Tensor) -> Tensor:
    """The M b x K b matrix whose block (p, q) is circulant with first column c[p, q]; c is (M, K, b).

    Equivalent to `torch.cat([torch.cat([circulant(block) for block in row], 1) for row in c])`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (3,), "(M, K, b)")
    return _matrix(_matrices.circulant, c=c)


def krylov(v: Tensor, f: float) -> Tensor:
    """The f-circulant matrix Z_f(v), `W[i, j] = v[i - j]`, `f * v[n + i - j]` if i < j, for any real f.

    v is (n,), or (M, K, b) for the M b x K b matrix of such blocks.
    Equivalent to `reference.krylov(v, f)`.
    """
    _require_columns("v", v)
    _checks.require_finite("f", f)
    if f in (1, -1):
        return _matrix(_matrices.circulant if f == 1 else _matrices.skew_circulant, v=v)
    wide = widened(v)
    halves = _matrices.circulant(wide).dense(), _matrices.skew_circulant(wide).dense()
    return ((1 + f) / 2 * halves[0] + (1 - f) / 2 * halves[1]).to(v.dtype)


def toeplitz(t: Tensor, n: int) -> Tensor:
    """The m x n Toeplitz matrix `W[i, j] = t[i - j + n - 1]`; t is (m + n - 1,).

    t of (M, K, m + n - 1) gives the M m x K n matrix of such blocks.
    Equivalent to `torch.from_numpy(scipy.linalg.toeplitz(t[n - 1 :], t[:n].flip(0)))`.
    """
    _require_diagonals("t", t, n)
    return _matrix(partial(_matrices.toeplitz, n=n), t=t)


def symmetric_toeplitz(t: Tensor) -> Tensor:
    """The symmetric n x n Toeplitz matrix `W[i, j] = t[|i - j|]`; t is (n,).

    Equivalent to `torch.from_numpy(scipy.linalg.toeplitz(t))`.
    """
    _checks.require_vector("t", t, "(n,)")
    return _matrix(_matrices.symmetric_toeplitz, wide=True, t=t)


def hankel(h: Tensor, n: int) -> Tensor:
    """The m x n Hankel matrix `W[i, j] = h[i + j]`; h is (m + n - 1,).

    h of (M, K, m + n - 1) gives the M m x K n matrix of such blocks.
    Equivalent to `torch.from_numpy(scipy.linalg.hankel(h[: m], h[m - 1 :]))`.
    """
    _require_diagonals("h", h, n)
    return _matrix(partial(_matrices.hankel, n=n), h=h)


def toeplitz_like(G: Tensor, H: Tensor) -> Tensor:
    """The n x n Toeplitz-like matrix `sum_l Z_1(G[l]) Z_-1(H[l])`; G and H are (r, n).

    Equivalent to `sum(krylov(g, 1) @ krylov(h, -1) for g, h in zip(G, H))`.
    """
    _checks.require_pair_of_generators(G, H)
    return _matrix(_matrices.toeplitz_like, G=G, H=H)


def hankel_like(G: Tensor, H: Tensor) -> Tensor:
    """The n x n Hankel-like matrix `sum_l Z_1(G[l]) Z_0(H[l]) J` with the reversal J; G and H are (r, n).

    Equivalent to `sum(krylov(g, 1) @ krylov(h, 0) for g, h in zip(G, H)).flip(1)`.
    """
    _checks.require_pair_of_generators(G, H)
    return _matrix(_matrices.hankel_like, wide=True, G=G, H=H)


def vandermonde(v: Tensor, n: int) -> Tensor:
    """The m x n Vandermonde matrix `W[i, j] = v[i]^j`; v is (m,).

    Equivalent to `torch.linalg.vander(v, N=n)`.
    """
    _checks.require_vector("v", v, "(m,)")
    _checks.require_size("n", n)
    return _matrix(partial(_matrices.vandermonde, n=n), wide=True, v=v)


def vandermonde_like(v: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The m x n matrix `sum_l diag(G[l]) V(v) Z_0(H[l])^T`, V(v) Vandermonde; v is (m,), G (r, m), H (r, n).

    Equivalent to `sum(g[:, None] * vandermonde(v, n) @ krylov(h, 0).T for g, h in zip(G, H))`.
    """
    _checks.require_generators(G, H, v)
    return _matrix(_matrices.vandermonde_like, wide=True, v=v, G=G, H=H)


def cauchy_like(v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The m x n matrix `W[i, j] = sum_l G[l, i] H[l, j] / (v[i] - u[j])`; v is (m,), u (n,), G (r, m), H (r, n).

    v[i] = u[j] is refused on the CPU in eager mode. Equivalent to `(G.T @ H) / (v[:, None] - u)`.
    """
    _checks.require_generators(G, H, v, u)
    return _matrix(_matrices.cauchy_like, wide=True, v=v, u=u, G=G, H=H)


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """The p r x q s Kronecker product of A (p, q) and B (r, s). Equivalent to `torch.kron(A, B)`."""
    _checks.require_matrix("A", A, "(p, q)")
    _checks.require_matrix("B", B, "(r, s)")
    return _matrix(_matrices.kronecker, A=A, B=B)


def low_rank(A: Tensor, B: Tensor) -> Tensor:
    """The m x n matrix B A of rank r at most; A is (r, n), B (m, r). Equivalent to `B @ A`."""
    _checks.require_factors(A, B)
    return _matrix(_matrices.low_rank, A=A, B=B)


def siva(U: Tensor, s: Tensor, V: Tensor) -> Tensor:
    """The m x n matrix U diag(s) V^T; U is (m, k), s (k,), V (n, k). Equivalent to `(U * s) @ V.T`."""
    _checks.require_bases(U, s, V)
    return _matrix(_matrices.siva, U=U, s=s, V=V)


def _require_columns(name: str, v: Tensor) -> None:
    _checks.require_floating(name, v)
    _checks.require_dimensions(name, v, (1, 3), "(n,) or (M, K, b)")


def _require_diagonals(name: str, t: Tensor, n: int) -> None:
    _checks.require_floating(name, t)
    _checks.require_dimensions(name, t, (1, 3), "(m + n - 1,) or (M, K, m + n - 1)")
    _checks.require_size("n", n)
    _checks.require_diagonals(name, t, n)


def _matrix(make: Callable[..., Primitive], wide: bool = False, **parameters: Tensor) -> Tensor:
    """The matrix of the parameters in the type they promote to.

    `wide` has them in float32 at least until the last rounding, where 16-bit arguments or gradients would be rounded on
    the way.
    """
    (name, first), *others = parameters.items()
    dtype = first.dtype
    for other_name, other in others:
        _checks.require_same_device(first, other_name, other, of=name)
        dtype = torch.promote_types(dtype, other.dtype)
    inside = wide_type(dtype) if wide else dtype
    return cast(make(*[cast(parameter, inside) for parameter in parameters.values()]).dense(), dtype)
