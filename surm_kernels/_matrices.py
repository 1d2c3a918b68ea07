"""Every structured matrix of the package, said once: the primitive that it is of its parameters.

What a product, a dense matrix, a layer or an update needs follows from that. Parameters are checked already, of one
type on one device and in the shapes of `functional`. Square matrices take `outputs` and `inputs` for their top left
part, circulant ones for that of every block. The arguments of a primitive are differentiable functions of parameters.
"""

import torch
from torch import Tensor

from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.ops import diagonal, generated, grid, ldr
from surm_kernels.ops import kronecker as _kronecker
from surm_kernels.ops import low_rank as _low_rank
from surm_kernels.ops._primitive import Primitive


def circulant(c: Tensor, outputs: int | None = None, inputs: int | None = None) -> Primitive:
    """c (n,), or (M, K, b) for a grid of blocks."""
    if inputs is not None and outputs != inputs:
        return toeplitz(_cut(c, 1, outputs, inputs), inputs)
    return Primitive(grid.form, (_grid_of(c),), (CIRCULANT, c.shape[-1]))


def skew_circulant(s: Tensor, outputs: int | None = None, inputs: int | None = None) -> Primitive:
    """s (n,), or (M, K, b) for a grid of blocks."""
    if inputs is not None and outputs != inputs:
        return toeplitz(_cut(s, -1, outputs, inputs), inputs)
    return Primitive(grid.form, (_grid_of(s),), (SKEW_CIRCULANT, s.shape[-1]))


def _cut(v: Tensor, sign: int, outputs: int | None, inputs: int) -> Tensor:
    """The diagonals of the top left part of an f-circulant matrix, f = sign, which needs no padding of x."""
    above = v[..., v.shape[-1] - inputs + 1 :]
    return torch.cat([above if sign == 1 else -above, v[..., :outputs]], -1)


def cut_adjoint(diagonals: Tensor, sign: int, size: int, inputs: int) -> Tensor:
    """The sums of the diagonals that a value of an f-circulant matrix of this size fills, with its sign."""
    v = diagonals.new_zeros(*diagonals.shape[:-1], size)
    v[..., : diagonals.shape[-1] - inputs + 1] = diagonals[..., inputs - 1 :]
    v[..., size - inputs + 1 :].add_(diagonals[..., : inputs - 1], alpha=sign)
    return v


def toeplitz(t: Tensor, n: int) -> Primitive:
    """t (m + n - 1,), or (M, K, m + n - 1) for a grid of blocks."""
    return Primitive(grid.form, (_grid_of(t),), (TOEPLITZ, n))


def hankel(h: Tensor, n: int) -> Primitive:
    """h (m + n - 1,), or (M, K, m + n - 1) for a grid of blocks."""
    return Primitive(grid.form, (_grid_of(h),), (HANKEL, n))


def symmetric_toeplitz(t: Tensor, outputs: int | None = None, inputs: int | None = None) -> Primitive:
    """t (n,)."""
    size = t.shape[0]
    m, n = outputs or size, inputs or size
    return toeplitz(torch.cat([t[1:n].flip(0), t[:m]]), n)


def symmetric_adjoint(diagonals: Tensor, size: int, inputs: int) -> Tensor:
    """The sums of the diagonals that a value of a symmetric Toeplitz matrix of this size fills."""
    t = diagonals.new_zeros(size)
    t[: diagonals.shape[0] - inputs + 1] = diagonals[inputs - 1 :]
    t[1:inputs] += diagonals[: inputs - 1].flip(0)
    return t


def toeplitz_like(G: Tensor, H: Tensor, outputs: int | None = None, inputs: int | None = None) -> Primitive:
    """G and H (r, n)."""
    size = G.shape[1]
    return Primitive(ldr.form, (G.unsqueeze(0), H.unsqueeze(0)), (outputs or size, inputs or size, False))


def hankel_like(G: Tensor, H: Tensor, outputs: int | None = None, inputs: int | None = None) -> Primitive:
    """G and H (r, n).

    With Z_0 = (Z_1 + Z_-1)/2, `sum_l Z_1(G[l]) Z_0(H[l])` is `sum_l Z_1(G[l]) Z_-1(H[l] / 2) + Z_1(c)` for
    c = 1/2 sum_l Z_1(G[l]) H[l], since circulants multiply to circulants; the last term takes Z_-1(e_0) = I as its
    right factor. So W is a reflected Toeplitz-like matrix of rank r + 1.
    """
    size = G.shape[1]
    c = grid.grid(H.reshape(1, 1, -1), G[None, None], None, CIRCULANT, size, 0.5, False)
    unit = torch.zeros_like(H[:1])
    unit[:, 0] = 1
    generators = torch.cat([G, c.squeeze(0)]).unsqueeze(0), torch.cat([H / 2, unit]).unsqueeze(0)
    return Primitive(ldr.form, generators, (outputs or size, inputs or size, True))


def kronecker(A: Tensor, B: Tensor) -> Primitive:
    """A (p, q) and B (r, s)."""
    return Primitive(_kronecker.form, (A.unsqueeze(0), B.unsqueeze(0)), ())


def low_rank(A: Tensor, B: Tensor) -> Primitive:
    """A (r, n) and B (m, r)."""
    return Primitive(_low_rank.form, (A, B), ())


def siva(U: Tensor, s: Tensor, V: Tensor) -> Primitive:
    """U (m, k), s (k,) and V (n, k)."""
    return Primitive(diagonal.form, (U.unsqueeze(0), s.unsqueeze(0), V.unsqueeze(0)), ())


def vandermonde(v: Tensor, n: int) -> Primitive:
    """v (m,)."""
    return Primitive(generated.form, (v,), ("vandermonde", n))


def vandermonde_like(v: Tensor, G: Tensor, H: Tensor) -> Primitive:
    """v (m,), G (r, m) and H (r, n)."""
    return Primitive(generated.form, (v, G, H), ("vandermonde_like", H.shape[1]))


def cauchy_like(v: Tensor, u: Tensor, G: Tensor, H: Tensor) -> Primitive:
    """v (m,), u (n,), G (r, m) and H (r, n); nodes in common are refused where the numbers are at hand."""
    generated.require_apart(v, u)
    return Primitive(generated.form, (v, u, G, H), ("cauchy_like", H.shape[1]))


def _grid_of(values: Tensor) -> Tensor:
    """(1, M, K, size) for the values of one block or of a grid."""
    return values.view(1, 1, 1, -1) if values.dim() == 1 else values.unsqueeze(0)
