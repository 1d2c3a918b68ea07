"""The product with SiVA's update: two frozen bases and the values between them."""

from torch import Tensor

from surm_kernels import _checks
from surm_kernels.functional._product import product
from surm_kernels.ops import diagonal as _ops


def siva_linear(
    x: Tensor, U: Tensor, s: Tensor, V: Tensor, *, base: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Product with the m x n matrix `W = U diag(s) V^T`, the update of SiVA: k singular directions of a frozen weight.

    The two matrix products are the platform's, so 16-bit products round between them, and what lies between is never in
    memory for all tokens at once. Only x and the parameters are kept for the backward pass, where the gradients of x
    and s share a product; U and V, frozen in SiVA, get theirs from plain products.

    Args:
        x: tokens, (..., n).
        U: left basis, (m, k).
        s: values, (k,).
        V: right basis, (n, k).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `base + scale * ((x @ V) * s) @ U.T`.
    """
    _checks.require_bases(U, s, V)

    def operator(rows: Tensor, U: Tensor, s: Tensor, V: Tensor, base: Tensor | None, scale: float) -> Tensor:
        return _ops.diagonal(rows, U.unsqueeze(0), s.unsqueeze(0), V.unsqueeze(0), base, scale)

    return product(operator, x, {"U": U, "s": s, "V": V}, V.shape[0], U.shape[0], base, scale)
