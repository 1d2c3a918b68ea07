"""A case at a point becomes calls on random tokens and parameters, the same for all contenders and the exact answer."""

from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels.command.bench.case import Case, Method, Parameters, Point, Product, Unavailable
from surm_kernels.command.bench.measure import Contender, Results, Workload


def workload(case: Case, point: Point, dtype: torch.dtype, unavailable: Callable[[str], object]) -> Workload:
    """The contenders of a case on random tokens; `unavailable` hears of each that cannot run here."""
    x, parameters, g = inputs(case, point, dtype)
    contenders = []
    for method in case.contenders:
        if not method.serves(point):
            continue
        try:
            call = method_call(method, point, x, parameters, g)
        except Unavailable as reason:
            unavailable(str(reason))
            continue
        contenders.append(Contender(method.name, call, method.comparable))
    doubles = tuple(p.double() for p in parameters)
    exact = _call(case.exact(point), x.double(), doubles, None if g is None else g.double())
    return Workload(tuple(contenders), exact, case.gradients)


def inputs(case: Case, point: Point, dtype: torch.dtype) -> tuple[Tensor, Parameters, Tensor | None]:
    """Tokens, parameters of our structure and, for a case with gradients, the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(point.tokens, point.in_features, generator=generator).to(dtype)
    parameters = tuple(case.draw(shape, point, generator).to(dtype) for shape in case.shapes(point))
    g = torch.randn(point.tokens, point.out_features, generator=generator).to(dtype) if case.gradients else None
    return x, parameters, g


def method_call(
    method: Method, point: Point, x: Tensor, parameters: Parameters, g: Tensor | None
) -> Callable[[], Results]:
    """A call of a method on `inputs`; raises Unavailable where it cannot run here."""
    return _call(method.product(point, x.dtype), x, method.parameters(point, parameters), g)


def _call(product: Product, x: Tensor, parameters: Parameters, g: Tensor | None) -> Callable[[], Results]:
    """The product, followed by the gradients of x and the parameters where g, that of the output, is given."""
    if g is None:
        return lambda: (product(x, *parameters),)
    leaves = tuple(t.detach().requires_grad_() for t in (x, *parameters))

    def forward_and_backward() -> Results:
        y = product(*leaves)
        return (y, *torch.autograd.grad(y, leaves, g))

    return forward_and_backward
