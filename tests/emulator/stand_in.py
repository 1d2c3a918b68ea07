"""Puts the emulated CUDA kernels in the place of the package's operators, for the tests of those."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from surm_kernels import _extension
from surm_kernels._namespace import CUDA_NAMESPACE
from surm_kernels.gpu_rule import CUDA_OPERATORS
from tests.emulator.build import emulated_kernels


def emulated(module: ModuleType) -> Iterator[ModuleType]:
    """While it lasts, the operators in a module of tests are those of CUDA C++; yields the controls."""
    if not _extension.available:
        pytest.skip("the emulated kernels are tested once, beside the compiled library")
    kernels, operators = emulated_kernels(), getattr(torch.ops, CUDA_NAMESPACE)
    with pytest.MonkeyPatch.context() as patch:
        for name in set(CUDA_OPERATORS) & set(vars(module)):
            patch.setattr(module, name, getattr(operators, name))
        yield kernels


def as_it_was(kernels: ModuleType) -> Iterator[ModuleType]:
    """Yields the controls of the emulator and sets them back."""
    kernels.take_launches()
    yield kernels
    kernels.set_seed(1)
    kernels.set_device(0)
    kernels.set_capturing(False)
