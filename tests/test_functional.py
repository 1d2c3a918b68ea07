"""The public functions: values against the reference, shapes, types, base and scale, and every refusal."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from surm_kernels import dense, functional, reference
from tests import oracle

# name: (function, parameter's name, its shape at n = 12, the same matrix by the oracle)
FUNCTIONS = {
    "circulant": (functional.circulant_linear, "c", (12,), lambda c: oracle.f_circulant(c, 1)),
    "skew_circulant": (functional.skew_circulant_linear, "s", (12,), lambda s: oracle.f_circulant(s, -1)),
    "block_circulant": (functional.block_circulant_linear, "c", (2, 3, 4), lambda c: oracle.matrix(c, 1)),
    "krylov": (
        lambda x, v, **o: functional.krylov_linear(x, v, 0.3, **o),
        "v",
        (12,),
        lambda v: oracle.f_circulant(v, 0.3),
    ),
}
function_cases = pytest.mark.parametrize("name", FUNCTIONS)


@function_cases
@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (3, 0, 2)], ids=str)
def test_products_keep_any_leading_shape(name: str, leading: tuple[int, ...]) -> None:
    function, _, shape, matrix = FUNCTIONS[name]
    p, x = torch.randn(shape), torch.randn(*leading, 12)
    oracle.assert_close(function(x, p), x.double() @ matrix(p).T)


@function_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_base_and_scale_are_part_of_the_product_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    function, _, shape, matrix = FUNCTIONS[name]
    p, x = torch.randn(shape).to(dtype), torch.randn(40, 12).to(dtype)
    product = -1.5 * x.double() @ matrix(p).T
    for base_shape in ((40, product.shape[-1]), (product.shape[-1],), (40, 1), (1,), ()):
        base = torch.randn(base_shape).to(dtype)
        y = function(x, p, base=base, scale=-1.5)
        assert y.dtype == dtype
        oracle.assert_close(y, base.double() + product)


@function_cases
def test_different_types_promote_as_in_torch(name: str) -> None:
    function, _, shape, _ = FUNCTIONS[name]
    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for x_type in types:
        for p_type in types:
            x, p = torch.randn(3, 12).to(x_type), torch.randn(shape).to(p_type)
            wanted = torch.promote_types(x_type, p_type)
            assert function(x, p).dtype == wanted
            base = torch.zeros((), dtype=torch.float64)
            assert function(x, p, base=base).dtype == torch.float64


@function_cases
def test_gradients_flow_to_the_tensors_in_their_own_shapes_and_types(name: str) -> None:
    function, _, shape, matrix = FUNCTIONS[name]
    x = torch.randn(2, 3, 12, requires_grad=True)
    p = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    base = torch.randn(matrix(p.detach()).shape[0], dtype=torch.bfloat16, requires_grad=True)
    function(x, p, base=base).square().sum().backward()
    for t in (x, p, base):
        assert t.grad.shape == t.shape
        assert t.grad.dtype == t.dtype


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


def test_matrices_are_those_of_scipy_and_of_the_reference() -> None:
    c, blocks = torch.randn(7), torch.randn(2, 3, 5)
    circulant = torch.from_numpy(scipy.linalg.circulant(c))
    skew = torch.where(torch.ones(7, 7).tril().bool(), circulant, -circulant)
    assert torch.equal(dense.circulant(c), circulant)
    assert torch.equal(reference.circulant(c), circulant)
    assert torch.equal(dense.skew_circulant(c), skew)
    assert torch.equal(reference.skew_circulant(c), skew)
    grid = torch.cat([torch.cat([torch.from_numpy(scipy.linalg.circulant(b)) for b in row], 1) for row in blocks])
    assert torch.equal(dense.block_circulant(blocks), grid)
    assert torch.equal(reference.block_circulant(blocks), grid)


@function_cases
def test_reference_has_the_same_functions_with_the_same_answers(name: str) -> None:
    function, _, shape, matrix = FUNCTIONS[name]
    x, p = torch.randn(5, 12), torch.randn(shape)
    base = torch.randn(matrix(p).shape[0])
    extra = {"f": 0.3} if name == "krylov" else {}
    same = getattr(reference, f"{name}_linear")(x, p, **extra, base=base, scale=0.5)
    assert torch.allclose(function(x, p, base=base, scale=0.5), same, atol=1e-5)
    oracle.assert_close(getattr(reference, name)(p, **extra), matrix(p))


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
    "c is a matrix": (lambda: LINEAR(X, X), ValueError, ["c", "(n,)", "(3, 12)"]),
    "c is a number": (lambda: LINEAR(X, C[0]), ValueError, ["c", "(n,)", "()"]),
    "c is empty": (lambda: LINEAR(X, C[:0]), ValueError, ["c", "(n,)", "(0,)"]),
    "s is a matrix": (lambda: functional.skew_circulant_linear(X, X), ValueError, ["s", "(n,)", "(3, 12)"]),
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
    "dense of a matrix": (lambda: dense.circulant(X), ValueError, ["c", "(n,)", "(3, 12)"]),
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
def test_one_number_is_a_matrix_too(name: str) -> None:
    function, _, shape, _ = FUNCTIONS[name]
    p = torch.full((1,) * len(shape), 3.0)
    assert torch.equal(function(torch.tensor([2.0]), p), torch.tensor([6.0]))


def test_parameters_and_subclasses_of_tensor_are_tensors() -> None:
    class Marked(Tensor):
        pass

    x, c = torch.randn(3, 8), torch.randn(8)
    wanted = functional.circulant_linear(x, c)
    assert torch.equal(functional.circulant_linear(x, torch.nn.Parameter(c)), wanted)
    assert torch.equal(functional.circulant_linear(x.as_subclass(Marked), c).as_subclass(Tensor), wanted)
