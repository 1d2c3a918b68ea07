"""Fast structured-matrix layers for PyTorch: circulant, skew-circulant, block circulant and their kin.

`functional` and `dense` are the products and the matrices, `nn` the layers, `structures` what a layer is made of,
`reference` the same in plain PyTorch and `autograd` the differentiable operators.
"""

from surm_kernels import autograd, dense, functional, nn, reference, structures

__version__ = "0.1.0"

__all__ = ["autograd", "dense", "functional", "nn", "reference", "structures"]
