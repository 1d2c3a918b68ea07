"""The CUDA kernels of the krylov operators under the emulator: the tests of the operators, at sizes of their own."""

import pytest
import torch

from tests import oracle
from tests import test_krylov as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.test_krylov import (  # noqa: F401  tests that run here as they are
    dtype_cases,
    sign_cases,
    test_a_spectrum_is_kept_in_the_type_of_the_arithmetic,
    test_a_spectrum_is_refused_where_it_does_not_fit,
    test_a_weight_may_be_merged_in_place_and_in_strided_rows,
    test_dense_is_the_index_formula_to_the_bit_and_its_adjoint_sums_diagonals,
    test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once,
    test_merging_refuses_types_and_shapes_that_do_not_go_together,
    test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input,
    test_product_transpose_and_pullback_are_adjoint_to_each_other,
    test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024)
SAMPLED_SIZES = (1536, 3072, 4608, 8192)
MANY_TILES = (3, 2, 100)  # so that a block of threads has several units of tokens
BLOCKS = ((2, 3, 5), (3, 2, 64), (1, 4, 97), (4, 1, 63), (2, 2, 1), (12, 3, 12), MANY_TILES)

block_cases = pytest.mark.parametrize("blocks", BLOCKS, ids=lambda blocks: "x".join(map(str, blocks)))


@pytest.fixture(scope="module", autouse=True)
def emulated_krylov():
    yield from emulated("krylov", parity)


@pytest.fixture
def kernels(emulated_krylov):
    yield from as_it_was(emulated_krylov)


def tokens_of(size: int) -> tuple[int, ...]:
    """The token counts tried at a size: all of them where that is cheap."""
    return (0, 1, 2, 15, 16, 17, 33) if size <= 12 else (1, 5)


@sign_cases
@dtype_cases
@pytest.mark.parametrize("size", SIZES)
def test_product_and_gradients_match_the_dense_matrix(size: int, dtype: torch.dtype, sign: int) -> None:
    v = torch.randn(1, 1, 1, size).to(dtype)
    dense = oracle.matrix(v[0], sign)
    for tokens in tokens_of(size):
        x, g, base = (torch.randn(1, tokens, size).to(dtype) for _ in range(3))
        parity.assert_matches(dense, x, v, g, base, sign)


@sign_cases
@dtype_cases
@block_cases
def test_blocks_match_the_dense_matrix_in_every_group(
    blocks: tuple[int, int, int], dtype: torch.dtype, sign: int
) -> None:
    outputs, inputs, block = blocks
    v = torch.randn(2, *blocks).to(dtype)
    dense = torch.stack([oracle.matrix(group, sign) for group in v])
    for tokens in (0, 70) if blocks == MANY_TILES else (0, 5):
        x = torch.randn(2, tokens, inputs * block).to(dtype)
        g, base = (torch.randn(2, tokens, outputs * block).to(dtype) for _ in range(2))
        parity.assert_matches(dense, x, v, g, base, sign)


@sign_cases
@dtype_cases
@pytest.mark.parametrize("size", SAMPLED_SIZES)
def test_product_and_gradients_match_sampled_rows_of_a_large_matrix(size: int, dtype: torch.dtype, sign: int) -> None:
    parity.test_product_and_gradients_match_sampled_rows_of_a_large_matrix(size, dtype, sign)


@sign_cases
@pytest.mark.parametrize("size", [11008, 13824, 14336, 16384])
def test_the_largest_sizes_match_sampled_rows_of_the_matrix(size: int, sign: int) -> None:
    parity.test_product_and_gradients_match_sampled_rows_of_a_large_matrix(size, torch.float32, sign)


@sign_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sums_that_do_not_fit_shared_memory_are_as_accurate(dtype: torch.dtype, sign: int, kernels) -> None:
    kernels.set_device(2)
    parity.test_product_and_gradients_match_sampled_rows_of_a_large_matrix(3072, dtype, sign)


@sign_cases
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("blocks", [(1, 1, 5), (1, 1, 97), (2, 3, 5), (3, 2, 64)])
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    blocks: tuple[int, int, int], wide: torch.dtype, transposed: bool, sign: int
) -> None:
    parity.test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(blocks, wide, transposed, sign)


@sign_cases
@dtype_cases
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(dtype: torch.dtype, sign: int) -> None:
    parity.test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(7, dtype, sign)


@sign_cases
@pytest.mark.parametrize(("size", "tokens"), [(64, 16), (97, 3), (768, 17)])
def test_rows_beside_larger_and_zero_ones_are_as_accurate_as_their_own_size_allows(
    size: int, tokens: int, sign: int
) -> None:
    parity.test_each_row_is_as_accurate_as_its_own_size_allows(tokens, size, sign)
    parity.test_zero_rows_give_exact_zeros_beside_any_neighbour(tokens, size, sign)


@sign_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("blocks", [(1, 1, 97), (2, 3, 64)], ids=lambda blocks: "x".join(map(str, blocks)))
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(
    blocks: tuple[int, int, int], bad: float, dtype: torch.dtype, sign: int
) -> None:
    parity.test_a_row_that_is_not_finite_gives_nan_in_that_row_only(blocks, bad, dtype, sign)


@sign_cases
@pytest.mark.parametrize("blocks", [(1, 1, 768), (2, 3, 200)], ids=lambda blocks: "x".join(map(str, blocks)))
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(
    blocks: tuple[int, int, int], sign: int, kernels
) -> None:
    outputs, inputs, block = blocks
    v, x, g = (torch.randn(shape) for shape in ((1, *blocks), (1, 33, inputs * block), (1, 33, outputs * block)))
    w = torch.randn(1, outputs * block, inputs * block)

    def everything(seed: int) -> list[torch.Tensor]:
        kernels.set_seed(seed)
        return [
            parity.krylov(x, v, g, sign, parity.SCALE, False),
            parity.krylov_pullback(g, x, block, sign, parity.SCALE),
            *parity.krylov_backward(g, x, v, sign, parity.SCALE, False),
            parity.krylov_dense_adjoint(w, block, sign),
        ]

    first, second = everything(1), everything(2)
    assert all(map(torch.equal, first, second))
