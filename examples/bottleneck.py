"""The adapter of Houlsby et al. (2019): X + B gelu(A X + a) + b after a layer's output, through a narrow middle."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 18  # of the middle: the twelvefold of the numbers of a circulant adapter, 85,356 to 6,912
PLACES = ("attention.output.dense", "output.dense")  # in BERT's blocks, before residual and norm


class Bottleneck(nn.Module):
    """A frozen layer (…, n) -> (…, m) with such an adapter on its output, which starts as the identity."""

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.out_features, width)
        self.up = nn.Linear(width, layer.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        adapted: torch.Tensor = output + self.up(F.gelu(self.down(output)))
        return adapted


def add_bottlenecks(model: Any) -> nn.Module:
    """The model frozen, with two adapters in every block."""
    frozen: nn.Module = model.requires_grad_(False)
    for path, layer in list(frozen.named_modules()):
        if path.endswith(PLACES) and isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(frozen.get_submodule(parent), name, Bottleneck(layer, WIDTH))
    return frozen
