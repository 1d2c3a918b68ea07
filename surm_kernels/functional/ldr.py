"""Products with matrices of low displacement rank: sums of products of two f-circulant matrices."""

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import product


def toeplitz_like_linear(x: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the Toeplitz-like matrix `W = sum_l Z_1(G[l]) Z_-1(H[l])`, Z_f(v) being f-circulant.

    The general low displacement rank matrix of SURM (arXiv 2406.17740) and HyDRA: Z_1 W - W Z_-1 has rank r at most
    (Pan, Structured Matrices and Polynomials, section 4.4). `convert.toeplitz_like_from_displacement` gives G and H.

    Args:
        x: tokens, (..., n).
        G: first columns of the left factors, (r, n).
        H: first columns of the right factors, (r, n).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to `F.linear(x, scale * sum(dense.krylov(g, 1) @ dense.krylov(h, -1) for g, h in zip(G, H)), bias=base)`.
    """
    _checks.require_pair_of_generators(G, H)
    return product(_matrices.toeplitz_like, x, {"G": G, "H": H}, base, scale)


def hankel_like_linear(x: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the Hankel-like matrix `W = sum_l Z_1(G[l]) Z_0(H[l]) J`, Z_f(v) f-circulant and J the reversal.

    Z_1 W - W Z_0^T has rank r at most (Pan, Structured Matrices and Polynomials, section 4.4). Since
    Z_0 = (Z_1 + Z_-1)/2, W is a reflected Toeplitz-like matrix of rank r + 1.

    Args:
        x: tokens, (..., n).
        G: first columns of the left factors, (r, n).
        H: first columns of the right factors, (r, n).
        base: added to the product, broadcastable to (..., n).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., n).

    Equivalent to
    `F.linear(x, scale * sum(dense.krylov(g, 1) @ dense.krylov(h, 0) for g, h in zip(G, H)).flip(1), bias=base)`.
    """
    _checks.require_pair_of_generators(G, H)
    return product(_matrices.hankel_like, x, {"G": G, "H": H}, base, scale, wide="everything")
