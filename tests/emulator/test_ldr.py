"""The CUDA kernels of the ldr operators under the emulator: the tests of the operators, at sizes of their own."""

import pytest
import torch

from tests import test_ldr as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.test_ldr import (  # noqa: F401  tests that run here as they are
    BOTH,
    DTYPES,
    generators,
    reflected_cases,
    test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input,
    test_product_transpose_and_pullbacks_are_adjoint_to_each_other,
    test_product_with_the_identity_is_the_dense_matrix,
    test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy,
)
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 768, 1000)
MANY_TILES = (200, 97, 200, 1)  # so that a block of threads has several units of tokens
# The size of the square matrix, how many outputs and inputs of it take part, and the rank.
PARTS = ((5, 5, 3, 5), (5, 3, 5, 2), (7, 1, 7, 4), (7, 7, 1, 1), (97, 60, 41, 3), (192, 64, 192, 4), MANY_TILES)


@pytest.fixture(scope="module", autouse=True)
def emulated_ldr():
    yield from emulated(parity)


@pytest.fixture
def kernels(emulated_ldr):
    yield from as_it_was(emulated_ldr)


@cases("size, dtype, reflected", in_turns(SIZES, DTYPES, BOTH))
def test_product_and_gradients_match_the_index_formula(size: int, dtype: torch.dtype, reflected: bool) -> None:
    left, right = generators(2, size, dtype)
    for tokens in (0, 1, 2, 15, 16, 17, 33) if size <= 12 else (1, 5):
        parity.assert_matches(left, right, size, size, tokens, reflected)


@cases("part, dtype, reflected", in_turns(PARTS, DTYPES, BOTH))
def test_top_left_parts_of_every_rank_match_the_index_formula_in_every_group(
    part: tuple[int, int, int, int], dtype: torch.dtype, reflected: bool
) -> None:
    size, outputs, inputs, rank = part
    left, right = generators(rank, size, dtype, groups=2)
    for tokens in (0, 70) if part == MANY_TILES else (0, 1, 5):
        parity.assert_matches(left, right, outputs, inputs, tokens, reflected)


@reflected_cases
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4608), (torch.bfloat16, 3072)], ids=str)
def test_large_products_and_sampled_gradients_match_the_index_formula(
    dtype: torch.dtype, size: int, reflected: bool
) -> None:
    left, right = generators(1, size, dtype)
    parity.assert_matches(left, right, size, size, 19, reflected)


@reflected_cases
@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1000), (torch.float32, 2048)], ids=str)
def test_sums_that_do_not_fit_shared_memory_are_as_accurate(
    dtype: torch.dtype, size: int, reflected: bool, kernels
) -> None:
    kernels.set_device(2)
    left, right = generators(2, size, dtype)
    for tokens in (1, 5, 17):
        parity.assert_matches(left, right, size, size, tokens, reflected)


@cases("dtype, reflected", in_turns(DTYPES, BOTH))
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(dtype: torch.dtype, reflected: bool) -> None:
    parity.test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(7, dtype, reflected)


@reflected_cases
@pytest.mark.parametrize(("size", "tokens"), [(64, 16), (97, 3), (768, 5)])
def test_rows_beside_larger_and_zero_ones_are_as_accurate_as_their_own_size_allows(
    size: int, tokens: int, reflected: bool
) -> None:
    parity.test_each_row_is_as_accurate_as_its_own_size_allows(tokens, size, reflected)
    parity.test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens, size, reflected)


@reflected_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(bad: float, dtype: torch.dtype, reflected: bool) -> None:
    parity.test_a_row_that_is_not_finite_gives_nan_in_that_row_only((97, 97, 60), bad, dtype, reflected)


@reflected_cases
@pytest.mark.parametrize("part", [(97, 97, 60), (300, 128, 300)], ids=str)
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(
    part: tuple[int, int, int], reflected: bool, kernels
) -> None:
    size, outputs, inputs = part
    left, right = generators(3, size, torch.float32)
    x, g = torch.randn(1, 33, inputs), torch.randn(1, 33, outputs)

    def everything(seed: int) -> list[torch.Tensor]:
        kernels.set_seed(seed)
        return parity.everything(x, g, left, right, g, reflected)

    first, second = everything(1), everything(2)
    assert all(map(torch.equal, first, second))
