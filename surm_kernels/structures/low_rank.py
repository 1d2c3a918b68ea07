"""Low rank matrices: `W = B A`, as LoRA (arXiv 2106.09685) adapts weights."""

import math

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from surm_kernels import _checks, dense, functional
from surm_kernels.ops._library import without_autocast
from surm_kernels.structures.base import Structure, bilinear_bound


class LowRank(Structure):
    """The product of B (out_features, rank) and A (rank, in_features).

    Initialisations: "layer" has the output variance of torch.nn.Linear, "paper" is LoRA's, with W = 0 by B = 0 and A
    as torch.nn.Linear draws its weight.
    """

    initialisations = ("layer", "paper")

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features)
        _checks.require_size("rank", rank)
        self.rank = rank

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"A": (self.rank, self.in_features), "B": (self.out_features, self.rank)}

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        A, B = parameters
        if method == "paper":
            bound = 1 / math.sqrt(self.in_features)
            A.uniform_(-bound, bound, generator=generator)
            B.zero_()
        else:
            bound = bilinear_bound(A.numel())
            A.uniform_(-bound, bound, generator=generator)
            B.uniform_(-bound, bound, generator=generator)

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return functional.low_rank_linear(x, *parameters, base=base, scale=scale)

    @torch.no_grad()
    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `scale * <g, x @ W.T>`, of which A's and x's share a product; see `Structure.gradients`."""
        A, B = (parameter.to(x.dtype) for parameter in parameters)
        rows, cotangents = x.reshape(-1, self.in_features), g.reshape(-1, self.out_features)
        with without_autocast(x):
            right, left = rows @ A.mT, cotangents @ B
            x_gradient = _scaled(left, A, scale).view(x.shape) if input_gradient else None
            found = _scaled(left.mT, rows, scale), _scaled(cotangents.mT, right, scale)
        return x_gradient, *(t.to(parameter.dtype) for t, parameter in zip(found, parameters, strict=True))

    @torch.no_grad()
    def merge(self, weight: Tensor, *parameters: Tensor, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
        """`weight + scale * B @ A`, in one matrix product where all types agree, see `Structure.merge`."""
        A, B = parameters
        types = {t.dtype for t in (weight, A, B, weight if out is None else out)}
        if types not in ({torch.float32}, {torch.float64}) or out is weight:
            return super().merge(weight, *parameters, scale=scale, out=out)
        return torch.addmm(weight, B, A, alpha=scale, out=torch.empty_like(weight) if out is None else out)

    def token_work(self) -> float:
        return self.rank * (self.in_features + self.out_features)

    def merge_work(self) -> float:
        return self.rank * self.in_features * self.out_features

    def dense(self, *parameters: Tensor) -> Tensor:
        return dense.low_rank(*parameters)

    def nearest(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The leading singular triples (Eckart and Young, 1936), their values split evenly between A and B."""
        self._check_weight(weight)
        inside = weight.to(torch.promote_types(weight.dtype, torch.float32))
        U, S, V = torch.linalg.svd(inside, full_matrices=False)
        root = S[: self.rank].sqrt()
        missing = self.rank - len(root)  # a rank above that of any weight
        A = torch_functional.pad(root[:, None] * V[: self.rank], (0, 0, 0, missing))
        B = torch_functional.pad(U[:, : self.rank] * root, (0, missing))
        return A.to(weight.dtype), B.to(weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """`scale * left @ right`, rounded once."""
    return torch.addmm(left.new_zeros(1), left, right, beta=0, alpha=scale)
