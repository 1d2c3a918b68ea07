"""An adapted layer as torch.compile sees it: a call, `traced`, whose inside it does not read but differentiates."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from surm_kernels.nn._adapted import Adapted, Update
from surm_kernels.nn._strategy import merges

_pytree.register_constant(Update)  # torch.compile takes it as it is


def _traced(update: Update, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor) -> Tensor:
    need_parameters = any(parameter.requires_grad for parameter in parameters)
    merged = None
    if merges(update, x, weight, parameters, x.requires_grad, need_parameters, size=None):
        merged = update.merged(x, weight, parameters)
    return Adapted.apply(update, merged, x, weight, bias, *parameters)


def __getattr__(name: str) -> Any:
    if name != "traced":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only when a layer is compiled: torch._dynamo takes a second to import.
    globals()[name] = traced = torch._dynamo.nonstrict_trace(_traced)
    return traced
