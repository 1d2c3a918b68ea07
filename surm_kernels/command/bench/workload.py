"""A case at a point becomes calls on random tokens and parameters, the same for all contenders and the exact answer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from surm_kernels.command.bench.case import Case, Method, Parameters, Point, Product, Unavailable
from surm_kernels.command.bench.measure import Contender, Results, Workload

STEP = 0.02  # of a parameter's norm: bfloat16 values notice
SMALLEST = 1e-30


def workload(case: Case, point: Point, dtype: torch.dtype, unavailable: Callable[[str], object]) -> Workload:
    """The contenders of a case on random tokens; `unavailable` hears of each rival that cannot run here.

    Raises:
        Unavailable: ours cannot.
    """
    x, parameters, g = inputs(case, point, dtype)
    contenders: list[Contender] = []
    for method in case.contenders:
        if not method.serves(point):
            continue
        try:
            call = method_call(method, point, x, parameters, g, case.updates)
        except Unavailable as reason:
            if not contenders:
                raise
            unavailable(str(reason))
            continue
        contenders.append(Contender(method.name, call, method.comparable))
    doubles = tuple(p.double() for p in parameters)
    exact = product_call(case.exact(point), x.double(), doubles, None if g is None else g.double())
    return Workload(tuple(contenders), exact, case.gradients, case.roundings)


def inputs(case: Case, point: Point, dtype: torch.dtype) -> tuple[Tensor, Parameters, Tensor | None]:
    """Tokens, parameters of our structure and, for a case with gradients, the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(point.tokens, point.in_features, generator=generator).to(dtype)
    parameters = tuple(case.draw(shape, point, generator).to(dtype) for shape in case.shapes(point))
    g = torch.randn(point.tokens, point.out_features, generator=generator).to(dtype) if case.gradients else None
    return x, parameters, g


def method_call(
    method: Method, point: Point, x: Tensor, parameters: Parameters, g: Tensor | None, updates: bool = False
) -> Callable[[], Results]:
    """A call of a method on `inputs`; raises Unavailable where it cannot run here."""
    return product_call(method.product(point, x.dtype), x, method.parameters(point, parameters), g, updates)


def product_call(
    product: Product, x: Tensor, parameters: Parameters, g: Tensor | None, updates: bool = False
) -> Callable[[], Results]:
    """The product, followed by the gradients of x and the parameters where g, that of the output, is given."""
    if g is None:
        return lambda: (product(x, *parameters),)
    differentiable = leaves(x, [p.clone() for p in parameters] if updates else parameters)
    step = Steps(differentiable[1:]) if updates else None

    def forward_and_backward() -> Results:
        y = product(*differentiable)
        results = (y, *torch.autograd.grad(y, differentiable, g))
        if step is not None:
            step(results[2:])
        return results

    return forward_and_backward


def leaves(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tokens and parameters, as autograd differentiates to them and as modules hold them."""
    return x.detach().requires_grad_(), *(nn.Parameter(parameter) for parameter in parameters)


class Steps:
    """Steps along the first gradients, every other one back: parameters change each time and stay where they are."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._steps: list[Tensor] = []
        self._sign = 1

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """A step in place, of STEP of a parameter's norm; downhill at first."""
        if not self._steps:
            pairs = zip(self._parameters, gradients, strict=True)
            self._steps = [g * (STEP * p.norm() / g.norm().clamp(min=SMALLEST)) for p, g in pairs]
        self._sign = -self._sign
        for parameter, step in zip(self._parameters, self._steps, strict=True):
            parameter.add_(step, alpha=self._sign)
