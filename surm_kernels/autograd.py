"""The autograd.Functions behind the products, two a form: its partial derivatives and, fused, its gradients.

They are called as `Krylov.apply(form, position, base, *arguments, *constants)`, with the forms, arguments and constants
of `surm_kernels.ops`; `Generated`, which belongs to no form, as `Generated.apply(x, base, kind, scale, *parameters)`.
"""

from surm_kernels.ops import diagonal, kronecker, krylov, ldr, toeplitz
from surm_kernels.ops.generated import Generated

Krylov, KrylovGradients = krylov.form.Partial, krylov.form.Gradients
KrylovDense = krylov.dense_form.Partial
Toeplitz, ToeplitzGradients = toeplitz.form.Partial, toeplitz.form.Gradients
ToeplitzDense = toeplitz.dense_form.Partial
Ldr, LdrGradients = ldr.form.Partial, ldr.form.Gradients
Kronecker, KroneckerGradients = kronecker.form.Partial, kronecker.form.Gradients
Diagonal, DiagonalGradients = diagonal.form.Partial, diagonal.form.Gradients

__all__ = [
    "Diagonal",
    "DiagonalGradients",
    "Generated",
    "Kronecker",
    "KroneckerGradients",
    "Krylov",
    "KrylovDense",
    "KrylovGradients",
    "Ldr",
    "LdrGradients",
    "Toeplitz",
    "ToeplitzDense",
    "ToeplitzGradients",
]
