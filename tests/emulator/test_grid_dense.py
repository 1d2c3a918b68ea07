"""The CUDA kernels of the dense matrices of grids under the emulator: the tests of their operators."""

import pytest

from tests import test_grid_dense as parity
from tests.emulator.stand_in import emulated
from tests.test_grid_dense import (  # noqa: F401  tests that run here as they are
    test_a_weight_may_be_merged_in_place_and_in_strided_rows,
    test_adjoint_sums_what_each_value_fills_in_every_block,
    test_dense_and_its_adjoint_are_adjoint,
    test_dense_is_the_index_formula_to_the_bit,
    test_merging_adds_the_scaled_matrix_to_a_weight_and_rounds_once,
    test_merging_refuses_types_and_shapes_that_do_not_go_together,
    test_one_bad_value_stays_where_it_fills_the_matrix,
    test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="module", autouse=True)
def emulated_grid():
    yield from emulated(parity)
