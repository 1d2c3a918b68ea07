"""The layer whose weight is SiVA's: trained values between two fixed bases."""

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import Siva


class SivaLinear(StructuredLinear):
    """A linear layer with the weight `U diag(s) V^T`, of which s alone is trained.

    U and V are random orthonormal bases, or singular vectors of the weight in `from_linear(linear, k=..., basis=...)`,
    and part of the state. To adapt a frozen weight, whose bases need not be stored, there is `AdaptedLinear.siva`.

    Args:
        k: how many values, by default min(in_features, out_features).
        basis: which singular vectors `from_linear` takes: "top", with which the layer is the nearest of rank k,
            "bottom" or "random"; see structures.Siva.
        precision: "float64" or "float32", for the decomposition in `from_linear`.
        seed: of basis "random", any int.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        k: int | None = None,
        basis: str = "top",
        precision: str = "float64",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        k = min(in_features, out_features) if k is None else k
        super().__init__(Siva(in_features, out_features, k, basis, precision, seed), bias, device, dtype)
