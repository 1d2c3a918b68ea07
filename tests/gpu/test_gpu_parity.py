"""The kernels on a GPU against the float64 matrix, in every size, type and layout that hurts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor

from surm_kernels import functional
from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.ops.grid import grid, grid_backward
from surm_kernels.structures import Structure
from tests import adapted, oracle, updates
from tests import test_grid as parity
from tests.gpu import DEVICE, MISSING, moved
from tests.grids import DTYPES, Grid, grid_of, grids_in_turns
from tests.tensor_cores import DRAWS, FILLING, KINDS, TWISTED, Draw, assert_contract, drawn
from tests.tensor_cores import DTYPES as TENSOR_DTYPES
from tests.test_grid import SCALE
from tests.test_ldr import exact_results
from tests.test_structure_gradients import WITH_TYPE, assert_gradients, exact_gradients, joined, tokens_of
from tests.turns import cases, in_turns

if MISSING:
    pytest.skip(f"{MISSING}; benchmarks/gpu.sh runs these tests where there is a GPU", allow_module_level=True)

REHEARSED = DEVICE.type == "cpu"
SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024, 1536, 3072, 4096)
BEYOND_SHARED_MEMORY = 40000
LARGE = [(size, size) for size in (4608, 8192, 11008, 13824, 14336, 16384, BEYOND_SHARED_MEMORY)]
# Rows, columns, blocks of a column and blocks of a row.
BLOCKS = ((5, 5, 2, 3), (64, 64, 3, 2), (128, 128, 6, 6), (97, 97, 1, 4), (63, 63, 4, 1), (384, 384, 2, 2))
RECTANGLES = ((5, 3), (1, 97), (97, 1), (15, 16), (64, 192), (97, 1000), (1024, 12), (768, 3072), (3072, 768))
WRAPPING, RECTANGULAR = (CIRCULANT, SKEW_CIRCULANT), (TOEPLITZ, HANKEL)
SOME_SIZES = (12, 97, 768, 1000, 4096)
TOKENS = (0, 1, 17, 130)

dtypes = pytest.mark.parametrize("dtype", updates.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
wide_or_half = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transforms on tensor cores have tests of their own, which take this back."""
    monkeypatch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")


@contextmanager
def tensors_on_the_device() -> Iterator[None]:
    """New tensors are made on the device, as helpers of the other tests make them."""
    with DEVICE:
        yield


def training_step(product: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = product(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def siva(U: Tensor, V: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return functional.siva_linear(x, U, s, V, scale=SCALE)


def siva_formula(U: Tensor, V: Tensor, x: Tensor, s: Tensor) -> Tensor:
    return SCALE * ((x @ V) * s) @ U.T


@pytest.mark.parametrize(("structure", "dtype"), WITH_TYPE)
def test_every_structure_has_the_product_of_its_matrix(structure: Structure, dtype: torch.dtype) -> None:
    parameters = updates.parameters_of(structure, dtype)
    base, x = tokens_of(structure, dtype, 130)
    exact = base.double() + SCALE * x.double() @ updates.matrix(structure, parameters, dtype).T
    got = structure.linear(*moved(x, *parameters), base=base.to(DEVICE), scale=SCALE)
    assert got.dtype == dtype and got.device.type == DEVICE.type
    updates.assert_close(got.cpu(), exact, updates.rounding_factor(structure))


@pytest.mark.parametrize(("structure", "dtype"), WITH_TYPE)
def test_every_structure_has_the_gradients_of_its_matrix(structure: Structure, dtype: torch.dtype) -> None:
    results, exact = [], []
    for _ in range(updates.draws(structure) if dtype in oracle.SIXTEEN_BIT else 1):
        parameters = updates.parameters_of(structure, dtype)
        g, x = tokens_of(structure, dtype, 130)
        gradients = structure.gradients(*moved(g, x, *parameters), scale=SCALE)
        results.append([None if gradient is None else gradient.cpu() for gradient in gradients])
        exact.append(exact_gradients(structure, g, x, parameters, SCALE))
    assert_gradients(structure, joined(results), joined(exact))


@pytest.mark.parametrize(("structure", "dtype"), WITH_TYPE)
def test_every_structure_merges_with_a_weight_and_rounds_once(structure: Structure, dtype: torch.dtype) -> None:
    parameters = updates.parameters_of(structure, dtype)
    weight = torch.randn(structure.out_features, structure.in_features, dtype=torch.float64).to(dtype)
    exact = weight.double() + SCALE * updates.matrix(structure, parameters, dtype)
    merged = structure.merge(*moved(weight, *parameters), scale=SCALE)
    assert merged.dtype == dtype
    oracle.assert_close(merged.cpu(), exact)


@cases("w, dtype", grids_in_turns([(size, size) for size in SIZES if size <= 1024 or not REHEARSED], DTYPES))
def test_grids_of_one_block_of_every_size_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        parity.assert_matches_dense(w, dtype, 1, TOKENS)


@cases("w, dtype", [(grid_of(kind, *shape), dtype) for shape, dtype, kind in in_turns(RECTANGLES, DTYPES, RECTANGULAR)])
def test_grids_of_one_rectangle_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        parity.assert_matches_dense(w, dtype, 1, (0, 1, 33))


@cases("w, dtype", grids_in_turns(BLOCKS, DTYPES))
def test_grids_of_blocks_and_groups_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        parity.assert_matches_dense(w, dtype, 2, (33,))


@cases("w, dtype", [(grid_of(kind, *shape), dtype) for shape, dtype, kind in in_turns(LARGE, DTYPES, WRAPPING)])
def test_grids_of_a_large_block_match_sampled_rows(w: Grid, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        parity.test_large_matrices_match_sampled_rows(w, dtype)


@pytest.mark.parametrize("reflected", [False, True], ids=["toeplitz-like", "reflected"])
@dtypes
@pytest.mark.parametrize(("size", "rank"), [(1, 1), (5, 2), (64, 4), (97, 5), (768, 2), (1000, 1), (1024, 4)])
def test_low_displacement_rank_matches_the_dense_matrix(
    size: int, rank: int, dtype: torch.dtype, reflected: bool
) -> None:
    left, right = (torch.randn(rank, size).to(dtype) for _ in range(2))
    g, x = (torch.randn(33, size).to(dtype) for _ in range(2))
    exact = exact_results(g, x, left, right, reflected)
    got = torch.ops.surm_kernels.ldr(*moved(x[None], left[None], right[None]), None, size, 1.0, False, reflected)
    oracle.assert_close(got[0].cpu(), exact[0], "y", x.double().norm().item() * size**0.5)
    gradients = torch.ops.surm_kernels.ldr_backward(*moved(g[None], x[None], left[None], right[None]), 1.0, reflected)
    for name, gradient, wanted in zip(("x", "left", "right"), gradients, exact[1:], strict=True):
        oracle.assert_close(gradient[0].cpu(), wanted, f"gradient of {name}", wanted.norm().item())


@wide_or_half
@pytest.mark.parametrize("sizes", [(97, 63, 40), (768, 768, 404), (64, 1000, 33), (3072, 768, 384)], ids=str)
def test_siva_of_many_sizes_matches_its_formula(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = sizes
    draws = 1 if dtype == torch.float32 else -(-4096 // k)  # several roundings add as on average over many numbers
    got, exact = [], []
    with tensors_on_the_device():
        for _ in range(draws):
            U, V = (torch.randn(rows, k).to(dtype) / rows**0.5 for rows in (m, n))
            g, x, s = torch.randn(130, m).to(dtype), torch.randn(130, n).to(dtype), torch.randn(k).to(dtype)
            formula = partial(siva_formula, U.double(), V.double())
            got.append(training_step(partial(siva, U, V), g, x, s))
            exact.append(training_step(formula, g.double(), x.double(), s.double()))
    for name, result, wanted in zip(("y", "gradient of x", "gradient of s"), joined(got), joined(exact), strict=True):
        updates.assert_close(result, wanted, 1.8, name)


@wide_or_half
@pytest.mark.parametrize("factors", [((2, 3), (5, 4)), ((32, 24), (24, 32)), ((7, 64), (128, 9))], ids=str)
def test_kronecker_of_many_sizes_matches_the_dense_matrix(
    factors: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype
) -> None:
    with tensors_on_the_device():
        A, B = (torch.randn(shape).to(dtype) for shape in factors)
        W = oracle.kronecker(A, B)
        g, x = torch.randn(130, W.shape[0]).to(dtype), torch.randn(130, W.shape[1]).to(dtype)
        got = training_step(functional.kronecker_linear, g, x, A, B)
        exact = training_step(
            lambda x, A, B: x @ oracle.kronecker(A, B).T, *(tensor.double() for tensor in (g, x, A, B))
        )
        for name, result, wanted in zip(("y", "x", "A", "B"), got, exact, strict=True):
            oracle.assert_close(result, wanted, name)


@wide_or_half
@pytest.mark.parametrize("size", [64, 97, 1024])
def test_a_bank_applies_to_every_token_its_own_adapter(size: int, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        c, x = torch.randn(5, size).to(dtype), torch.randn(3, 40, size).to(dtype)
        index = torch.randint(5, (3, 40))
        matrices = torch.stack([oracle.f_circulant(column, 1) for column in c])
        exact = torch.einsum("abij,abj->abi", matrices[index], x.double())
        oracle.assert_close(functional.circulant_linear(x, c, index=index), exact)
        U, V, s = torch.randn(size, 40).to(dtype), torch.randn(size, 40).to(dtype), torch.randn(5, 40).to(dtype)
        exact = ((x.double() @ V.double()) * s[index].double()) @ U.double().T
        updates.assert_close(functional.siva_linear(x, U, s, V, index=index), exact, 1.8)


@wide_or_half
@adapted.strategies
@adapted.squares
def test_adapted_layers_train_and_infer_as_their_formula(
    structure: Structure, strategy: str, dtype: torch.dtype
) -> None:
    got, exact = [], []
    for _ in range(updates.draws(structure) if dtype == torch.bfloat16 else 1):
        layer = adapted.make(structure, strategy, dtype)
        x, g = adapted.tokens_of(layer, 50, dtype=dtype)
        exact.append(adapted.exact_step(layer, x, g))
        layer = layer.to(DEVICE)
        x, g = moved(x, g)
        got.append([result.cpu() for result in adapted.step(layer, layer, x, g)])
        with torch.no_grad():  # what was kept of the parameters serves the second
            assert torch.equal(layer(x), layer(x))
    adapted.assert_step(layer, joined(got), joined(exact))


@wide_or_half
@pytest.mark.parametrize("size", SOME_SIZES)
def test_rows_are_as_exact_as_their_own_size_allows(size: int, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        v = torch.randn(1, 1, 1, size).to(dtype)
        scales = torch.logspace(-4, 4, 9, dtype=torch.float64)[torch.randperm(9)]
        x = (torch.randn(9, size, dtype=torch.float64) * scales[:, None]).to(dtype)
        y = grid(x[None], v, None, CIRCULANT, size, 1.0, False)[0]
        exact = x.double() @ oracle.matrix(v[0], 1).T
        if dtype == torch.float32:
            oracle.assert_rows_close(y, exact)
        for row, wanted in zip(y, exact, strict=True):
            updates.assert_close(row, wanted, 1.5)  # one row of few numbers


@dtypes
@pytest.mark.parametrize("size", SOME_SIZES)
def test_what_is_not_finite_stays_in_its_row_and_zeros_stay_zeros(size: int, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        c, x = torch.randn(size).to(dtype), torch.randn(19, size).to(dtype)
        clean = functional.circulant_linear(x, c)
        x[3], x[7, -1], x[8] = 0, torch.nan, torch.inf
        y = functional.circulant_linear(x, c)
        assert y[[7, 8]].isnan().all()
        assert (y[3] == 0).all()
        others = [row for row in range(19) if row not in (3, 7, 8)]
        assert y[others].isfinite().all()
        limit = 4 * torch.finfo(dtype).eps  # a neighbour in the same pair may change the last digits
        assert oracle.error(y[others], clean[others].double()) <= max(limit, 1e-15)
        gradient = training_step(functional.circulant_linear, x, x, c)[2]
        assert gradient.isnan().all()


@wide_or_half
@pytest.mark.parametrize("size", SOME_SIZES)
def test_strided_unaligned_and_expanded_tokens_have_the_same_results(size: int, dtype: torch.dtype) -> None:
    with tensors_on_the_device():
        c, g = torch.randn(size).to(dtype), torch.randn(6, size).to(dtype)
        x = torch.randn(6, size).to(dtype)
        exact = training_step(lambda x, c: x @ oracle.f_circulant(c, 1).T, g.double(), x.double(), c.double())
        apart = torch.empty(6, 3 * size + 1, dtype=dtype)[:, 1 : size + 1].copy_(x)
        scattered = torch.empty(6, size, 2, dtype=dtype)[..., 1].copy_(x)
        for layout in (x, apart, scattered):
            y = functional.circulant_linear(layout, c)
            oracle.assert_close(y, exact[0])
            gradient = grid_backward(g[None], layout[None], c[None, None, None], CIRCULANT, size, 1.0, False)[1]
            oracle.assert_close(gradient.flatten(), exact[2], size=exact[2].norm().item())
        expanded = functional.circulant_linear(x[:1].expand(6, size), c)
        oracle.assert_close(expanded, exact[0][:1].expand(6, size))


@pytest.mark.parametrize("structure", adapted.SMALL.values(), ids=adapted.SMALL.keys())
def test_derivatives_pass_gradcheck_and_its_second_order(structure: Structure) -> None:
    tensors = moved(*updates.parameters_of(structure), torch.randn(3, structure.in_features, dtype=torch.float64))
    tensors = [tensor.requires_grad_() for tensor in tensors]

    def product(*tensors: Tensor) -> Tensor:
        return structure.linear(tensors[-1], *tensors[:-1], scale=SCALE)

    assert torch.autograd.gradcheck(product, tensors)
    assert torch.autograd.gradgradcheck(product, tensors)


@wide_or_half
@adapted.squares
def test_results_are_bitwise_the_same_every_time(structure: Structure, dtype: torch.dtype) -> None:
    g, x = moved(*tokens_of(structure, dtype, 1000))
    parameters = moved(*updates.parameters_of(structure, dtype))
    first = [structure.linear(x, *parameters), *structure.gradients(g, x, *parameters)]
    for _ in range(3):
        again = [structure.linear(x, *parameters), *structure.gradients(g, x, *parameters)]
        for a, b in zip(first, again, strict=True):
            assert a is b is None or torch.equal(a, b)


COMPILED = ("circulant", "toeplitz", "toeplitz-like", "kronecker", "siva", "vandermonde")


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_training_step_is_the_eager_one(name: str) -> None:
    structure = updates.SQUARES[name]
    g, x = moved(*tokens_of(structure, torch.float32, 17))
    parameters = moved(*updates.parameters_of(structure, torch.float32))
    compiled = torch.compile(structure.linear, fullgraph=True)
    eager = training_step(structure.linear, g, x, *parameters)
    for a, b in zip(training_step(compiled, g, x, *parameters), eager, strict=True):
        assert oracle.error(a, b.double()) <= oracle.FLOAT32_TOLERANCE


TENSOR_BLOCKS = (
    *((*block, dtype) for block in FILLING for dtype in TENSOR_DTYPES),
    *((*block, torch.bfloat16) for block in TWISTED),
)


@cases("size, of_block, dtype, kind", [(*block, list(KINDS)[turn % 3]) for turn, block in enumerate(TENSOR_BLOCKS)])
def test_transforms_on_tensor_cores_keep_their_contract(
    size: int, of_block: int, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SURM_KERNELS_GPU_PRECISION")
    draws = [drawn(size, 3 if REHEARSED else 129, kind, of_block, dtype) for _ in range(DRAWS)]

    def results(draw: Draw) -> list[Tensor]:
        c, x, g = moved(draw.c[None, None, None], draw.x, draw.g)
        y, gradients = grid(x, c, None, of_block, size, 1.0, False), grid_backward(g, x, c, of_block, size, 1.0, False)
        return [each.cpu() for each in (y, *gradients)]

    found = [results(draw) for draw in draws]
    assert_contract([(y, draw.y()) for (y, _, _), draw in zip(found, draws, strict=True)])
    assert_contract([(got, draw.x_gradient()) for (_, got, _), draw in zip(found, draws, strict=True)])
    assert_contract([(got[0, 0, 0], draw.c_gradient()) for (_, _, got), draw in zip(found, draws, strict=True)])
