"""The powers operator in plain PyTorch; signature and values as docs/architecture.md has them."""

import torch
from torch import Tensor


def powers(v: Tensor, columns: int) -> Tensor:
    exponents = torch.arange(columns, device=v.device)
    result = (v.double()[:, None] ** exponents).to(v.dtype)
    return torch.where(result.abs() < torch.finfo(v.dtype).tiny, 0.0, result)
