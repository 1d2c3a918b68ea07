"""Structured matrices by kernel, differentiable: the names of `functional` without `_linear`.

They raise a TypeError for a parameter that is no floating tensor and a ValueError for a shape that does not fit.
"""

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional.ldr import reflected_generators
from surm_kernels.functional.toeplitz import both_sides
from surm_kernels.ops import generated as _generated_ops
from surm_kernels.ops import krylov as _krylov_ops
from surm_kernels.ops import ldr as _ldr_ops
from surm_kernels.ops import toeplitz as _toeplitz_ops
from surm_kernels.ops._library import without_autocast


def circulant(c: Tensor) -> Tensor:
    """The n x n circulant matrix with first column c, `W[i, j] = c[(i - j) % n]`; c is (n,).

    Equivalent to `torch.from_numpy(scipy.linalg.circulant(c))`.
    """
    _checks.require_vector("c", c, "(n,)")
    return _krylov(c, 1)


def skew_circulant(s: Tensor) -> Tensor:
    """The n x n skew-circulant matrix with first column s, `W[i, j] = s[i - j]`, `-s[n + i - j]` if i < j; s is (n,).

    Equivalent to `reference.krylov(s, -1)`.
    """
    _checks.require_vector("s", s, "(n,)")
    return _krylov(s, -1)


def block_circulant(c: Tensor) -> Tensor:
    """The M b x K b matrix whose block (p, q) is circulant with first column c[p, q]; c is (M, K, b).

    Equivalent to `torch.cat([torch.cat([circulant(block) for block in row], 1) for row in c])`.
    """
    _checks.require_floating("c", c)
    _checks.require_dimensions("c", c, (3,), "(M, K, b)")
    return _krylov(c, 1)


def krylov(v: Tensor, f: float) -> Tensor:
    """The f-circulant matrix Z_f(v), `W[i, j] = v[i - j]`, `f * v[n + i - j]` if i < j, for any real f.

    v is (n,), or (M, K, b) for the M b x K b matrix of such blocks.
    Equivalent to `reference.krylov(v, f)`.
    """
    _checks.require_floating("v", v)
    _checks.require_dimensions("v", v, (1, 3), "(n,) or (M, K, b)")
    _checks.require_finite("f", f)
    if f in (1, -1):
        return _krylov(v, int(f))
    (wide,), dtype = _wide(v=v)
    return ((1 + f) / 2 * _krylov(wide, 1) + (1 - f) / 2 * _krylov(wide, -1)).to(dtype)


def toeplitz(t: Tensor, n: int) -> Tensor:
    """The m x n Toeplitz matrix `W[i, j] = t[i - j + n - 1]`; t is (m + n - 1,).

    t of (M, K, m + n - 1) gives the M m x K n matrix of such blocks.
    Equivalent to `torch.from_numpy(scipy.linalg.toeplitz(t[n - 1 :], t[:n].flip(0)))`.
    """
    return _toeplitz("t", t, n, reflected=False)


def symmetric_toeplitz(t: Tensor) -> Tensor:
    """The symmetric n x n Toeplitz matrix `W[i, j] = t[|i - j|]`; t is (n,).

    Equivalent to `torch.from_numpy(scipy.linalg.toeplitz(t))`.
    """
    _checks.require_vector("t", t, "(n,)")
    (wide,), dtype = _wide(t=t)
    return _toeplitz("t", both_sides(wide), t.shape[0], reflected=False).to(dtype)


def hankel(h: Tensor, n: int) -> Tensor:
    """The m x n Hankel matrix `W[i, j] = h[i + j]`; h is (m + n - 1,).

    h of (M, K, m + n - 1) gives the M m x K n matrix of such blocks.
    Equivalent to `torch.from_numpy(scipy.linalg.hankel(h[: m], h[m - 1 :]))`.
    """
    return _toeplitz("h", h, n, reflected=True)


def toeplitz_like(G: Tensor, H: Tensor) -> Tensor:
    """The n x n Toeplitz-like matrix `sum_l Z_1(G[l]) Z_-1(H[l])`; G and H are (r, n).

    Equivalent to `sum(krylov(g, 1) @ krylov(h, -1) for g, h in zip(G, H))`.
    """
    _checks.require_pair_of_generators(G, H)
    (G, H), _ = _promoted(G=G, H=H)
    return _ldr(G.unsqueeze(0), H.unsqueeze(0), reflected=False)


def hankel_like(G: Tensor, H: Tensor) -> Tensor:
    """The n x n Hankel-like matrix `sum_l Z_1(G[l]) Z_0(H[l]) J` with the reversal J; G and H are (r, n).

    Equivalent to `sum(krylov(g, 1) @ krylov(h, 0) for g, h in zip(G, H)).flip(1)`.
    """
    _checks.require_pair_of_generators(G, H)
    wide, dtype = _wide(G=G, H=H)
    return _ldr(*reflected_generators(*wide), reflected=True).to(dtype)


def vandermonde(v: Tensor, n: int) -> Tensor:
    """The m x n Vandermonde matrix `W[i, j] = v[i]^j`; v is (m,).

    Equivalent to `torch.linalg.vander(v, N=n)`.
    """
    _checks.require_vector("v", v, "(m,)")
    _checks.require_size("n", n)
    return _generated("vandermonde", n, v=v)


def vandermonde_like(v: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The m x n matrix `sum_l diag(G[l]) V(v) Z_0(H[l])^T`, V(v) Vandermonde; v is (m,), G (r, m), H (r, n).

    Equivalent to `sum(g[:, None] * vandermonde(v, n) @ krylov(h, 0).T for g, h in zip(G, H))`.
    """
    _checks.require_generators(G, H, v)
    return _generated("vandermonde_like", H.shape[1], v=v, G=G, H=H)


def cauchy_like(v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The m x n matrix `W[i, j] = sum_l G[l, i] H[l, j] / (v[i] - u[j])`; v is (m,), u (n,), G (r, m), H (r, n).

    v[i] = u[j] is refused on the CPU in eager mode. Equivalent to `(G.T @ H) / (v[:, None] - u)`.
    """
    _checks.require_generators(G, H, v, u)
    return _generated("cauchy_like", H.shape[1], v=v, u=u, G=G, H=H)


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """The p r x q s Kronecker product of A (p, q) and B (r, s). Equivalent to `torch.kron(A, B)`."""
    _checks.require_matrix("A", A, "(p, q)")
    _checks.require_matrix("B", B, "(r, s)")
    (A, B), dtype = _wide(A=A, B=B)
    return (A[:, None, :, None] * B[:, None, :]).flatten(2).flatten(0, 1).to(dtype)


def low_rank(A: Tensor, B: Tensor) -> Tensor:
    """The m x n matrix B A of rank r at most; A is (r, n), B (m, r). Equivalent to `B @ A`."""
    _checks.require_factors(A, B)
    (A, B), _ = _promoted(A=A, B=B)
    with without_autocast(A):
        return B @ A


def siva(U: Tensor, s: Tensor, V: Tensor) -> Tensor:
    """The m x n matrix U diag(s) V^T; U is (m, k), s (k,), V (n, k). Equivalent to `(U * s) @ V.T`."""
    _checks.require_bases(U, s, V)
    (U, s, V), dtype = _wide(U=U, s=s, V=V)
    with without_autocast(U):
        return ((U * s) @ V.mT).to(dtype)


def _krylov(v: Tensor, sign: int) -> Tensor:
    blocks = v.view(1, 1, 1, -1) if v.dim() == 1 else v.unsqueeze(0)
    return _krylov_ops.krylov_dense(blocks, sign).squeeze(0)


def _toeplitz(name: str, t: Tensor, n: int, reflected: bool) -> Tensor:
    _checks.require_floating(name, t)
    _checks.require_dimensions(name, t, (1, 3), "(m + n - 1,) or (M, K, m + n - 1)")
    _checks.require_size("n", n)
    _checks.require_diagonals(name, t, n)
    blocks = t.view(1, 1, 1, -1) if t.dim() == 1 else t.unsqueeze(0)
    return _toeplitz_ops.toeplitz_dense(blocks, n, reflected).squeeze(0)


def _ldr(left: Tensor, right: Tensor, reflected: bool) -> Tensor:
    """The matrix of generators (1, r, n), as the transposed product with the rows of the identity."""
    size = left.shape[-1]
    identity = torch.eye(size, dtype=left.dtype, device=left.device).unsqueeze(0)
    return _ldr_ops.ldr(identity, left, right, None, size, 1.0, True, reflected).squeeze(0)


def _generated(kind: str, columns: int, **parameters: Tensor) -> Tensor:
    wide, dtype = _wide(**parameters)
    if kind == "cauchy_like":
        _generated_ops.require_apart(*wide[:2])
    with without_autocast(wide[0]):
        return _generated_ops.matrix(kind, columns, *wide).to(dtype)


def _promoted(**parameters: Tensor) -> tuple[list[Tensor], torch.dtype]:
    """The parameters on one device in the type they promote to."""
    (name, first), *others = parameters.items()
    dtype = first.dtype
    for other_name, other in others:
        _checks.require_same_device(first, other_name, other, of=name)
        dtype = torch.promote_types(dtype, other.dtype)
    return [parameter.to(dtype) for parameter in parameters.values()], dtype


def _wide(**parameters: Tensor) -> tuple[list[Tensor], torch.dtype]:
    """The parameters in float32 at least, so that 16-bit entries and gradients are rounded once, to the type given."""
    promoted, dtype = _promoted(**parameters)
    return [parameter.to(torch.promote_types(dtype, torch.float32)) for parameter in promoted], dtype
