"""Fast structured-matrix layers for PyTorch: circulant, Toeplitz, low displacement rank, Kronecker and their kin.

`functional` and `dense` are the products and the matrices, `nn` the layers, `structures` what a layer is made of,
`reference` the same in plain PyTorch, `autograd` the differentiable operators, `convert` the parameters of others and
`siva` the preparation of a weight for SiVA.
"""

from surm_kernels import autograd, convert, dense, functional, nn, reference, siva, structures
from surm_kernels.ops import _flops

_flops.register()

__version__ = "0.1.0"

__all__ = ["autograd", "convert", "dense", "functional", "nn", "reference", "siva", "structures"]
