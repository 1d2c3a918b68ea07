"""The dense matrices: those of scipy and numpy, their displacement ranks, their derivatives, in every type."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from surm_kernels import convert, dense, functional, reference
from tests import oracle
from tests.test_functional import CASES, DTYPES, Case, function_cases, one_of_each_function


@function_cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matrices_are_those_of_the_formula_in_the_type_of_the_parameters(case: Case, dtype: torch.dtype) -> None:
    parameters = case.parameters(dtype)
    matrix = case.dense(*parameters)
    assert matrix.dtype == dtype
    oracle.assert_close(matrix, case.matrix(*parameters))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.dense(*parameters), matrix)


@function_cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_parameters_are_rounded_once(case: Case, dtype: torch.dtype) -> None:
    leaves = [p.requires_grad_() for p in case.parameters(dtype)]
    exact_leaves = [p.detach().double().requires_grad_() for p in leaves]
    exact = case.matrix(*exact_leaves)
    w = (torch.randn(exact.shape) + exact.detach().sign()).to(dtype)
    gradients = torch.autograd.grad(case.dense(*leaves), leaves, w)
    for got, wanted in zip(gradients, torch.autograd.grad(exact, exact_leaves, w.double()), strict=True):
        oracle.assert_close(got, wanted)


@function_cases
def test_matrices_are_twice_differentiable(case: Case) -> None:
    parameters = [p.requires_grad_() for p in case.parameters(torch.float64)]
    assert gradcheck(case.dense, parameters, check_forward_ad=True)
    assert gradgradcheck(case.dense, parameters)


@function_cases
def test_products_are_those_with_the_dense_matrix(case: Case) -> None:
    x, parameters = torch.randn(5, 12, dtype=torch.float64), case.parameters(torch.float64)
    assert torch.allclose(case.linear(x, *parameters), x @ case.dense(*parameters).T)


@function_cases
def test_parameters_of_different_types_promote(case: Case) -> None:
    first, *others = case.parameters(torch.float64)
    others = [p.bfloat16() for p in others]
    matrix = case.dense(first, *others)
    assert matrix.dtype == torch.float64
    oracle.assert_close(matrix, case.matrix(first, *others))


@one_of_each_function
def test_matrices_compile(case: Case) -> None:
    torch._dynamo.reset()
    parameters = [p.requires_grad_() for p in case.parameters()]
    wanted = case.dense(*parameters)
    compiled = torch.compile(case.dense, fullgraph=True, dynamic=True, backend="aot_eager")(*parameters)
    assert torch.allclose(compiled, wanted, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(w.sin().sum(), parameters) for w in (compiled, wanted)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@function_cases
def test_matrices_map_over_parameters(case: Case) -> None:
    parameters = case.parameters()
    mapped = torch.vmap(case.dense)(*(torch.stack([p, p]) for p in parameters))
    assert torch.allclose(mapped, case.dense(*parameters).expand_as(mapped), atol=1e-5)


def test_krylov_matrices_are_those_of_scipy_and_of_the_reference() -> None:
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
    assert torch.equal(dense.circulant(blocks), grid)
    assert torch.equal(dense.skew_circulant(blocks), reference.krylov(blocks, -1))


@pytest.mark.parametrize("module", [dense, reference], ids=["dense", "reference"])
@pytest.mark.parametrize(("m", "n"), [(7, 7), (9, 4), (4, 9), (1, 6), (6, 1), (1, 1)])
def test_toeplitz_and_hankel_matrices_are_those_of_scipy(module, m: int, n: int) -> None:
    p, symmetric = torch.randn(m + n - 1), torch.randn(n)
    toeplitz = torch.from_numpy(scipy.linalg.toeplitz(p[n - 1 :], p[:n].flip(0)))
    assert torch.equal(module.toeplitz(p, n), toeplitz)
    assert torch.equal(module.hankel(p, n), torch.from_numpy(scipy.linalg.hankel(p[:m], p[m - 1 :])))
    assert torch.equal(module.symmetric_toeplitz(symmetric), torch.from_numpy(scipy.linalg.toeplitz(symmetric)))
    grid = torch.stack([torch.stack([p, 2 * p, -p]), torch.stack([p.flip(0), p, p])])
    rows = [torch.cat([module.toeplitz(block, n) for block in row], 1) for row in grid]
    assert torch.equal(module.toeplitz(grid, n), torch.cat(rows))


@pytest.mark.parametrize("module", [dense, reference], ids=["dense", "reference"])
def test_kronecker_and_vandermonde_matrices_are_those_of_numpy(module) -> None:
    A, B, v = torch.randn(3, 4), torch.randn(5, 2), torch.rand(6, dtype=torch.float64)
    assert torch.equal(module.kronecker(A, B), torch.from_numpy(np.kron(A, B)))
    oracle.assert_close(module.vandermonde(v, 9), torch.from_numpy(np.vander(v, 9, increasing=True)))
    oracle.assert_close(module.vandermonde(v, 1), torch.ones(6, 1, dtype=torch.float64))


SIZE, RANK = 12, 3


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def shift(f: float, size: int = SIZE) -> Tensor:
    """Z_f: ones on the subdiagonal, f in the top right corner."""
    return oracle.f_circulant(torch.eye(size)[1], f)


def sylvester(left: Tensor, right: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda W: left @ W - W @ right


CYCLIC = sylvester(shift(1), shift(-1))
REFLECTED = sylvester(shift(1), shift(0).T)
GENERATOR = torch.Generator().manual_seed(0)
v, u = torch.linspace(-0.9, 0.95, 9, dtype=torch.float64), torch.linspace(1.5, 3, SIZE, dtype=torch.float64)
G, H, G9 = (torch.randn(RANK, n, dtype=torch.float64, generator=GENERATOR) for n in (SIZE, SIZE, 9))

# name: (matrix, displacement operator, rank of the displacement)
DISPLACEMENTS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Tensor], int]] = {
    "circulant": (lambda: dense.circulant(random(SIZE)), CYCLIC, 1),
    "circulant, the same shift": (lambda: dense.circulant(random(SIZE)), sylvester(shift(1), shift(1)), 0),
    "skew-circulant": (lambda: dense.skew_circulant(random(SIZE)), CYCLIC, 1),
    "toeplitz": (lambda: dense.toeplitz(random(2 * SIZE - 1), SIZE), CYCLIC, 2),
    "toeplitz, 9 rows": (
        lambda: dense.toeplitz(random(SIZE + 8), SIZE),
        lambda W: shift(1, 9) @ W - W @ shift(-1),
        2,
    ),
    "symmetric toeplitz": (lambda: dense.symmetric_toeplitz(random(SIZE)), CYCLIC, 2),
    "two symmetric toeplitz": (
        lambda: dense.symmetric_toeplitz(random(SIZE)) @ dense.symmetric_toeplitz(random(SIZE)),
        CYCLIC,
        4,
    ),
    "hankel": (lambda: dense.hankel(random(2 * SIZE - 1), SIZE), REFLECTED, 2),
    "toeplitz-like": (lambda: dense.toeplitz_like(G, H), CYCLIC, RANK),
    "hankel-like": (lambda: dense.hankel_like(G, H), REFLECTED, RANK),
    "vandermonde, Stein": (lambda: dense.vandermonde(v, SIZE), lambda W: W - v[:, None] * W @ shift(0).T, 1),
    "vandermonde-like, Stein": (
        lambda: dense.vandermonde_like(v, G9, H),
        lambda W: W - v[:, None] * W @ shift(0).T,
        RANK,
    ),
    "vandermonde-like, Sylvester": (
        lambda: dense.vandermonde_like(v, G9, H),
        lambda W: v[:, None] * W - W @ shift(0),
        RANK + 1,
    ),
    "cauchy-like": (lambda: dense.cauchy_like(v, u, G9, H), lambda W: v[:, None] * W - W * u, RANK),
    "low rank": (lambda: dense.low_rank(H, G9.T), lambda W: W, RANK),
    "kronecker, rearranged": (
        lambda: dense.kronecker(random(3, 4), random(5, 2)),
        lambda W: W.reshape(3, 5, 4, 2).transpose(1, 2).reshape(12, 10),
        1,
    ),
}


@pytest.mark.parametrize("name", DISPLACEMENTS)
def test_structured_matrices_have_their_displacement_rank(name: str) -> None:
    matrix, displacement, rank = DISPLACEMENTS[name]
    W = matrix()
    values = torch.linalg.svdvals(displacement(W))
    threshold = 1e-12 * torch.linalg.svdvals(W)[0]
    assert int((values > threshold).sum()) == rank


def test_displacements_are_the_products_of_the_generators() -> None:
    W = dense.toeplitz_like(*convert.toeplitz_like_from_displacement(G, H))
    assert torch.allclose(CYCLIC(W), G.T @ H)
    assert torch.allclose(REFLECTED(dense.hankel_like(G, H)), G.T @ H)
    W = dense.vandermonde_like(v, G9, H)
    assert torch.allclose(W - v[:, None] * W @ shift(0).T, G9.T @ H)
    W = dense.cauchy_like(v, u, G9, H)
    assert torch.allclose(v[:, None] * W - W * u, G9.T @ H)


def test_every_product_has_its_matrix_and_its_reference() -> None:
    names = {case.name for case in CASES.values()}
    products = {name.removesuffix("_linear") for name in functional.__all__ if name.endswith("_linear")}
    assert products == names
    assert set(reference.__all__) == names | {f"{name}_linear" for name in names}
    assert all(hasattr(dense, name) for name in names)
