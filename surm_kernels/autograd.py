"""The autograd.Functions behind the products, in operator form (docs/architecture.md); call them with `.apply`."""

from surm_kernels.ops.krylov import Krylov, KrylovBackward, KrylovDense, KrylovDenseAdjoint, KrylovPullback

__all__ = ["Krylov", "KrylovBackward", "KrylovDense", "KrylovDenseAdjoint", "KrylovPullback"]
