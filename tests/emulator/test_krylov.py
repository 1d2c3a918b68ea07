"""The CUDA kernels of the krylov operators, under the emulator: the tests of the operators, and sizes of their own."""

import pytest
import torch
from torch import Tensor

from tests import oracle
from tests import test_krylov as parity
from tests.emulator.stand_in import emulated
from tests.test_krylov import (  # noqa: F401  tests that run here as well
    SCALE,
    dtype_cases,
    sign_cases,
    test_a_row_that_is_not_finite_gives_nan_in_that_row_only,
    test_a_spectrum_is_kept_in_the_type_of_the_arithmetic,
    test_a_spectrum_is_refused_where_it_does_not_fit,
    test_a_weight_may_be_merged_in_place_and_in_strided_rows,
    test_blocks_match_the_dense_matrix_in_every_group,
    test_dense_is_the_index_formula_to_the_bit_and_its_adjoint_sums_diagonals,
    test_each_row_is_as_accurate_as_its_own_size_allows,
    test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once,
    test_merging_refuses_types_and_shapes_that_do_not_go_together,
    test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type,
    test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input,
    test_product_transpose_and_pullback_are_adjoint_to_each_other,
    test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy,
    test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones,
    test_zero_rows_give_exact_zeros_beside_any_neighbour,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024, 1536, 3072, 4096)


@pytest.fixture(scope="module", autouse=True)
def kernels():
    yield from emulated("krylov", parity)


def tokens_of(size: int) -> tuple[int, ...]:
    return (0, 1, 2, 15, 16, 17, 33) if size <= 97 else (1, 5) if size <= 1024 else (3,)


@sign_cases
@dtype_cases
@pytest.mark.parametrize("size", SIZES)
def test_product_and_gradients_match_the_dense_matrix(size: int, dtype: torch.dtype, sign: int) -> None:
    v = torch.randn(1, 1, 1, size).to(dtype)
    dense = oracle.matrix(v[0], sign)
    for tokens in tokens_of(size):
        x, g, base = (torch.randn(1, tokens, size).to(dtype) for _ in range(3))
        parity.assert_matches(dense, x, v, g, base, sign)
