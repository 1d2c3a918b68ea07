"""Puts the emulated CUDA kernels in the place of the package's operators, for the tests of those."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from surm_kernels import _extension
from tests.emulator.build import emulated_kernels


def emulated(primitive: str, module: ModuleType) -> Iterator[ModuleType]:
    """While it lasts, the operators of a primitive in a module of tests are those of CUDA C++; yields the controls."""
    if not _extension.available:
        pytest.skip("the emulated kernels are tested once, beside the compiled library")
    kernels = emulated_kernels()
    with pytest.MonkeyPatch.context() as patch:
        for name in vars(module):
            if name == primitive or name.startswith(f"{primitive}_"):
                patch.setattr(module, name, getattr(torch.ops.surm_kernels_cuda, name))
        yield kernels


def as_it_was(kernels: ModuleType) -> Iterator[ModuleType]:
    """Yields the controls of the emulator and sets them back."""
    kernels.take_launches()
    yield kernels
    kernels.set_seed(1)
    kernels.set_device(0)
    kernels.set_capturing(False)
