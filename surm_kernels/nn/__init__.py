"""Layers that take the place of torch.nn.Linear."""

from surm_kernels.nn.layers import BlockCirculantLinear, CirculantLinear, SkewCirculantLinear
from surm_kernels.nn.structured_linear import StructuredLinear

__all__ = ["BlockCirculantLinear", "CirculantLinear", "SkewCirculantLinear", "StructuredLinear"]
