"""The frozen layer that is adapted: what of it is known, and the type it computes in."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from surm_kernels import _checks
from surm_kernels.structures import Structure

_PLAIN = (nn.Parameter, FakeTensor)  # a tensor of any other kind, as quantisation has them, is not to be added to


class Frozen(NamedTuple):
    """The tensors of a torch.nn.Linear."""

    weight: Tensor
    bias: Tensor | None


def frozen(base: nn.Module) -> Frozen | None:
    """The tensors of a module that is x W^T + bias of a torch.nn.Linear and nothing else; None of any other."""
    if type(base).forward is not nn.Linear.forward or "forward" in base.__dict__:
        return None
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return None
    weight = base._parameters.get("weight")  # None where it is parametrised; base.weight takes longer
    if weight is None or type(weight) not in _PLAIN:
        return None
    if weight.dtype not in _checks.FLOATING or weight.layout is not torch.strided:
        return None
    return Frozen(weight, base._parameters["bias"])


def require_frozen(base: nn.Module) -> Frozen:
    """`frozen`, or an error."""
    tensors = frozen(base)
    if tensors is None:
        raise ValueError(f"base must be a plain torch.nn.Linear, got {type(base).__name__}")
    return tensors


def require_base(base: Any, structure: Any) -> None:
    """A module, and a structure of its sizes where it tells them."""
    if not isinstance(base, nn.Module):
        raise TypeError(f"base must be a torch.nn.Module, got {type(base).__name__}")
    if not isinstance(structure, Structure):
        raise TypeError(f"structure must be a surm_kernels.structures.Structure, got {type(structure).__name__}")
    for name in ("in_features", "out_features"):
        size = getattr(base, name, None)
        if size is not None and size != getattr(structure, name):
            raise ValueError(f"structure must have the {name} of base, {size}, got {getattr(structure, name)}")


def place(base: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and type of the parameters of an update."""
    tensors = [*base.parameters(), *base.buffers()]
    device = tensors[0].device if tensors else None
    return device, next((t.dtype for t in tensors if t.dtype in _checks.FLOATING), None)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type the base computes in."""
    if x.dtype is weight.dtype and x.is_cpu and weight.is_cpu and not torch.is_autocast_enabled("cpu"):
        return x.dtype  # what follows says the same, in the time of a small kernel
    _checks.require_same_device(x, "base.weight", weight)
    dtype = _checks.common_dtype(x, weight)
    if x.dtype != weight.dtype and not _checks.autocasts(x):
        raise ValueError(f"x must be {weight.dtype} like base.weight, got {x.dtype}")
    return dtype
