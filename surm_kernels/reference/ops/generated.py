"""What panels of generated matrices need, in plain PyTorch; signatures and values as ops/_panels.py has them."""

import torch
from torch import Tensor


def powers(v: Tensor, columns: int) -> Tensor:
    exponents = torch.arange(columns, device=v.device)
    result = (v.double()[:, None] ** exponents).to(v.dtype)
    return torch.where(result.abs() < torch.finfo(v.dtype).tiny, 0.0, result)


def empty_rows(x: Tensor, columns: int) -> Tensor:
    return x.new_empty(x.shape[0], columns)
