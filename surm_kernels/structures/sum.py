"""A sum of structured matrices: several updates of one layer."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from surm_kernels import _checks
from surm_kernels._widening import widened
from surm_kernels.rounding import StochasticRounding
from surm_kernels.structures.base import Structure


class Sum(Structure):
    """W = scales[0] W_0 + scales[1] W_1 + ..., each term a structure with parameters of its own.

    The parameters of term i have the names of its structure with `i_` before them, its constants likewise. All terms
    start by one initialisation, of those that every one of them has.

    Args:
        terms: structures of one size.
        scales: a factor of each; 1 where there are none.

    Raises:
        ValueError: there is no term, sizes differ, or there is not a scale for every term.
    """

    def __init__(self, terms: Sequence[Structure], scales: Sequence[float] | None = None) -> None:
        if not terms:
            raise ValueError("terms must be one structure or more, got none")
        super().__init__(terms[0].in_features, terms[0].out_features)
        for term in terms:
            if (term.in_features, term.out_features) != (self.in_features, self.out_features):
                raise ValueError(f"terms must have one size, got {terms[0]} and {term}")
        self.terms = tuple(terms)
        self.scales = (1.0,) * len(terms) if scales is None else tuple(map(float, scales))
        if len(self.scales) != len(self.terms):
            raise ValueError(f"scales must be as many as terms, {len(self.terms)}, got {len(self.scales)}")
        for scale in self.scales:
            _checks.require_finite("scales", scale)
        self.constants = tuple(f"{i}_{name}" for i, term in enumerate(self.terms) for name in term.constants)
        common = [m for m in self.terms[0].initialisations if all(m in term.initialisations for term in self.terms)]
        self.initialisations = tuple(common)
        self.holds_tensors = any(term.holds_tensors for term in self.terms)
        self._counts = [len(term.parameter_shapes()) for term in self.terms]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{i}_{n}": shape for i, term in enumerate(self.terms) for n, shape in term.parameter_shapes().items()}

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(constant for term in self.terms for constant in term.prepare(weight))

    def fingerprint(self, *constants: Tensor) -> Tensor:
        """The sum of the terms' own, by their scales: that of the sum of updates."""
        given = iter(constants)
        pairs = [(scale, term) for scale, term in zip(self.scales, self.terms, strict=True) if term.constants]
        if not pairs:
            return super().fingerprint(*constants)
        first, *rest = (scale * term.fingerprint(*(next(given) for _ in term.constants)) for scale, term in pairs)
        return sum(rest, first)

    def _initialise(self, parameters: tuple[Tensor, ...], method: str, generator: torch.Generator | None) -> None:
        for term, _, own in self._each(parameters):
            term.initialise(own, method, generator=generator)

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        for term, factor, own in self._each(parameters):
            base = term.linear(x, *own, base=base, scale=scale * factor)
        assert base is not None
        return base

    def dense(self, *parameters: Tensor) -> Tensor:
        return self.wide_dense(*parameters).to(parameters[0].dtype)

    def wide_dense(self, *parameters: Tensor) -> Tensor:
        first, *rest = (factor * term.wide_dense(*own) for term, factor, own in self._each(parameters))
        return sum(rest, first)

    def gradients(
        self, g: Tensor, x: Tensor, *parameters: Tensor, scale: float = 1.0, input_gradient: bool = True
    ) -> tuple[Tensor | None, ...]:
        """Each term's own, see `Structure.gradients`; those of x are added in float32 and rounded once."""
        of_x, inner = [], []
        for term, factor, own in self._each(parameters):
            x_gradient, *found = term.gradients(g, x, *own, scale=scale * factor, input_gradient=input_gradient)
            inner.extend(found)
            if x_gradient is not None:
                of_x.append(widened(x_gradient))
        return sum(of_x[1:], of_x[0]).to(x.dtype) if of_x else None, *inner

    @torch.no_grad()
    def merge(
        self,
        weight: Tensor,
        *parameters: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        rounding: StochasticRounding | None = None,
    ) -> Tensor:
        """Each term merged in turn, in float32 at least, and the whole rounded once; see `Structure.merge`."""
        result = torch.empty_like(weight) if out is None else out
        total = weight
        *first, last = self._each(parameters)
        for term, factor, own in first:
            wide = torch.empty(weight.shape, dtype=widened(total).dtype, device=weight.device)
            total = term.merge(total, *own, scale=scale * factor, out=wide)
        term, factor, own = last
        return term.merge(total, *own, scale=scale * factor, out=result, rounding=rounding)

    def kept(self, *parameters: Tensor) -> Callable[[Tensor, Tensor | None, float], Tensor] | None:
        """The terms' products as they are kept; None unless every term keeps its own."""
        products = [(factor, term.kept(*own)) for term, factor, own in self._each(parameters)]
        if any(product is None for _, product in products):
            return None

        def product(x: Tensor, base: Tensor | None, scale: float) -> Tensor:
            for factor, of_term in products:
                assert of_term is not None
                base = of_term(x, base, scale * factor)
            assert base is not None
            return base

        return product

    def token_work(self) -> float:
        return sum(term.token_work() for term in self.terms)

    def merge_work(self) -> float:
        return sum(term.merge_work() for term in self.terms)

    def _each(self, parameters: Sequence[Tensor]) -> Iterator[tuple[Structure, float, Sequence[Tensor]]]:
        """Every term with its scale and its parameters."""
        start = 0
        for term, scale, count in zip(self.terms, self.scales, self._counts, strict=True):
            yield term, scale, parameters[start : start + count]
            start += count
