"""The product with SiVA's update: two frozen bases and the values between them."""

from torch import Tensor

from surm_kernels import _checks, _matrices
from surm_kernels.functional._product import chosen, composed, product
from surm_kernels.ops import bank as _bank


def siva_linear(
    x: Tensor,
    U: Tensor,
    s: Tensor,
    V: Tensor,
    *,
    base: Tensor | None = None,
    scale: float = 1.0,
    index: Tensor | None = None,
) -> Tensor:
    """Product with the m x n matrix `W = U diag(s) V^T`, the update of SiVA: k singular directions of a frozen weight.

    The two matrix products are the platform's, so 16-bit products round between them, and what lies between is never in
    memory for all tokens at once. Only x and the parameters are kept for the backward pass, where the gradients of x
    and s share a product; U and V, frozen in SiVA, get theirs from plain products.

    With an index every token, or every row of tokens, has values of its own on the same bases, as in serving many
    adapters in one batch, by two plain products; an index out of range is refused on the CPU and gives its tokens NaN
    on other devices, which are not waited for, and under torch.compile.

    Args:
        x: tokens, (..., n).
        U: left basis, (m, k).
        s: values, (k,), or with an index those of all adapters, (adapters, k).
        V: right basis, (n, k).
        base: added to the product, broadcastable to (..., m).
        scale: factor of the product.
        index: the adapter of every token, integers (...), or of every row of tokens, integers of a shape that (...)
            starts with.

    Returns:
        `base + scale * x @ W.T`, (..., m).

    Equivalent to `base + scale * ((x @ V) * s) @ U.T`, with `s[index]` for s where there is an index.
    """
    if index is not None:
        return _siva_by_row(x, U, s, V, base, scale, index)
    _checks.require_bases(U, s, V)
    return product(_matrices.siva, x, {"U": U, "s": s, "V": V}, base, scale)


def _siva_by_row(
    x: Tensor, U: Tensor, s: Tensor, V: Tensor, base: Tensor | None, scale: float, index: Tensor
) -> Tensor:
    _checks.require_strided("x", x)
    _checks.require_bases_of_bank(U, s, V)
    rows = chosen(x, index, s.shape[0])

    def operator(x: Tensor, U: Tensor, s: Tensor, V: Tensor, base: Tensor | None, scale: float) -> Tensor:
        start = None if base is None else rows.of(base)
        y = _bank.diagonal_bank(rows.of(x), U, s, V, rows.adapters, start, scale)
        return y.view(1, x.shape[1], y.shape[-1])

    sizes = U.shape[0], V.shape[0]
    return composed(operator, x, {"U": U, "s": s, "V": V}, sizes, base, scale, wide="nothing")
