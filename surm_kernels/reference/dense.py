"""Structured matrices by their index formulas, with plain differentiable operations in the type of the parameters."""

import torch
from torch import Tensor


def circulant(c: Tensor) -> Tensor:
    """The circulant matrix with first column c: `W[i, j] = c[(i - j) % n]`."""
    return krylov(c, 1.0)


def skew_circulant(s: Tensor) -> Tensor:
    """The skew-circulant matrix with first column s: `W[i, j] = s[i - j]` if i >= j, else `-s[n + i - j]`."""
    return krylov(s, -1.0)


def block_circulant(c: Tensor) -> Tensor:
    """The M b x K b matrix of circulant blocks: block (p, q) has first column `c[p, q]`; c is (M, K, b)."""
    return krylov(c, 1.0)


def krylov(v: Tensor, f: float) -> Tensor:
    """The f-circulant matrix Z_f(v): `W[i, j] = v[i - j]` if i >= j, else `f * v[n + i - j]`.

    v is (n,), or (..., M, K, b) for a matrix of M x K such blocks.
    """
    size = v.shape[-1]
    row, column = _indices(size, size, v)
    entries = v[..., (row - column) % size]
    return _joined(torch.where(row < column, f * entries, entries))


def toeplitz(t: Tensor, n: int) -> Tensor:
    """The Toeplitz matrix of n columns: `W[i, j] = t[i - j + n - 1]`.

    t is (m + n - 1,), or (..., M, K, m + n - 1) for a matrix of M x K such blocks.
    """
    row, column = _indices(t.shape[-1] - n + 1, n, t)
    return _joined(t[..., row - column + n - 1])


def symmetric_toeplitz(t: Tensor) -> Tensor:
    """The symmetric Toeplitz matrix with first column t: `W[i, j] = t[|i - j|]`."""
    row, column = _indices(t.shape[0], t.shape[0], t)
    return t[(row - column).abs()]


def hankel(h: Tensor, n: int) -> Tensor:
    """The Hankel matrix of n columns: `W[i, j] = h[i + j]`.

    h is (m + n - 1,), or (..., M, K, m + n - 1) for a matrix of M x K such blocks.
    """
    row, column = _indices(h.shape[-1] - n + 1, n, h)
    return _joined(h[..., row + column])


def toeplitz_like(G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of Z_1(G[l]) Z_-1(H[l]); G and H are (r, n)."""
    return torch.stack([krylov(g, 1.0) @ krylov(h, -1.0) for g, h in zip(G, H, strict=True)]).sum(0)


def hankel_like(G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of Z_1(G[l]) Z_0(H[l]) J with the reversal J; G and H are (r, n)."""
    return torch.stack([krylov(g, 1.0) @ krylov(h, 0.0).flip(1) for g, h in zip(G, H, strict=True)]).sum(0)


def vandermonde(v: Tensor, n: int) -> Tensor:
    """The Vandermonde matrix of n columns: `W[i, j] = v[i]^j`."""
    return v[:, None] ** torch.arange(n, device=v.device)


def vandermonde_like(v: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """The sum over l of diag(G[l]) V(v) Z_0(H[l])^T; v is (m,), G (r, m) and H (r, n)."""
    powers = vandermonde(v, H.shape[1])
    return torch.stack([g[:, None] * (powers @ krylov(h, 0.0).mT) for g, h in zip(G, H, strict=True)]).sum(0)


def cauchy_like(v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> Tensor:
    """`W[i, j]` is the sum over l of G[l, i] H[l, j] / (v[i] - u[j]); v is (m,), u (n,), G (r, m) and H (r, n)."""
    return (G[:, :, None] * H[:, None, :] / (v[:, None] - u)).sum(0)


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """The Kronecker product: `W[i r + k, j s + l] = A[i, j] B[k, l]` for B of r x s."""
    return torch.kron(A, B)


def low_rank(A: Tensor, B: Tensor) -> Tensor:
    """B A; A is (r, n) and B (m, r)."""
    return B @ A


def siva(U: Tensor, s: Tensor, V: Tensor) -> Tensor:
    """U diag(s) V^T; U is (m, k), s (k,) and V (n, k)."""
    return (U * s) @ V.mT


def _indices(rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The row numbers as a column and the column numbers as a row."""
    return torch.arange(rows, device=like.device)[:, None], torch.arange(columns, device=like.device)


def _joined(blocks: Tensor) -> Tensor:
    """The matrix of the blocks (..., M, K, rows, columns); one block (rows, columns) is a matrix already."""
    return blocks if blocks.dim() == 2 else blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
