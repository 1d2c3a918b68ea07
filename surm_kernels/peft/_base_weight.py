"""The weight of a base layer as a matrix of numbers: gathered, loaded, dequantised, and outputs by inputs."""

from typing import Any

import torch
from accelerate.utils import align_module_device
from peft.utils.integrations import gather_params_ctx
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from surm_kernels import _checks
from surm_kernels.peft._base_layers import matrix_of

_KINDS = (Tensor, nn.Parameter, FakeTensor, DTensor)  # a tensor of any other kind may hold codes


@torch.no_grad()
def gathered_weight(layer: nn.Module) -> Tensor:
    """The weight (out_features, in_features) of the layer that an adapter sits on, whole and in a floating type.

    One that ZeRO-3 or FSDP2 shards is gathered, so every process has to ask for it; one that accelerate offloads is
    loaded, one that bitsandbytes, torchao or HQQ quantise dequantised. Any other is the layer's own memory, not to be
    written to. What is on the meta device stays there.

    Raises:
        TypeError: the layer has no such weight, or codes that PEFT cannot dequantise.
    """
    with align_module_device(layer):
        weight = _whole(_numbers(layer))
    if weight.dtype not in _checks.FLOATING or weight.dim() != 2:
        raise _refusal(layer)
    return matrix_of(layer, weight)


def _numbers(layer: nn.Module) -> Tensor:
    """The layer's weight, or what its codes stand for."""
    # The callable that PEFT demands for torchao serves to quantise again.
    backend = resolve_quantization_backend(layer, get_apply_tensor_subclass=_refusal)
    try:
        weight: Any = layer.weight if backend is None else backend.get_base_weight(layer)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _refusal(layer) from error
    if type(weight) not in _KINDS:
        raise _refusal(layer)
    return weight


def _whole(weight: Tensor) -> Tensor:
    if weight.is_meta:
        return torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    if hasattr(weight, "ds_id"):  # a parameter of DeepSpeed's
        with gather_params_ctx(weight, modifier_rank=None):
            return weight.detach().clone()  # what is gathered goes when the context ends
    return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()


def _refusal(layer: nn.Module) -> TypeError:
    weight = getattr(layer, "weight", None)
    kind = f"{type(weight).__name__} of {weight.dtype}" if isinstance(weight, Tensor) else "none"
    wanted = "a matrix of floating numbers, or one that PEFT can dequantise"
    return TypeError(f"the weight of {type(layer).__name__} must be {wanted}, got {kind}")
