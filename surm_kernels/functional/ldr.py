"""Products with matrices of low displacement rank: sums of products of two f-circulant matrices.

The public functions are square. The `..._top_left` ones serve rectangular layers: the top left part of the square
matrix, without padded copies.
"""

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import product
from surm_kernels.ops import krylov as _krylov
from surm_kernels.ops import ldr as _ops


def toeplitz_like_linear(x: Tensor, G: Tensor, H: Tensor, *, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Product with the Toeplitz-like matrix `W = sum_l Z_1(G[l]) Z_-1(H[l])`, Z_f(v) being f-circulant.

    The general low displacement rank matrix of SURM (arXiv 2406.17740) and HyDRA: Z_1 W - W Z_-1 has rank r at most
    (Pan, Structured Matrices and Polynomials, section 4.4). `from_displacement` gives G and H for its generators.

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
    return toeplitz_like_top_left(x, G, H, G.shape[1], G.shape[1], base=base, scale=scale)


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
    return hankel_like_top_left(x, G, H, G.shape[1], G.shape[1], base=base, scale=scale)


def from_displacement(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters of the Toeplitz-like matrix W with the displacement `Z_1 W - W Z_-1 = sum_l outer(G[l], H[l])`.

    The solution is `W = 1/2 sum_l Z_1(G[l]) Z_-1(J H[l])` with the reversal J (Pan, Structured Matrices and
    Polynomials, section 4.4); `toeplitz_like_linear` has neither the factor nor the reversal. G and H are (r, n).

    Equivalent to `(G / 2, H.flip(1))`.
    """
    _checks.require_pair_of_generators(G, H)
    return G / 2, H.flip(1)


def toeplitz_like_top_left(
    x: Tensor,
    G: Tensor,
    H: Tensor,
    in_features: int,
    out_features: int,
    *,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`toeplitz_like_linear` with the top left out_features x in_features part of W; neither exceeds n."""

    def operator(rows: Tensor, G: Tensor, H: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return _ops.ldr(rows, G.unsqueeze(0), H.unsqueeze(0), base, out_features, scale, False, False)

    return product(operator, x, {"G": G, "H": H}, in_features, out_features, base, scale)


def hankel_like_top_left(
    x: Tensor,
    G: Tensor,
    H: Tensor,
    in_features: int,
    out_features: int,
    *,
    base: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`hankel_like_linear` with the top left out_features x in_features part of W; neither exceeds n."""

    def operator(rows: Tensor, G: Tensor, H: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return _ops.ldr(rows, *reflected_generators(G, H), base, out_features, scale, False, True)

    return product(operator, x, {"G": G, "H": H}, in_features, out_features, base, scale, wide="everything")


def reflected_generators(G: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Generators (1, r + 1, n) that make `sum_l Z_1(G[l]) Z_0(H[l])` a sum of products `Z_1 Z_-1`.

    With Z_0 = (Z_1 + Z_-1)/2 the sum is `sum_l Z_1(G[l]) Z_-1(H[l] / 2) + Z_1(c)` for c = 1/2 sum_l Z_1(G[l]) H[l],
    since circulants multiply to circulants, and the last term takes Z_-1(e_0) = I as its right factor.
    """
    c = _krylov.krylov(H.reshape(1, 1, -1), G[None, None], None, 1, 0.5, False)
    unit = torch.zeros_like(H[:1])
    unit[:, 0] = 1
    return torch.cat([G, c.squeeze(0)]).unsqueeze(0), torch.cat([H / 2, unit]).unsqueeze(0)
