"""The layer every structured layer is: parameters of a structure, a bias, and one product."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from surm_kernels import _checks
from surm_kernels.nn._adapted import Update, record
from surm_kernels.ops import _mode
from surm_kernels.ops._outputs import in_shape
from surm_kernels.structures import Structure

Layer = TypeVar("Layer", bound="StructuredLinear")


class StructuredLinear(nn.Module):
    """`x @ W.T + bias` for a structured W: takes the place of torch.nn.Linear.

    The parameters carry the structure's names (`c` for a circulant), so state_dict has them beside `bias`; those that
    the structure calls constants are buffers. A subclass fixes the structure: its `__init__` takes (in_features,
    out_features, bias=True, device=None, dtype=None) and the structure's own options by keyword.
    """

    def __init__(
        self,
        structure: Structure,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.structure = structure
        self._product = Update(structure, 1.0, "direct", None)  # of no frozen weight
        self.in_features = structure.in_features
        self.out_features = structure.out_features
        self._names = tuple(structure.parameter_shapes())
        for name, shape in structure.parameter_shapes().items():
            values = torch.empty(shape, device=device, dtype=dtype)
            if name in structure.constants:
                self.register_buffer(name, values)
            else:
                self.register_parameter(name, nn.Parameter(values))
        self.bias: nn.Parameter | None
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def structured_parameters(self) -> tuple[Tensor, ...]:
        """The parameters of W, constants among them, in the structure's order."""
        return tuple(getattr(self, name) for name in self._names)

    @property
    def weight(self) -> Tensor:
        """W, differentiable with respect to the parameters, a tensor of its own every time; it cannot be set."""
        return self.structure.dense(*self.structured_parameters())

    def reset_parameters(self) -> None:
        """Draws the parameters by the structure's first initialisation and the bias as torch.nn.Linear does."""
        self.structure.initialise(self.structured_parameters())
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        parameters, bias, recording = self.structured_parameters(), self.bias, torch.is_grad_enabled()
        plain = _is_plain(input, self.in_features, bias, parameters) and self.structure.by_formula
        # The gradient of x alone is shorter by the structure's own product.
        if not plain or (recording and not any(parameter.requires_grad for parameter in parameters)):
            return self.structure.linear(input, *parameters, base=bias)
        # One node in the graph: every view of x, parameters or result would be another.
        flat = input.dim() == 2
        x = input if flat else input.reshape(-1, self.in_features)
        if recording:
            y = record(self._product, None, x, None, bias, *parameters)
        else:
            y = self._product.product(None, x, None, bias, parameters)
        return y if flat else in_shape(y, *input.shape[:-1], self.out_features)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A torch.nn.Linear with the same map."""
        return plain_linear(self.weight, self.bias)

    @classmethod
    @torch.no_grad()
    def from_linear(cls: type[Layer], linear: nn.Linear, **options: Any) -> Layer:
        """The layer nearest to `linear` in Frobenius norm, with its bias; options go to the layer's constructor.

        Raises:
            TypeError: `linear` is no torch.nn.Linear.
            NotImplementedError: no formula for the nearest structured matrix is known.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        weight, bias = linear.weight, linear.bias
        constructor: Any = cls  # a subclass takes sizes where this class takes a structure
        layer: Layer = constructor(
            linear.in_features,
            linear.out_features,
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
        for parameter, value in zip(layer.structured_parameters(), layer.structure.nearest(weight), strict=True):
            parameter.copy_(value)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        return layer

    def extra_repr(self) -> str:
        return f"{self.structure.extra_repr()}, bias={self.bias is not None}"


def _is_plain(x: Tensor, features: int, bias: Tensor | None, parameters: Sequence[Tensor]) -> bool:
    """Whether a call is an ordinary one with tensors of one type, which needs no other checks and no casts."""
    if not _mode.is_ordinary(x) or x.layout is not torch.strided or x.is_nested or _checks.autocasts(x):
        return False
    if x.dtype not in _checks.FLOATING or x.dim() == 0 or x.shape[-1] != features:
        return False
    dtype, device = x.dtype, x.device
    for tensor in parameters if bias is None else (bias, *parameters):
        if tensor.dtype is not dtype or tensor.device != device:
            return False
    return True


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A torch.nn.Linear with copies of a weight and a bias."""
    rows, columns = weight.shape
    linear = nn.utils.skip_init(nn.Linear, columns, rows, bias is not None, device=weight.device, dtype=weight.dtype)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear
