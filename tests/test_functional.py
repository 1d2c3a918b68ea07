"""The public functions: values against the reference, shapes, types, base and scale, and every refusal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.linalg
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import gradcheck

from surm_kernels import _matrices, dense, functional, reference
from surm_kernels.functional._product import Wide, product
from tests import oracle


class Case(NamedTuple):
    """A product with 12 features: its function, the shapes of its parameters, and its matrix by the oracle."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    matrix: Callable[..., Tensor]
    constants: tuple = ()  # the other arguments of the function
    columns: tuple = ()  # the other arguments of the matrix

    def parameters(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        draws = {"v": lambda *shape: 1.8 * torch.rand(shape) - 0.9, "u": lambda *shape: 2 + torch.rand(shape)}
        return [draws.get(name, torch.randn)(*shape).to(dtype) for name, shape in self.shapes.items()]

    def linear(self, x: Tensor, *parameters: Tensor, **options: Any) -> Tensor:
        return getattr(functional, f"{self.name}_linear")(x, *parameters, *self.constants, **options)

    def dense(self, *parameters: Tensor) -> Tensor:
        return getattr(dense, self.name)(*parameters, *self.constants, *self.columns)


GENERATORS = {"G": (2, 12), "H": (2, 12)}
CASES = {
    "circulant": Case("circulant", {"c": (12,)}, lambda c: oracle.f_circulant(c, 1)),
    "circulant blocks": Case("circulant", {"c": (3, 2, 6)}, lambda c: oracle.matrix(c, 1)),
    "skew-circulant": Case("skew_circulant", {"s": (12,)}, lambda s: oracle.f_circulant(s, -1)),
    "skew-circulant blocks": Case("skew_circulant", {"s": (2, 4, 3)}, lambda s: oracle.matrix(s, -1)),
    "block circulant": Case("block_circulant", {"c": (2, 3, 4)}, lambda c: oracle.matrix(c, 1)),
    "krylov": Case("krylov", {"v": (12,)}, lambda v: oracle.f_circulant(v, 0.3), (0.3,)),
    "toeplitz": Case("toeplitz", {"t": (18,)}, lambda t: oracle.toeplitz(t, 12), columns=(12,)),
    "toeplitz of one row": Case("toeplitz", {"t": (12,)}, lambda t: oracle.toeplitz(t, 12), columns=(12,)),
    "toeplitz blocks": Case("toeplitz", {"t": (2, 3, 8)}, lambda t: oracle.toeplitz(t, 4), columns=(4,)),
    "symmetric toeplitz": Case("symmetric_toeplitz", {"t": (12,)}, oracle.symmetric_toeplitz),
    "hankel": Case("hankel", {"h": (14,)}, lambda h: oracle.hankel(h, 12), columns=(12,)),
    "hankel blocks": Case("hankel", {"h": (3, 4, 7)}, lambda h: oracle.hankel(h, 3), columns=(3,)),
    "toeplitz-like": Case("toeplitz_like", GENERATORS, oracle.toeplitz_like),
    "hankel-like": Case("hankel_like", GENERATORS, oracle.hankel_like),
    "vandermonde": Case("vandermonde", {"v": (7,)}, lambda v: oracle.vandermonde(v, 12), columns=(12,)),
    "vandermonde-like": Case("vandermonde_like", {"v": (7,), "G": (2, 7), "H": (2, 12)}, oracle.vandermonde_like),
    "cauchy-like": Case("cauchy_like", {"v": (7,), "u": (12,), "G": (2, 7), "H": (2, 12)}, oracle.cauchy_like),
    "kronecker": Case("kronecker", {"A": (5, 3), "B": (2, 4)}, oracle.kronecker),
    "low rank": Case("low_rank", {"A": (2, 12), "B": (7, 2)}, oracle.low_rank),
    "siva": Case("siva", {"U": (7, 5), "s": (5,), "V": (12, 5)}, oracle.siva),
}
function_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
one_of_each_function = pytest.mark.parametrize(
    "case", {case.name: case for case in CASES.values()}.values(), ids=lambda case: case.name
)
ROUNDING_ONCE = {name: case for name, case in CASES.items() if name not in ("low rank", "siva")}
rounding_once = pytest.mark.parametrize("case", ROUNDING_ONCE.values(), ids=ROUNDING_ONCE)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@function_cases
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (3, 0, 2)], ids=str)
def test_products_keep_any_leading_shape(case: Case, leading: tuple[int, ...]) -> None:
    parameters, x = case.parameters(), torch.randn(*leading, 12)
    matrix = case.matrix(*parameters)
    size = (x.norm() * matrix.norm() / 12**0.5).item()
    oracle.assert_close(case.linear(x, *parameters), x.double() @ matrix.T, size=size)


@rounding_once
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_base_and_scale_are_part_of_the_product_and_rounded_once(case: Case, dtype: torch.dtype) -> None:
    parameters, x = case.parameters(dtype), torch.randn(40, 12).to(dtype)
    product = -1.5 * x.double() @ case.matrix(*parameters).T
    for base_shape in ((40, product.shape[-1]), (product.shape[-1],), (40, 1), (1,), ()):
        base = torch.randn(base_shape).to(dtype)
        y = case.linear(x, *parameters, base=base, scale=-1.5)
        assert y.dtype == dtype
        oracle.assert_close(y, base.double() + product)


@rounding_once
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_all_tensors_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    leaves = [t.requires_grad_() for t in (torch.randn(40, 12).to(dtype), *case.parameters(dtype))]
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact = -1.5 * exact_leaves[0] @ case.matrix(*exact_leaves[1:]).T
    # A gradient that leans towards the output, so that sums over the tokens do not cancel by chance.
    g = (torch.randn(exact.shape) + torch.nn.functional.normalize(exact.detach())).to(dtype)
    gradients = torch.autograd.grad(case.linear(*leaves, scale=-1.5), leaves, g)
    for got, wanted in zip(gradients, torch.autograd.grad(exact, exact_leaves, g.double()), strict=True):
        oracle.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_low_rank_products_round_twice(dtype: torch.dtype) -> None:
    x, A, B, base = (torch.randn(shape).to(dtype) for shape in ((40, 12), (2, 12), (7, 2), (7,)))
    exact = base.double() - 1.5 * x.double() @ oracle.low_rank(A, B).T
    found = oracle.error(functional.low_rank_linear(x, A, B, base=base, scale=-1.5), exact)
    assert found <= 2 * oracle.error(exact.to(dtype), exact)


@function_cases
def test_different_types_promote_as_in_torch(case: Case) -> None:
    for x_type in DTYPES:
        for type_of_parameters in DTYPES:
            x, parameters = torch.randn(3, 12).to(x_type), case.parameters(type_of_parameters)
            wanted = torch.promote_types(x_type, type_of_parameters)
            assert case.linear(x, *parameters).dtype == wanted
            base = torch.zeros((), dtype=torch.float64)
            assert case.linear(x, *parameters, base=base).dtype == torch.float64


@rounding_once
def test_autocast_computes_in_its_type_and_rounds_once(case: Case) -> None:
    x, *parameters = (t.bfloat16().float() for t in (torch.randn(40, 12), *case.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        y = case.linear(x, *parameters)
        same = case.linear(x.double(), *parameters)
    assert y.dtype == torch.bfloat16
    assert same.dtype == torch.float64
    exact = x.double() @ case.matrix(*parameters).T
    oracle.assert_close(y, exact)
    oracle.assert_close(same, exact)


@function_cases
def test_gradients_flow_to_the_tensors_in_their_own_shapes_and_types(case: Case) -> None:
    x = torch.randn(2, 3, 12, requires_grad=True)
    parameters = [p.requires_grad_() for p in case.parameters(torch.float64)]
    outputs = case.matrix(*(p.detach() for p in parameters)).shape[0]
    base = torch.randn(outputs, dtype=torch.bfloat16, requires_grad=True)
    case.linear(x, *parameters, base=base).square().sum().backward()
    for t in (x, *parameters, base):
        assert t.grad.shape == t.shape
        assert t.grad.dtype == t.dtype


@function_cases
def test_derivatives_of_all_tensors_together_are_right(case: Case) -> None:
    tensors = [t.requires_grad_() for t in (torch.randn(2, 12).double(), *case.parameters(torch.float64))]
    assert gradcheck(case.linear, tensors, check_forward_ad=True)


@one_of_each_function
def test_compiles_with_its_checks_inside(case: Case) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def model(x: Tensor, *parameters: Tensor) -> Tensor:
        return case.linear(x.sin(), *parameters, base=x[..., :1], scale=0.5).relu()

    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for tokens in (3, 5, 9):
        tensors = [t.requires_grad_() for t in (torch.randn(2, tokens, 12), *case.parameters())]
        got, wanted = compiled(*tensors), model(*tensors)
        assert torch.allclose(got, wanted, atol=1e-4)
        for a, b in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (got, wanted)), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2, "once for the first number of tokens and once for all others"


def test_inputs_are_left_as_they_were() -> None:
    x, c, base = torch.randn(3, 8), torch.randn(8), torch.randn(3, 8)
    copies = [t.clone() for t in (x, c, base)]
    y = functional.circulant_linear(x, c, base=base)
    y.zero_()
    assert all(map(torch.equal, (x, c, base), copies))


@pytest.mark.parametrize("f", [0, 0.0, 0.5, -0.5, 2, -3.7, 1, -1, 1.0, -1.0, 1e-3, 10])
@pytest.mark.parametrize("shape", [(1,), (12,), (97,), (2, 3, 5)], ids=str)
def test_krylov_takes_any_real_f(shape: tuple[int, ...], f: float) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        v = torch.randn(shape).to(dtype)
        matrix = oracle.f_circulant(v, f) if v.dim() == 1 else oracle.matrix(v, f)
        x, base = (torch.randn(7, size).to(dtype) for size in reversed(matrix.shape))
        y = functional.krylov_linear(x, v, f, base=base, scale=0.5)
        product = x.double() @ matrix.T
        size = (x.double().norm() * v.double().norm() * max(abs(f), 1)).item()
        oracle.assert_close(y, base.double() + 0.5 * product, size=size)
        oracle.assert_close(dense.krylov(v, f), matrix, size=max(abs(f), 1) * v.double().norm().item())
        oracle.assert_close(reference.krylov_linear(x, v, f), product, size=size)


def test_f_zero_is_lower_triangular_toeplitz_and_gradients_follow_f() -> None:
    v, x = (torch.randn(9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.allclose(dense.krylov(v, 0), torch.from_numpy(scipy.linalg.toeplitz(v.detach(), np.zeros(9))))
    for f in (0, 0.3, -2):
        assert torch.autograd.gradcheck(lambda x, v, f=f: functional.krylov_linear(x, v, f), (x, v))
        assert torch.autograd.gradcheck(lambda v, f=f: dense.krylov(v, f), v)


@function_cases
def test_reference_has_the_same_functions_with_the_same_answers(case: Case) -> None:
    x, parameters = torch.randn(5, 12), case.parameters()
    matrix = case.matrix(*parameters)
    base = torch.randn(matrix.shape[0])
    product = getattr(reference, f"{case.name}_linear")
    same = product(x, *parameters, *case.constants, base=base, scale=0.5)
    oracle.assert_close(same, base.double() + 0.5 * x.double() @ matrix.T)
    wide = product(x.bfloat16(), *parameters, *case.constants, base=base.double())
    assert wide.dtype == torch.float64
    oracle.assert_close(getattr(reference, case.name)(*parameters, *case.constants, *case.columns), matrix)


def test_toeplitz_and_hankel_products_are_those_of_scipy() -> None:
    column, row, x = np.random.default_rng(0).normal(size=(3, 9))
    row = row[:5]
    row[0] = column[0]
    t = torch.from_numpy(np.concatenate([row[:0:-1], column]))
    y = functional.toeplitz_linear(torch.from_numpy(x[:5]), t)
    assert np.allclose(y, scipy.linalg.matmul_toeplitz((column, row), x[:5]))
    row[0] = column[-1]
    h = torch.from_numpy(np.concatenate([column, row[1:]]))
    y = functional.hankel_linear(torch.from_numpy(x[:5]), h)
    assert np.allclose(y, scipy.linalg.hankel(column, row) @ x[:5])


@pytest.mark.parametrize(("name", "wide"), [("toeplitz_like", "nothing"), ("hankel_like", "everything")])
@pytest.mark.parametrize(("features", "outputs"), [(12, 12), (12, 5), (5, 12), (7, 9), (1, 1)])
def test_the_top_left_part_of_a_square_matrix_needs_no_padding(
    name: str, wide: Wide, features: int, outputs: int
) -> None:
    make = partial(getattr(_matrices, name), outputs=outputs, inputs=features)
    for dtype in DTYPES:
        G, H, x, base = (torch.randn(shape).to(dtype) for shape in ((3, 12), (3, 12), (4, features), (outputs,)))
        part = getattr(oracle, name)(G, H)[:outputs, :features]
        y = product(make, x, {"G": G, "H": H}, base, 0.5, wide)
        oracle.assert_close(y, base.double() + 0.5 * x.double() @ part.T)


X, C = torch.zeros(3, 12), torch.zeros(12)
LINEAR = functional.circulant_linear
REFUSALS = {
    "x is a list": (lambda: LINEAR([1.0], C), TypeError, ["x", "torch.Tensor", "list"]),
    "x is integer": (lambda: LINEAR(X.long(), C), TypeError, ["x", "float32", "int64"]),
    "x is complex": (lambda: LINEAR(X.cfloat(), C), TypeError, ["x", "float32", "complex64"]),
    "x is bool": (lambda: LINEAR(X.bool(), C), TypeError, ["x", "float32", "bool"]),
    "x is too narrow": (lambda: LINEAR(X[:, :7], C), ValueError, ["x", "(..., 12)", "(3, 7)", "c", "(12,)"]),
    "x has no dimension": (lambda: LINEAR(X[0, 0], C), ValueError, ["x", "(..., 12)", "()"]),
    "c is None": (lambda: LINEAR(X, None), TypeError, ["c", "torch.Tensor", "NoneType"]),
    "c is integer": (lambda: LINEAR(X, C.int()), TypeError, ["c", "int32"]),
    "c is a matrix": (lambda: LINEAR(X, X), ValueError, ["c", "(n,) or (M, K, b)", "(3, 12)"]),
    "c is a number": (lambda: LINEAR(X, C[0]), ValueError, ["c", "(n,) or (M, K, b)", "()"]),
    "c is empty": (lambda: LINEAR(X, C[:0]), ValueError, ["c", "(n,) or (M, K, b)", "(0,)"]),
    "s is a matrix": (
        lambda: functional.skew_circulant_linear(X, X),
        ValueError,
        ["s", "(n,) or (M, K, b)", "(3, 12)"],
    ),
    "the grid of c does not fit x": (
        lambda: LINEAR(X, torch.zeros(3, 2, 5)),
        ValueError,
        ["x", "(..., 10)", "(3, 12)", "c", "(3, 2, 5)"],
    ),
    "c is no grid": (lambda: functional.block_circulant_linear(X, C), ValueError, ["c", "(M, K, b)", "(12,)"]),
    "the grid does not fit x": (
        lambda: functional.block_circulant_linear(X, torch.zeros(3, 2, 5)),
        ValueError,
        ["x", "(..., 10)", "(3, 12)", "c", "(3, 2, 5)"],
    ),
    "the grid is empty": (
        lambda: functional.block_circulant_linear(X, torch.zeros(0, 2, 6)),
        ValueError,
        ["c", "(M, K, b)", "(0, 2, 6)"],
    ),
    "v has two dimensions": (
        lambda: functional.krylov_linear(X, X, 1.0),
        ValueError,
        ["v", "(n,) or (M, K, b)", "(3, 12)"],
    ),
    "f is text": (lambda: functional.krylov_linear(X, C, "1"), TypeError, ["f", "real number", "str"]),
    "f is complex": (lambda: functional.krylov_linear(X, C, 1j), TypeError, ["f", "real number", "complex"]),
    "f is a tensor": (lambda: functional.krylov_linear(X, C, C), TypeError, ["f", "real number", "Tensor"]),
    "f is infinite": (lambda: functional.krylov_linear(X, C, float("inf")), ValueError, ["f", "finite", "inf"]),
    "f is NaN": (lambda: functional.krylov_linear(X, C, float("nan")), ValueError, ["f", "finite", "nan"]),
    "scale is a tensor": (lambda: LINEAR(X, C, scale=C), TypeError, ["scale", "real number", "Tensor"]),
    "scale is None": (lambda: LINEAR(X, C, scale=None), TypeError, ["scale", "real number", "NoneType"]),
    "base is a number": (lambda: LINEAR(X, C, base=1.0), TypeError, ["base", "torch.Tensor", "float"]),
    "base is integer": (lambda: LINEAR(X, C, base=X.long()), TypeError, ["base", "int64"]),
    "base is too narrow": (lambda: LINEAR(X, C, base=X[:, :7]), ValueError, ["base", "(3, 12)", "(3, 7)"]),
    "base has too many tokens": (
        lambda: LINEAR(X, C, base=torch.zeros(5, 12)),
        ValueError,
        ["base", "(3, 12)", "(5, 12)"],
    ),
    "base has more dimensions": (lambda: LINEAR(X, C, base=X[None]), ValueError, ["base", "(3, 12)", "(1, 3, 12)"]),
    "c is elsewhere": (lambda: LINEAR(X, C.to("meta")), ValueError, ["c", "device", "cpu", "meta"]),
    "base is elsewhere": (lambda: LINEAR(X, C, base=X.to("meta")), ValueError, ["base", "device", "cpu", "meta"]),
    "x has no feature": (
        lambda: functional.toeplitz_linear(X[:, :0], C),
        ValueError,
        ["x", "(..., n)", "at least one", "(3, 0)"],
    ),
    "t is too short": (
        lambda: functional.toeplitz_linear(X, C[:7]),
        ValueError,
        ["t", "m + n - 1 >= 12", "n = 12", "(7,)"],
    ),
    "t has two dimensions": (
        lambda: functional.toeplitz_linear(X, X),
        ValueError,
        ["t", "(m + n - 1,) or (M, K, m + n - 1)", "(3, 12)"],
    ),
    "t is a list": (lambda: functional.toeplitz_linear(X, [1.0]), TypeError, ["t", "torch.Tensor", "list"]),
    "h is too short": (lambda: functional.hankel_linear(X, C[:7]), ValueError, ["h", "m + n - 1 >= 12", "(7,)"]),
    "block columns do not divide x": (
        lambda: functional.hankel_linear(X, torch.zeros(2, 5, 7)),
        ValueError,
        ["x", "(..., K n)", "K = 5", "h", "(2, 5, 7)", "(3, 12)"],
    ),
    "x does not fit symmetric t": (
        lambda: functional.symmetric_toeplitz_linear(X, C[:7]),
        ValueError,
        ["x", "(..., 7)", "(3, 12)", "t", "(7,)"],
    ),
    "symmetric t is a matrix": (
        lambda: functional.symmetric_toeplitz_linear(X, X),
        ValueError,
        ["t", "(n,)", "(3, 12)"],
    ),
    "G is a vector": (lambda: functional.toeplitz_like_linear(X, C, X), ValueError, ["G", "(r, n)", "(12,)"]),
    "H has another rank": (
        lambda: functional.hankel_like_linear(X, X, X[:2]),
        ValueError,
        ["H", "(r, n) like G", "(3, 12)", "(2, 12)"],
    ),
    "H is integer": (lambda: functional.toeplitz_like_linear(X, X, X.int()), TypeError, ["H", "int32"]),
    "x does not fit G and H": (
        lambda: functional.toeplitz_like_linear(X[:, :7], X, X),
        ValueError,
        ["x", "(..., 12)", "(3, 7)", "G of shape (3, 12) and H of shape (3, 12)"],
    ),
    "nodes are a matrix": (lambda: functional.vandermonde_linear(X, X), ValueError, ["v", "(m,)", "(3, 12)"]),
    "G does not fit v": (
        lambda: functional.vandermonde_like_linear(X, C, X[:, :7], X),
        ValueError,
        ["G", "(r, m) with m as in v", "(3, 12)", "(3, 7)"],
    ),
    "H does not fit G": (
        lambda: functional.vandermonde_like_linear(X, C, X, X[:2]),
        ValueError,
        ["H", "(r, n) with r as in G", "(3, 12)", "(2, 12)"],
    ),
    "H does not fit u": (
        lambda: functional.cauchy_like_linear(X, C, C[:5], X, X),
        ValueError,
        ["H", "(r, n) with r as in G and n as in u", "(3, 5)", "(3, 12)"],
    ),
    "nodes meet": (
        lambda: functional.cauchy_like_linear(X, C + 2, torch.arange(12.0), X, X),
        ValueError,
        ["v and u", "v[0] = u[2] = 2.0"],
    ),
    "A is a vector": (lambda: functional.kronecker_linear(X, C, X), ValueError, ["A", "(p, q)", "(12,)"]),
    "B is empty": (lambda: functional.kronecker_linear(X, X, X[:0]), ValueError, ["B", "(r, s)", "(0, 12)"]),
    "x does not fit A and B": (
        lambda: functional.kronecker_linear(X, X[:, :2], X[:, :3]),
        ValueError,
        ["x", "(..., 6)", "(3, 12)", "A of shape (3, 2) and B of shape (3, 3)"],
    ),
    "A and B differ in rank": (
        lambda: functional.low_rank_linear(X, X, X),
        ValueError,
        ["B", "(m, r) with r as in A", "(3, 3)", "(3, 12)"],
    ),
    "U is a vector": (lambda: functional.siva_linear(X, C, C, X.T), ValueError, ["U", "(m, k)", "(12,)"]),
    "s does not fit U": (
        lambda: functional.siva_linear(X, X, C[:7], X),
        ValueError,
        ["s", "(k,) with k as in U", "(12,)", "(7,)"],
    ),
    "the diagonal is a matrix": (lambda: functional.siva_linear(X, X, X, X), ValueError, ["s", "(k,)", "(3, 12)"]),
    "the diagonal is a list": (
        lambda: functional.siva_linear(X, X, [1.0], X),
        TypeError,
        ["s", "torch.Tensor", "list"],
    ),
    "V does not fit U": (
        lambda: functional.siva_linear(X, X, C, X.T),
        ValueError,
        ["V", "(n, k) with k as in U", "(12, 12)", "(12, 3)"],
    ),
    "V is integer": (lambda: functional.siva_linear(X, X, C, X.int()), TypeError, ["V", "int32"]),
    "no direction": (lambda: dense.siva(X[:, :0], C[:0], X[:, :0]), ValueError, ["U", "(m, k)", "(3, 0)"]),
    "x does not fit V": (
        lambda: functional.siva_linear(X, X, C, X),
        ValueError,
        ["x", "(..., 3)", "(3, 12)", "U of shape (3, 12) and s of shape (12,) and V of shape (3, 12)"],
    ),
    "H is elsewhere": (
        lambda: functional.toeplitz_like_linear(X, X, X.to("meta")),
        ValueError,
        ["H", "device of x", "cpu", "meta"],
    ),
    "dense of parameters apart": (
        lambda: dense.kronecker(X, X.to("meta")),
        ValueError,
        ["B", "device of A", "cpu", "meta"],
    ),
    "dense of too few diagonals": (lambda: dense.toeplitz(C, 13), ValueError, ["t", "n = 13", "(12,)"]),
    "dense of no column": (lambda: dense.hankel(C, 0), ValueError, ["n", "at least 1", "0"]),
    "dense of half a column": (lambda: dense.vandermonde(C, 1.5), TypeError, ["n", "int", "float"]),
    "dense of meeting nodes": (lambda: dense.cauchy_like(C, C, X, X), ValueError, ["v and u", "v[0] = u[0] = 0.0"]),
    "dense of a matrix": (lambda: dense.circulant(X), ValueError, ["c", "(n,) or (M, K, b)", "(3, 12)"]),
    "dense of integers": (lambda: dense.skew_circulant(C.int()), TypeError, ["s", "int32"]),
    "dense of no grid": (lambda: dense.block_circulant(C), ValueError, ["c", "(M, K, b)", "(12,)"]),
    "dense of infinite f": (lambda: dense.krylov(C, float("inf")), ValueError, ["f", "finite", "inf"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, words = REFUSALS[case]
    with pytest.raises(error) as refusal:
        call()
    assert type(refusal.value) is error
    message = str(refusal.value)
    assert message.startswith(words[0] + " "), message
    assert all(word in message for word in words), message


def test_numbers_that_are_no_floats_serve_as_scale_and_f() -> None:
    x, c = torch.randn(3, 8), torch.randn(8)
    wanted = functional.krylov_linear(x, c, 0.5, scale=2.0)
    for f, scale in ((np.float32(0.5), np.int64(2)), (np.float64(0.5), 2)):
        assert torch.equal(functional.krylov_linear(x, c, f, scale=scale), wanted)


def test_scale_zero_gives_zeros_or_the_base() -> None:
    x, c, base = torch.randn(3, 8), torch.randn(8), torch.randn(3, 8)
    assert torch.equal(functional.circulant_linear(x, c, scale=0), torch.zeros(3, 8))
    assert torch.equal(functional.circulant_linear(x, c, base=base, scale=0), base)


@function_cases
def test_one_number_is_a_matrix_too(case: Case) -> None:
    small = case._replace(shapes={name: (1,) * len(shape) for name, shape in case.shapes.items()})
    parameters = small.parameters()
    if small.columns:
        small = small._replace(matrix=lambda p: getattr(oracle, small.name)(p, 1), columns=(1,))
    matrix = small.matrix(*parameters)
    oracle.assert_close(small.linear(torch.tensor([2.0]), *parameters), 2 * matrix[0])
    oracle.assert_close(small.dense(*parameters), matrix)


def test_parameters_and_subclasses_of_tensor_are_tensors() -> None:
    class Marked(Tensor):
        pass

    x, c = torch.randn(3, 8), torch.randn(8)
    wanted = functional.circulant_linear(x, c)
    assert torch.equal(functional.circulant_linear(x, torch.nn.Parameter(c)), wanted)
    assert torch.equal(functional.circulant_linear(x.as_subclass(Marked), c).as_subclass(Tensor), wanted)


@pytest.mark.parametrize("dtype", oracle.SIXTEEN_BIT, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("needs_x", [False, True], ids=["x fixed", "x trained"])
def test_symmetric_diagonals_of_16_bits_get_a_gradient_that_is_rounded_once(needs_x: bool, dtype: torch.dtype) -> None:
    size = 192
    t = torch.randn(size).to(dtype).requires_grad_()
    x, g = (torch.randn(17, size).to(dtype) for _ in range(2))
    (got,) = torch.autograd.grad(functional.symmetric_toeplitz_linear(x.requires_grad_(needs_x), t), t, g)
    wide = t.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(x.detach().double() @ oracle.symmetric_toeplitz(wide).T, wide, g.double())
    oracle.assert_close(got, exact)
