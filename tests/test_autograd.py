"""Derivatives of every operator of every kind and order, and all the ways torch transforms a program."""

import doctest
import warnings
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from surm_kernels import autograd, dense, functional, nn
from surm_kernels.autograd import (
    CIRCULANT,
    HANKEL,
    SKEW_CIRCULANT,
    TOEPLITZ,
    diagonal,
    diagonal_backward,
    diagonal_pullback,
    grid,
    grid_backward,
    grid_dense,
    grid_dense_adjoint,
    grid_pullback,
    kronecker,
    kronecker_backward,
    kronecker_pullback_left,
    kronecker_pullback_right,
    ldr,
    ldr_backward,
    ldr_pullback_left,
    ldr_pullback_right,
)
from surm_kernels.block_kinds import KINDS

Shapes = dict[str, tuple[int, ...]]


class GridSizes(NamedTuple):
    kind: int
    groups: int
    tokens: int
    outputs: int
    inputs: int
    rows: int
    columns: int

    def shapes(self) -> Shapes:
        kind, groups, tokens, outputs, inputs, rows, columns = self
        return {
            "v": (groups, outputs, inputs, KINDS[kind].values(rows, columns)),
            "x": (groups, tokens, inputs * columns),
            "g": (groups, tokens, outputs * rows),
            "w": (groups, outputs * rows, inputs * columns),
        }


class LdrSizes(NamedTuple):
    groups: int
    tokens: int
    rank: int
    size: int
    outputs: int
    inputs: int

    def shapes(self) -> Shapes:
        return {
            "l": (self.groups, self.rank, self.size),
            "r": (self.groups, self.rank, self.size),
            "x": (self.groups, self.tokens, self.inputs),
            "g": (self.groups, self.tokens, self.outputs),
        }


class KroneckerSizes(NamedTuple):
    groups: int
    tokens: int
    p: int
    q: int
    r: int
    s: int

    def shapes(self) -> Shapes:
        groups, tokens, p, q, r, s = self
        return {"a": (groups, p, q), "b": (groups, r, s), "x": (groups, tokens, q * s), "g": (groups, tokens, p * r)}


class DiagonalSizes(NamedTuple):
    groups: int
    tokens: int
    outputs: int
    inputs: int
    terms: int

    def shapes(self) -> Shapes:
        groups, tokens, outputs, inputs, terms = self
        return {
            "u": (groups, outputs, terms),
            "s": (groups, terms),
            "v": (groups, inputs, terms),
            "x": (groups, tokens, inputs),
            "g": (groups, tokens, outputs),
        }


SIZES: dict[str, Any] = {
    "circulant grid": GridSizes(CIRCULANT, groups=2, tokens=2, outputs=2, inputs=1, rows=3, columns=3),
    "skew-circulant grid": GridSizes(SKEW_CIRCULANT, groups=2, tokens=2, outputs=1, inputs=2, rows=3, columns=3),
    "toeplitz grid": GridSizes(TOEPLITZ, groups=2, tokens=2, outputs=1, inputs=2, rows=3, columns=2),
    "hankel grid": GridSizes(HANKEL, groups=2, tokens=2, outputs=2, inputs=1, rows=2, columns=3),
    "ldr": LdrSizes(groups=2, tokens=2, rank=2, size=3, outputs=2, inputs=3),
    "kronecker": KroneckerSizes(groups=2, tokens=2, p=2, q=1, r=2, s=3),
    "diagonal": DiagonalSizes(groups=2, tokens=2, outputs=2, inputs=3, terms=2),
}
# Neither 0 nor 1, which torch.compile takes as constants, and no two sizes alike.
COMPILED_SIZES: dict[str, list[Any]] = {
    "circulant grid": [GridSizes(CIRCULANT, 2, 3, 4, 5, 7, 7), GridSizes(CIRCULANT, 3, 5, 2, 4, 6, 6)],
    "skew-circulant grid": [GridSizes(SKEW_CIRCULANT, 2, 3, 4, 5, 7, 7), GridSizes(SKEW_CIRCULANT, 3, 5, 2, 4, 6, 6)],
    "toeplitz grid": [GridSizes(TOEPLITZ, 2, 3, 4, 5, 7, 9), GridSizes(TOEPLITZ, 3, 5, 2, 4, 6, 10)],
    "hankel grid": [GridSizes(HANKEL, 2, 3, 4, 5, 7, 9), GridSizes(HANKEL, 3, 5, 2, 4, 6, 10)],
    "ldr": [LdrSizes(2, 3, 4, 9, 7, 8), LdrSizes(3, 5, 2, 11, 10, 6)],
    "kronecker": [KroneckerSizes(2, 3, 4, 5, 7, 9), KroneckerSizes(3, 5, 2, 4, 6, 10)],
    "diagonal": [DiagonalSizes(2, 3, 4, 5, 7), DiagonalSizes(3, 5, 2, 4, 6)],
}

Operators = dict[str, tuple[Callable, str]]

GRID_OPERATORS: Operators = {
    "grid": (lambda w, x, v, base: grid(x, v, base, w.kind, w.columns, 0.7, False), "xvg"),
    "grid without base": (lambda w, x, v: grid(x, v, None, w.kind, w.columns, 0.7, False), "xv"),
    "grid, transposed": (lambda w, g, v, base: grid(g, v, base, w.kind, w.columns, 0.7, True), "gvx"),
    "grid pullback": (lambda w, g, x: grid_pullback(g, x, w.kind, w.rows, w.columns, 0.7), "gx"),
    "grid backward": (lambda w, g, x, v: grid_backward(g, x, v, w.kind, w.columns, 0.7, False), "gxv"),
    "grid backward, transposed": (lambda w, x, g, v: grid_backward(x, g, v, w.kind, w.columns, 0.7, True), "xgv"),
    "grid dense": (lambda w, v: grid_dense(v, w.kind, w.columns), "v"),
    "grid dense adjoint": (lambda w, m: grid_dense_adjoint(m, w.kind, w.rows, w.columns), "w"),
}
# Every operator as a function of its primitive's sizes and of tensors, with the tensors it takes. Python knows of kinds
# of blocks only what their sizes are, so two of them in turns serve for each operator.
OPERATORS: Operators = {
    f"{kind} {name}": operator
    for (name, operator), kinds in zip(
        GRID_OPERATORS.items(), (("circulant", "hankel"), ("skew-circulant", "toeplitz")) * 4, strict=True
    )
    for kind in kinds
} | {
    "ldr": (lambda sizes, x, left, right, base: ldr(x, left, right, base, sizes.outputs, 0.7, False, False), "xlrg"),
    "ldr without base, reflected": (
        lambda sizes, x, left, right: ldr(x, left, right, None, sizes.outputs, 0.7, False, True),
        "xlr",
    ),
    "ldr, transposed": (
        lambda sizes, g, left, right, base: ldr(g, left, right, base, sizes.inputs, 0.7, True, False),
        "glrx",
    ),
    "ldr pullback left": (lambda _, g, x, right: ldr_pullback_left(g, x, right, 0.7, False), "gxr"),
    "ldr pullback right, reflected": (lambda _, g, x, left: ldr_pullback_right(g, x, left, 0.7, True), "gxl"),
    "ldr backward": (lambda _, g, x, left, right: ldr_backward(g, x, left, right, 0.7, False), "gxlr"),
    "kronecker": (lambda _, x, a, b, base: kronecker(x, a, b, base, 0.7, False), "xabg"),
    "kronecker without base": (lambda _, x, a, b: kronecker(x, a, b, None, 0.7, False), "xab"),
    "kronecker, transposed": (lambda _, g, a, b, base: kronecker(g, a, b, base, 0.7, True), "gabx"),
    "kronecker pullback left": (lambda _, g, x, b: kronecker_pullback_left(g, x, b, 0.7), "gxb"),
    "kronecker pullback right": (lambda _, g, x, a: kronecker_pullback_right(g, x, a, 0.7), "gxa"),
    "kronecker backward": (lambda _, g, x, a, b: kronecker_backward(g, x, a, b, 0.7), "gxab"),
    "diagonal": (lambda _, x, u, s, v, base: diagonal(x, u, s, v, base, 0.7), "xusvg"),
    "diagonal without base": (lambda _, x, u, s, v: diagonal(x, u, s, v, None, 0.7), "xusv"),
    "diagonal pullback": (lambda _, g, x, u, v: diagonal_pullback(g, x, u, v, 0.7), "gxuv"),
    "diagonal backward": (lambda _, g, x, u, s, v: diagonal_backward(g, x, u, s, v, 0.7), "gxusv"),
}
operator_cases = pytest.mark.parametrize("name", OPERATORS)
# A product of each primitive, of both sorts of blocks.
PRIMITIVES = [name for name in OPERATORS if name in SIZES]
primitive_cases = pytest.mark.parametrize("name", PRIMITIVES)


def test_every_operator_for_users_is_tried_here_and_the_example_holds() -> None:
    tried = {name for function, _ in OPERATORS.values() for name in function.__code__.co_names}
    assert {name for name in autograd.__all__ if callable(getattr(autograd, name))} <= tried
    assert {name for name in autograd.__all__ if name not in tried} == {kind.name.upper() for kind in KINDS}
    failed, attempted = doctest.testmod(autograd)
    assert attempted and not failed


def primitive_of(name: str) -> str:
    return next(primitive for primitive in SIZES if name.startswith(primitive))


def function_of(name: str) -> Callable:
    """The operator as a function of tensors alone."""
    return partial(OPERATORS[name][0], SIZES[primitive_of(name)])


def shapes_of(name: str, sizes: Any = None) -> list[tuple[int, ...]]:
    shapes = (sizes or SIZES[primitive_of(name)]).shapes()
    return [shapes[key] for key in OPERATORS[name][1]]


def inputs_of(name: str, requires_grad: bool = False, sizes: Any = None) -> tuple[Tensor, ...]:
    return tuple(
        torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for shape in shapes_of(name, sizes)
    )


def single_group(name: str) -> Any:
    return SIZES[primitive_of(name)]._replace(groups=1)


def flat(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """One vector of everything an operator returned."""
    return torch.cat([t.flatten() for t in result]) if isinstance(result, tuple) else result.flatten()


def close(a: Tensor | tuple[Tensor, ...], b: Tensor | tuple[Tensor, ...]) -> bool:
    return torch.allclose(flat(a), flat(b), rtol=1e-10, atol=1e-10)


@operator_cases
def test_first_derivatives_are_right_in_reverse_forward_and_batched_mode(name: str) -> None:
    assert gradcheck(
        function_of(name),
        inputs_of(name, requires_grad=True),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@operator_cases
def test_second_derivatives_are_right_in_reverse_and_forward_over_reverse_mode(name: str) -> None:
    inputs = inputs_of(name, requires_grad=True, sizes=single_group(name))
    assert gradgradcheck(function_of(name), inputs, check_fwd_over_rev=True)


@operator_cases
def test_derivatives_are_right_when_one_input_alone_asks_for_them(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name, sizes=single_group(name))
    for position in range(len(inputs)):
        alone = [t.clone().requires_grad_(index == position) for index, t in enumerate(inputs)]
        assert gradcheck(function, alone, check_forward_ad=True)
        assert gradgradcheck(function, alone)


@operator_cases
def test_operators_pass_opcheck(name: str) -> None:
    function = function_of(name)
    for requires_grad in (False, True):
        calls = []
        with torch.no_grad(), RecordCalls(calls):
            function(*inputs_of(name))
        ((operator, arguments),) = calls
        fresh = [t.clone().requires_grad_(requires_grad) if isinstance(t, Tensor) else t for t in arguments]
        with warnings.catch_warnings():  # the operators themselves are not differentiable, and opcheck tries
            warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
            opcheck(operator, tuple(fresh))


class RecordCalls(TorchDispatchMode):
    """Notes the operators of this package that run inside it."""

    def __init__(self, calls: list) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator.namespace == "surm_kernels":
            self.calls.append((operator, arguments))
        return operator(*arguments, **(keywords or {}))


@operator_cases
def test_vmap_over_any_subset_of_inputs_is_a_loop(name: str) -> None:
    function, shapes = function_of(name), shapes_of(name)
    for subset in range(1, 2 ** len(shapes)):
        dims = tuple(
            (index + 1) % (len(shape) + 1) if subset >> index & 1 else None for index, shape in enumerate(shapes)
        )
        inputs = [
            torch.randn(shape if dim is None else (*shape[:dim], 5, *shape[dim:]), dtype=torch.float64)
            for dim, shape in zip(dims, shapes, strict=True)
        ]
        mapped = vmap(function, in_dims=dims)(*inputs)
        for index in range(5):
            one = function(*(t if d is None else t.select(d, index) for t, d in zip(inputs, dims, strict=True)))
            each = tuple(t[index] for t in mapped) if isinstance(mapped, tuple) else mapped[index]
            assert close(each, one)


@operator_cases
def test_nested_vmap_is_two_loops(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name)
    stacked = [torch.stack([torch.stack([t, 2 * t, 3 * t]), torch.stack([-t, t, t])]) for t in inputs]
    mapped = vmap(vmap(function))(*stacked)
    for i in range(2):
        for j in range(3):
            each = tuple(t[i, j] for t in mapped) if isinstance(mapped, tuple) else mapped[i, j]
            assert close(each, function(*(t[i, j] for t in stacked)))


@operator_cases
def test_vmap_of_grad_gives_the_gradient_of_each_sample(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name)

    def loss(*tensors: Tensor) -> Tensor:
        return flat(function(*tensors)).square().sum()

    positions = tuple(range(len(inputs)))
    stacked = [torch.stack([t, 2 * t, t.flip(0)]) for t in inputs]
    per_sample = vmap(grad(loss, argnums=positions))(*stacked)
    for index in range(3):
        assert close(tuple(t[index] for t in per_sample), grad(loss, argnums=positions)(*(t[index] for t in stacked)))


@operator_cases
def test_jacobians_of_both_modes_and_hessian_agree(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name)
    for position in range(len(inputs)):

        def of_one(t: Tensor, position: int = position) -> Tensor:
            return flat(function(*inputs[:position], t, *inputs[position + 1 :]))

        jacobian = jacrev(of_one)(inputs[position])
        assert close(jacobian, jacfwd(of_one)(inputs[position]))
        # The operator is linear in each input, so the Hessian of its squared norm is 2 J^T J.
        matrix = jacobian.flatten(1)
        second = hessian(lambda t: of_one(t).square().sum())(inputs[position])
        assert close(second.reshape(matrix.shape[1], -1), 2 * matrix.T @ matrix)


@operator_cases
def test_forward_mode_works_under_no_grad(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name)
    tangents = inputs_of(name)
    _, expected = jvp(function, inputs, tangents)
    with torch.no_grad(), forward_ad.dual_level():
        result = function(*map(forward_ad.make_dual, inputs, tangents))
        results = result if isinstance(result, tuple) else (result,)
        assert close(tuple(forward_ad.unpack_dual(t).tangent for t in results), flat(expected))


# Dynamo looks at no kind or reflection either, and of products without a base one is enough.
COMPILED = [
    *(name for name in OPERATORS if "circulant" not in name and not name.endswith("without base")),
    *("circulant grid", "toeplitz grid without base", "skew-circulant grid backward, transposed"),
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_once_for_all_sizes_without_graph_breaks_and_so_does_its_backward(name: str) -> None:
    assert_compiles(name, COMPILED_SIZES[primitive_of(name)], dynamic=True, gradients=True)


@pytest.mark.parametrize("name", ["hankel grid", "ldr, transposed", "diagonal"])
def test_compiles_for_all_sizes_where_one_input_alone_asks_for_a_gradient(name: str) -> None:
    for position in range(len(shapes_of(name)) - 1):  # a product has its base last, which is its own gradient
        torch._dynamo.reset()
        function = OPERATORS[name][0]
        compiled = torch.compile(partial(around, function), fullgraph=True, dynamic=True, backend="aot_eager")
        for sizes in COMPILED_SIZES[primitive_of(name)]:
            tensors = inputs_of(name, sizes=sizes)
            tensors[position].requires_grad_()
            got, wanted = (call(sizes, *tensors).square().sum() for call in (compiled, partial(around, function)))
            assert close(*(torch.autograd.grad(y, tensors[position])[0] for y in (got, wanted)))


@primitive_cases
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
def test_compiles_for_constant_sizes_without_graph_breaks(name: str, gradients: bool) -> None:
    assert_compiles(name, COMPILED_SIZES[name][:1], dynamic=False, gradients=gradients)


def assert_compiles(name: str, all_sizes: list[Any], dynamic: bool, gradients: bool) -> None:
    torch._dynamo.reset()
    function = OPERATORS[name][0]
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(partial(around, function), fullgraph=True, dynamic=dynamic, backend=counter)
    for sizes in all_sizes:
        tensors = inputs_of(name, gradients, sizes)
        got, wanted = compiled(sizes, *tensors), around(function, sizes, *tensors)
        assert close(got, wanted)
        if gradients:
            assert close(*(torch.autograd.grad(y.square().sum(), tensors) for y in (got, wanted)))
    assert counter.frame_count == 1


def around(function: Callable, sizes: Any, *tensors: Tensor) -> Tensor:
    """The operator between elementwise operations, as in a model."""
    return flat(function(sizes, *(t.sin() for t in tensors))).cos()


@pytest.mark.parametrize("name", ["hankel grid", "ldr"])
@pytest.mark.parametrize("transform", [vmap, lambda f: vmap(grad(lambda *t: flat(f(*t)).square().sum()))])
def test_transforms_take_a_compiled_function_but_are_not_compiled_themselves(name: str, transform: Callable) -> None:
    torch._dynamo.reset()
    function, stacked = function_of(name), [torch.stack([t, 2 * t]) for t in inputs_of(name)]
    wanted = transform(function)(*stacked)
    assert close(transform(torch.compile(function, backend="aot_eager"))(*stacked), wanted)
    # Dynamo would inline the operators and, with no derivative of theirs in sight, differentiate them to zero.
    assert close(torch.compile(transform(function), backend="aot_eager")(*stacked), wanted)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="torch.func transforms inside torch.compile"):
        torch.compile(transform(function), backend="aot_eager", fullgraph=True)(*stacked)


LAYER_CASES = {
    "circulant": lambda x, p, base: functional.circulant_linear(x, p, base=base, scale=0.5),
    "skew": lambda x, p, base: functional.skew_circulant_linear(x, p, base=base, scale=0.5),
    "blocks": lambda x, p, base: functional.block_circulant_linear(x, p.reshape(2, 2, -1), base=base, scale=0.5),
    "general f": lambda x, p, base: functional.krylov_linear(x, p, 0.3, base=base, scale=0.5),
    "toeplitz": lambda x, p, base: functional.toeplitz_linear(
        x, torch.nn.functional.pad(p, (len(p) - 1, 0)), base=base, scale=0.5
    ),
    "toeplitz-like": lambda x, p, base: functional.toeplitz_like_linear(
        x, p[None] / 4, p.flip(0)[None], base=base, scale=0.5
    ),
    "kronecker": lambda x, p, base: functional.kronecker_linear(
        x, p[:4].view(2, 2), torch.outer(p[: len(p) // 2], p[len(p) // 2 :]), base=base, scale=0.5
    ),
    "siva": lambda x, p, base: functional.siva_linear(
        x, torch.outer(base, p), p, torch.outer(p.flip(0), p), base=base, scale=0.5
    ),
    "dense": lambda x, p, base: x @ dense.circulant(p).T + base,
}


@pytest.mark.parametrize(("case", "autocast"), [*zip(LAYER_CASES, cycle((False, True)))])
def test_public_functions_compile_for_all_sizes_with_their_checks_inside(case: str, autocast: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def model(x: Tensor, p: Tensor, base: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return LAYER_CASES[case](x.sin(), 2 * p, base).float().relu()

    compilations = []
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for batch, tokens, n in ((2, 3, 16), (5, 7, 20)):
        tensors = [torch.randn(shape, requires_grad=True) for shape in ((batch, tokens, n), (n,), (n,))]
        tensors[1].data /= n**0.5 / 2
        if case == "blocks":
            tensors[1] = torch.randn(2 * n, requires_grad=True)
        got, wanted = compiled(*tensors), model(*tensors)
        assert torch.allclose(got, wanted, atol=1e-5)
        for a, b in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (got, wanted)), strict=True):
            assert torch.allclose(a, b, rtol=0.05 if autocast else 1e-4, atol=0.3 if autocast else 1e-4)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1, "other sizes must not compile again"


def test_inductor_compiles_a_layer_and_its_backward() -> None:
    torch._dynamo.reset()
    layer = nn.CirculantLinear(12, 8)
    x = torch.randn(5, 12, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x).relu().square(), fullgraph=True)
    wanted = layer(x).relu().square()
    assert torch.allclose(compiled(x), wanted, atol=1e-6)
    inputs = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (compiled(x), wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_same_tensor_in_every_place_gets_the_sum_of_its_gradients(compiled: bool) -> None:
    torch._dynamo.reset()

    cases = (
        (lambda p: functional.circulant_linear(p, p, base=p, scale=0.5), torch.randn(6)),
        (lambda g: grid_pullback(g, g, SKEW_CIRCULANT, 4, 4, 1.0), torch.randn(2, 3, 8)),
        (lambda g: grid_pullback(g, g, HANKEL, 4, 4, 1.0), torch.randn(2, 3, 8)),
        (lambda p: ldr(p, p, p, p, 5, 0.5, False, True), torch.randn(1, 3, 5)),
        (lambda p: ldr_backward(p, p, p, p, 0.5, False), torch.randn(1, 2, 4)),
        (lambda a: kronecker(torch.ones(1, 2, 4, dtype=a.dtype), a, a, None, 0.5, True), torch.randn(1, 2, 2)),
    )
    for function, t in cases:
        t = t.double().requires_grad_()
        called = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
        assert gradcheck(called, t)


@pytest.mark.parametrize("case", LAYER_CASES)
def test_autocast_computes_in_its_type_and_gives_gradients_in_the_tensors_types(case: str) -> None:
    x, base = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    p = torch.randn(16 if case == "blocks" else 8, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = LAYER_CASES[case](x, p, base) if case != "dense" else functional.circulant_linear(x, p, base=base)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert [t.grad.dtype for t in (x, p, base)] == [t.dtype for t in (x, p, base)]


def test_autocast_leaves_float64_alone() -> None:
    x, c = torch.randn(3, 8, dtype=torch.float64), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.circulant_linear(x, c).dtype == torch.float64


@pytest.mark.parametrize("case", LAYER_CASES)
def test_exports_with_a_dynamic_number_of_tokens(case: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, p: Tensor, base: Tensor) -> Tensor:
            return LAYER_CASES[case](x, p, base)

    p = torch.randn(16 if case == "blocks" else 8)
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(
        Model(), (torch.randn(3, 8), p, torch.randn(8)), dynamic_shapes=({0: tokens}, None, None)
    )
    x, base = torch.randn(9, 8), torch.randn(8)
    assert torch.allclose(program.module()(x, p, base), LAYER_CASES[case](x, p, base))


@operator_cases
def test_meta_tensors_have_the_shape_of_real_results(name: str) -> None:
    function, inputs = function_of(name), inputs_of(name)
    real, meta = function(*inputs), function(*(t.to("meta") for t in inputs))
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (real, meta)), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert b.is_meta


def test_layers_work_on_meta_tensors_and_under_functional_call() -> None:
    layer = nn.CirculantLinear(12, 8, device="meta")
    assert layer(torch.empty(2, 3, 12, device="meta")).shape == (2, 3, 8)
    real = nn.CirculantLinear(12, 8)
    parameters, x = dict(real.named_parameters()), torch.randn(5, 12)
    per_sample = vmap(grad(lambda p, x: functional_call(real, p, x).square().sum()), in_dims=(None, 0))(parameters, x)
    real(x).square().sum().backward()
    for name, parameter in real.named_parameters():
        assert torch.allclose(per_sample[name].sum(0), parameter.grad, atol=1e-5)


@pytest.mark.parametrize("name", [*PRIMITIVES, "circulant grid dense", "toeplitz grid dense adjoint"])
def test_backward_keeps_only_the_input_and_the_parameters_and_nothing_for_a_dense_matrix(name: str) -> None:
    inputs = inputs_of(name, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        function_of(name)(*inputs)
    kept = inputs[:-1] if name in PRIMITIVES else ()  # a product has its base last
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in kept]


@pytest.mark.parametrize(
    ("name", "operators"),
    {
        "circulant grid": ["grid_backward"],
        "circulant grid, transposed": ["grid_backward"],
        "hankel grid": ["grid_backward"],
        "hankel grid, transposed": ["grid_backward"],
        "ldr": ["ldr_backward"],
        "kronecker": ["kronecker_backward"],
        "ldr, transposed": ["ldr", "ldr_pullback_left", "ldr_pullback_right"],
    }.items(),
)
def test_a_training_step_takes_one_pass_backward_where_an_operator_gives_all_gradients(
    name: str, operators: list[str]
) -> None:
    y = function_of(name)(*inputs_of(name, requires_grad=True))
    calls = []
    with RecordCalls(calls):
        y.sum().backward()
    assert [operator.name().removeprefix("surm_kernels::") for operator, _ in calls] == operators


@primitive_cases
def test_frozen_inputs_cost_no_gradient(name: str) -> None:
    x, *parameters, base = inputs_of(name)
    for parameter in parameters:
        parameter.requires_grad_()
    y = function_of(name)(x, *parameters, base)
    calls = []
    with RecordCalls(calls):
        y.sum().backward()
    assert len(calls) == (1 if name == "diagonal" else len(parameters))  # u and v have plain products
    assert all("pullback" in operator.name() for operator, _ in calls)


@primitive_cases
def test_vmap_over_tokens_alone_neither_copies_the_parameters_nor_adds_problems(name: str) -> None:
    x, *parameters, base = inputs_of(name, sizes=single_group(name))
    calls = []
    with RecordCalls(calls):
        vmap(function_of(name), in_dims=(0, *(None for _ in parameters), None))(torch.stack([x] * 5), *parameters, base)
    ((_, (tokens, *others)),) = calls
    assert tokens.shape == (1, 5 * x.shape[1], x.shape[2])
    assert [t.data_ptr() for t in others[: len(parameters)]] == [t.data_ptr() for t in parameters]


def test_calls_that_need_no_derivative_record_none() -> None:
    x, c = torch.randn(4, 8), torch.randn(8, requires_grad=True)
    with torch.no_grad():
        assert not functional.circulant_linear(x, c).requires_grad
    with torch.inference_mode():
        assert functional.circulant_linear(x, c).is_inference()
    assert functional.circulant_linear(x, c).requires_grad
    assert not functional.circulant_linear(x, c.detach()).requires_grad


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    x, c = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    plain = torch.autograd.grad(functional.circulant_linear(x, c).sin().sum(), (x, c))
    y = checkpoint(functional.circulant_linear, x, c, use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(y.sin().sum(), (x, c)), strict=True):
        assert torch.equal(a, b)
