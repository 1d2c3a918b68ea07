"""The layers of a model that can be adapted: their sizes, and their weight as a matrix of outputs x inputs."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surm_kernels import _checks


class Sizes(NamedTuple):
    """Of a linear map."""

    in_features: int
    out_features: int


def sizes_of(layer: nn.Module) -> Sizes | None:
    """Those of a layer that maps (..., in_features) to (..., out_features) linearly; None of any other."""
    if isinstance(layer, Conv1D):
        shape = getattr(layer.weight, "ds_shape", layer.weight.shape)  # whole, where DeepSpeed has cut it in parts
        return Sizes(*map(int, shape))
    if isinstance(layer, (nn.Embedding, nn.MultiheadAttention, nn.Bilinear)):
        return None
    for names in (("in_features", "out_features"), ("infeatures", "outfeatures"), ("input_size", "output_size")):
        sizes = [getattr(layer, name, None) for name in names]
        if all(isinstance(size, int) for size in sizes) and not isinstance(layer, nn.RNNBase):
            return Sizes(*sizes)  # type: ignore[arg-type]
    return None


def place_of(layer: nn.Module) -> tuple[torch.device | None, torch.dtype]:
    """Device and type of the parameters of an update: float32 beside quantised weights."""
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device if tensors else None
    weight = getattr(layer, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else None
    return device, dtype if dtype in _checks.FLOATING else torch.float32


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight is something else than an ordinary tensor of numbers, to which an update could be added."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in _checks.FLOATING or weight.layout is not torch.strided:
        return True
    return type(weight) not in (Tensor, nn.Parameter) and type(weight).__module__.split(".")[0] != "torch"


def matrix_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight of the layer as outputs x inputs; of a Conv1D it is the transpose, a view."""
    return weight.T if isinstance(layer, Conv1D) else weight
