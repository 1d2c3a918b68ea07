"""Tokens of two groups laid out in memory in every way that is not contiguous."""

from collections.abc import Callable

import torch
from torch import Tensor

# By name, of so many tokens with n values each.
LAYOUTS: dict[str, Callable[[int, int, torch.dtype], Tensor]] = {
    "every other token": lambda tokens, n, dtype: torch.randn(2, 2 * tokens, n).to(dtype)[:, ::2],
    "part of a wider row": lambda tokens, n, dtype: torch.randn(2, tokens, n + 3).to(dtype)[..., 1:-2],
    "every other entry": lambda tokens, n, dtype: torch.randn(2, tokens, 2 * n).to(dtype)[..., ::2],
    "transposed": lambda tokens, n, dtype: torch.randn(2, n, tokens).to(dtype).mT,
    "groups inside tokens": lambda tokens, n, dtype: torch.randn(tokens, 2, n).to(dtype).transpose(0, 1),
    "one token for all": lambda tokens, n, dtype: torch.randn(2, 1, n).to(dtype).expand(2, tokens, n),
    "one group for all": lambda tokens, n, dtype: torch.randn(1, tokens, n).to(dtype).expand(2, tokens, n),
    "one number for all": lambda tokens, n, dtype: torch.randn(1, 1, 1).to(dtype).expand(2, tokens, n),
}
