"""SiVA's update of a weight: values on pairs of its own singular vectors, `W = U diag(s) V^T`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from surm_kernels import _checks, _matrices, siva
from surm_kernels._widening import wide_type, widened
from surm_kernels.ops import diagonal
from surm_kernels.ops._primitive import Primitive
from surm_kernels.ops.stochastic import stochastic_sum
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures.primitive import PrimitiveStructure


class Siva(PrimitiveStructure):
    """U (out_features, k) and V (in_features, k), which are frozen, with k trained values s between them.

    `prepare(weight)` gives U and V: singular vectors of the weight, as `surm_kernels.siva.bases` does.

    Initialisations: "layer" has the output variance of torch.nn.Linear, with random orthonormal U and V; "paper"
    starts from W = 0 by s = 0 and leaves U and V as they are.

    Args:
        k: how many pairs of vectors, at most min(in_features, out_features).
        basis: "bottom" for the singular vectors of the smallest singular values, as SiVA has it, "top" for those of
            the largest, "random" for orthonormal vectors that have nothing to do with the weight.
        precision: "float64" or "float32", for the singular value decomposition.
        seed: of basis "random", any int.
    """

    initialisations = ("layer", "paper")
    constants = ("U", "V")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        basis: str = "bottom",
        precision: str = "float64",
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features)
        siva.require_count(k, out_features, in_features)
        _checks.require_choice("basis", basis, siva.BASES)
        _checks.require_choice("precision", precision, siva.PRECISIONS)
        _checks.require_int("seed", seed)
        self.k, self.basis, self.precision, self.seed = k, basis, precision, seed

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"U": (self.out_features, self.k), "s": (self.k,), "V": (self.in_features, self.k)}

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """U and V for a weight, in its type; see `surm_kernels.siva.bases`."""
        self._check_weight(weight)
        return siva.bases(weight, k=self.k, basis=self.basis, precision=self.precision, seed=self.seed)

    def fingerprint(self, *constants: Tensor) -> Tensor:
        """That of U and V, `surm_kernels.siva.fingerprint`."""
        return siva.fingerprint(*constants)

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        U, s, V = parameters
        if method == "paper":
            s.zero_()
            return
        for basis in (U, V):
            drawn = torch.empty_like(basis, dtype=wide_type(basis.dtype))
            basis.copy_(nn.init.orthogonal_(drawn, generator=generator))
        # x of variance 1 gives the outputs the variance |s|^2 / out_features on average, which is to be 1/3.
        bound = (self.out_features / self.k) ** 0.5
        s.uniform_(-bound, bound, generator=generator)

    def primitive(self, *parameters: Tensor) -> Primitive:
        return _matrices.siva(*parameters)

    def projection(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
        """x V, where it is no larger than half of U: up to where merging becomes faster."""
        return x @ parameters[2] if 2 * x.shape[0] <= self.out_features else None

    def rows(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        base: Tensor | None,
        scale: float,
        projection: Tensor | None = None,
    ) -> Tensor:
        if projection is None:
            return super().rows(x, parameters, base, scale)
        U, s, _ = parameters
        return diagonal.from_projection(projection, U, s, base, scale)

    def row_gradients(
        self,
        g: Tensor,
        x: Tensor,
        parameters: Sequence[Tensor],
        scale: float,
        input_gradient: bool,
        projection: Tensor | None = None,
    ) -> Sequence[Tensor | None]:
        if projection is None:
            return super().row_gradients(g, x, parameters, scale, input_gradient)
        U, s, V = parameters
        x_gradient, s_gradient = diagonal.gradients_by_projection(g, projection, U, s, V, scale, input_gradient)
        return x_gradient, None, s_gradient, None

    @torch.no_grad()
    def merge(
        self,
        weight: Tensor,
        *parameters: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        rounding: StochasticRounding | None = None,
    ) -> Tensor:
        """`weight + scale * W`, see `Structure.merge`.

        Where the sum is rounded stochastically and all is bfloat16, so is the matrix product, at the speed of the
        layer's own. U diag(s) and the product are rounded to nearest then, each by a share of itself however small the
        update is: an entry of W is off by at most `2^-8 (abs(W) + 1.01 abs(U) diag(abs(s)) abs(V)^T)`, and where
        `scale` is no power of two by `2^-8` of the second term more.
        """
        result = torch.empty_like(weight) if out is None else out
        if rounding is None or any(t.dtype != torch.bfloat16 for t in (result, *parameters)):
            return super().merge(weight, *parameters, scale=scale, out=result, rounding=rounding)
        U, s, V = parameters
        stochastic_sum(weight, (U * (scale * widened(s)).to(s.dtype)) @ V.mT, rounding.key, result)
        return result

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The bases of the weight with the best s for them, `diag(U^T weight V)`.

        For basis "top" the nearest matrix of rank k (Eckart and Young, 1936), for the others the nearest on these
        bases; for "bottom" s is the k smallest singular values.
        """
        inside = weight.to(torch.promote_types(weight.dtype, siva.PRECISIONS[self.precision]))
        U, V = self.prepare(inside)
        s = ((inside @ V) * U).sum(0)
        return U.to(weight.dtype), s.to(weight.dtype), V.to(weight.dtype)
