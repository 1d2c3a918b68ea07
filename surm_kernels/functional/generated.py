"""Products with matrices that are generated as they are multiplied: Vandermonde, Vandermonde-like, Cauchy-like.

They cost O(m n) a token, as a dense matrix does, but the matrix never exists: panels of its rows are generated and
multiplied, forwards and backwards. Only derivatives of higher order, forward mode and torch.func go through the matrix:
right, but with its memory. Subnormal entries count as zero, since they can make a matrix product forty times slower.
In float32 keep |v| <= 1 in Vandermonde(-like) matrices: v^191 overflows near |v| = 1.6.
"""

from functools import partial

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import product


def vandermonde_linear(x: Tensor, v: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the m x n Vandermonde matrix `W[i, j] = v[i]^j`; n is the number of features of x.

    Keep |v| <= 1: powers of larger nodes overflow (Golub and Van Loan, Matrix Computations, section 4.6; a class of
    HyDRA).

    Args:
        x: tokens, (..., n).
        v: nodes, (m,).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `F.linear(x, scale * torch.linalg.vander(v, N=n), bias=base)`.
    """
    _checks.require_strided("x", x)
    _checks.require_tokens(x)
    _checks.require_vector("v", v, "(m,)")
    return product(partial(_matrices.vandermonde, n=x.shape[-1]), x, {"v": v}, base, scale, wide="parameters")


def vandermonde_like_linear(
    x: Tensor, v: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Product with the m x n matrix `W = sum_l diag(G[l]) V(v) Z_0(H[l])^T`, V(v) being Vandermonde.

    It is the solution of the Stein equation W - D_v W Z_0^T = G^T H, so `W[i, j] = v[i] W[i, j - 1] + (G^T H)[i, j]`
    (Pan, Structured Matrices and Polynomials, section 4.4). Keep |v| <= 1.

    Args:
        x: tokens, (..., n).
        v: nodes, (m,).
        G: left generators, (r, m).
        H: right generators, (r, n).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `F.linear(x, scale * dense.vandermonde_like(v, G, H), bias=base)`.
    """
    _checks.require_generators(G, H, v)
    return product(_matrices.vandermonde_like, x, {"v": v, "G": G, "H": H}, base, scale, wide="parameters")


def cauchy_like_linear(
    x: Tensor, v: Tensor, u: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Product with the m x n Cauchy-like matrix `W[i, j] = sum_l G[l, i] H[l, j] / (v[i] - u[j])`.

    It is the solution of D_v W - W D_u = G^T H (Pan, Structured Matrices and Polynomials, section 4.4). On the CPU in
    eager mode v[i] = u[j] is refused; elsewhere that row of W has infinities or NaN.

    Args:
        x: tokens, (..., n).
        v: nodes of the rows, (m,).
        u: nodes of the columns, (n,).
        G: left generators, (r, m).
        H: right generators, (r, n).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `F.linear(x, scale * (G.T @ H) / (v[:, None] - u), bias=base)`.
    """
    _checks.require_generators(G, H, v, u)
    parameters = {"v": v, "u": u, "G": G, "H": H}
    return product(_matrices.cauchy_like, x, parameters, base, scale, wide="parameters")
