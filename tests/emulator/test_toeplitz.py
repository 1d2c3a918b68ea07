"""The CUDA kernels of the toeplitz operators under the emulator: the tests of the operators, at sizes of their own."""

import pytest
import torch

from tests import test_toeplitz as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.test_toeplitz import (  # noqa: F401  tests that run here as they are
    dtype_cases,
    name_of,
    reflected_cases,
    test_a_spectrum_is_kept_in_the_type_of_the_arithmetic,
    test_a_spectrum_is_refused_where_it_does_not_fit,
    test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input,
    test_product_transpose_and_pullback_are_adjoint_to_each_other,
    test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy,
    test_rows_of_16_bits_take_diagonals_of_32_and_give_their_gradient_in_32,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000)
RECTANGLES = ((5, 3), (3, 5), (1, 7), (7, 1), (2, 63), (16, 15), (15, 16), (64, 192), (192, 64), (12, 1024), (768, 97))
MANY_TILES = (2, 3, 70, 50)  # so that a block of threads has several units of tokens
GRIDS = ((2, 3, 5, 5), (3, 2, 64, 33), (1, 4, 97, 12), (4, 1, 12, 97), (2, 2, 1, 1), (3, 5, 1, 2), MANY_TILES)
SAMPLED_SIZES = ((1536, 3072), (3072, 1536), (4096, 4096))


@pytest.fixture(scope="module", autouse=True)
def emulated_toeplitz():
    yield from emulated("toeplitz", parity)


@pytest.fixture
def kernels(emulated_toeplitz):
    yield from as_it_was(emulated_toeplitz)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("size", SIZES)
def test_product_and_gradients_match_the_dense_matrix(size: int, dtype: torch.dtype, reflected: bool) -> None:
    t = torch.randn(1, 1, 1, 2 * size - 1).to(dtype)
    tokens = (0, 1, 2, 15, 16, 17, 33) if size <= 12 else (1, 5)
    parity.assert_matches_dense(t, size, size, tokens, reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("shape", RECTANGLES, ids=name_of)
def test_rectangles_match_the_dense_matrix(shape: tuple[int, int], dtype: torch.dtype, reflected: bool) -> None:
    rows, columns = shape
    t = torch.randn(1, 1, 1, rows + columns - 1).to(dtype)
    parity.assert_matches_dense(t, rows, columns, (0, 1, 5), reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("grid", GRIDS, ids=name_of)
def test_blocks_match_the_dense_matrix_in_every_group(
    grid: tuple[int, int, int, int], dtype: torch.dtype, reflected: bool
) -> None:
    out_blocks, in_blocks, rows, columns = grid
    t = torch.randn(2, out_blocks, in_blocks, rows + columns - 1).to(dtype)
    parity.assert_matches_dense(t, rows, columns, (0, 70) if grid == MANY_TILES else (0, 5), reflected)


@reflected_cases
@dtype_cases
@pytest.mark.parametrize("shape", SAMPLED_SIZES, ids=name_of)
def test_large_matrices_match_sampled_rows(shape: tuple[int, int], dtype: torch.dtype, reflected: bool) -> None:
    parity.test_large_matrices_match_sampled_rows(shape, dtype, reflected)


@reflected_cases
@pytest.mark.parametrize("shape", [(8192, 8192), (4096, 11008)], ids=name_of)
def test_the_largest_matrices_match_sampled_rows(shape: tuple[int, int], reflected: bool) -> None:
    parity.test_large_matrices_match_sampled_rows(shape, torch.float32, reflected)


@reflected_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_that_do_not_fit_shared_memory_are_as_accurate(dtype: torch.dtype, reflected: bool, kernels) -> None:
    kernels.set_device(2)
    parity.test_large_matrices_match_sampled_rows((1000, 2000), dtype, reflected)


@reflected_cases
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 7), (1, 1, 97, 12), (2, 3, 5, 4), (3, 2, 64, 33)], ids=name_of)
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    sizes: tuple[int, int, int, int], wide: torch.dtype, transposed: bool, reflected: bool
) -> None:
    parity.test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(sizes, wide, transposed, reflected)


@reflected_cases
@dtype_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(dtype: torch.dtype, reflected: bool) -> None:
    parity.test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(7, dtype, reflected)


@reflected_cases
@pytest.mark.parametrize(("shape", "tokens"), [((64, 64), 16), ((97, 97), 3), ((97, 1000), 5)], ids=str)
def test_rows_beside_larger_and_zero_ones_are_as_accurate_as_their_own_size_allows(
    shape: tuple[int, int], tokens: int, reflected: bool
) -> None:
    parity.test_each_row_is_as_accurate_as_its_own_size_allows(tokens, shape, reflected)
    parity.test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens, shape, reflected)


@reflected_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("grid", [(1, 1, 97, 97), (2, 3, 64, 20)], ids=name_of)
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(
    grid: tuple[int, int, int, int], bad: float, dtype: torch.dtype, reflected: bool
) -> None:
    parity.test_a_row_that_is_not_finite_gives_nan_in_that_row_only(grid, bad, dtype, reflected)


@reflected_cases
@pytest.mark.parametrize("grid", [(1, 1, 300, 200), (2, 3, 70, 150)], ids=name_of)
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(
    grid: tuple[int, int, int, int], reflected: bool, kernels
) -> None:
    out_blocks, in_blocks, rows, columns = grid
    t = torch.randn(1, out_blocks, in_blocks, rows + columns - 1)
    x, g = torch.randn(1, 33, in_blocks * columns), torch.randn(1, 33, out_blocks * rows)

    def everything(seed: int) -> list[torch.Tensor]:
        kernels.set_seed(seed)
        return [
            parity.toeplitz(x, t, g, columns, parity.SCALE, False, reflected),
            parity.toeplitz_pullback(g, x, rows, columns, parity.SCALE, reflected),
            *parity.toeplitz_backward(g, x, t, columns, parity.SCALE, reflected),
        ]

    first, second = everything(1), everything(2)
    assert all(map(torch.equal, first, second))
