"""The update of PEFT's LoKr layers (arXiv 2309.14859) on the kernel of Kronecker products."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from surm_kernels.functional import kronecker_linear


@functools.cache
def accelerated_delta_activations(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Linear._get_delta_activations without the Kronecker product; PEFT's own where it drops rows of that in training.

    The type is that of x and the factors promoted, or autocast's, as PEFT has it.

    Args:
        original: PEFT's.
    """

    @functools.wraps(original)
    def delta_activations(self: Any, adapter_name: str, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.training and self.rank_dropout[adapter_name]:
            return original(self, adapter_name, input, *args, **kwargs)
        w1 = _factor(adapter_name, self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b)
        w2 = _factor(adapter_name, self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b)
        return kronecker_linear(input, w1, w2, scale=self.scaling[adapter_name])

    return delta_activations


def _factor(adapter: str, whole: Any, left: Any, right: Any) -> Tensor:
    """A factor that is stored whole or as a product of low rank."""
    factor: Tensor = whole[adapter] if adapter in whole else left[adapter] @ right[adapter]
    return factor
