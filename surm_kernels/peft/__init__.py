"""Hugging Face PEFT with the kernels of this package."""

try:
    import peft as _peft  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("surm_kernels.peft needs Hugging Face PEFT: pip install 'peft>=0.21'") from error

from surm_kernels.peft.accelerate import accelerate, accelerated, restore

__all__ = ["accelerate", "accelerated", "restore"]
