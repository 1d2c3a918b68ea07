"""The layer whose weight is HyDRA's: blocks that draw their parameters from a pool."""

import torch

from surm_kernels.nn.structured_linear import StructuredLinear
from surm_kernels.structures import Hydra


class HydraLinear(StructuredLinear):
    """A linear layer whose weight is a grid of structured blocks with parameters from one pool; see structures.Hydra.

    The index map and fixed values are no part of its state: the same arguments draw them again on any machine. Weights
    of the kinds vandermonde, low_rank and toeplitz_like start from 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        splits: int = 4,
        structure: str = "toeplitz",
        pool_size: int | None = None,
        fixed_fraction: float = 0.0,
        rank: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        weight = Hydra(in_features, out_features, splits, structure, pool_size, fixed_fraction, rank, seed)
        super().__init__(weight, bias, device, dtype)
