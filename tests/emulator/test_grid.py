"""The CUDA kernels of the grid operators under the emulator: the tests of the operators, at sizes of their own.

Kinds, types and contexts take turns over the sizes, as in the tests of the operators.
"""

import pytest
import torch

from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from tests import test_grid as parity
from tests.emulator.stand_in import as_it_was, emulated
from tests.grids import DTYPES, Grid, grid_of, grids_in_turns, kinds_and_types_in_turns
from tests.test_grid import (  # noqa: F401  tests that run here as they are
    test_a_spectrum_is_kept_in_the_type_of_the_arithmetic,
    test_a_spectrum_is_refused_where_it_does_not_fit,
    test_outputs_are_new_contiguous_tensors_even_where_they_equal_an_input,
    test_product_transpose_and_pullback_are_adjoint_to_each_other,
    test_rows_near_the_ends_of_the_range_of_float32_keep_their_accuracy,
    test_rows_of_16_bits_take_values_of_32_and_give_their_gradient_in_32,
)
from tests.turns import cases, in_turns

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = (1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1024)
RECTANGLES = ((5, 3), (3, 5), (1, 7), (7, 1), (2, 63), (16, 15), (15, 16), (64, 192), (192, 64), (12, 1024), (768, 97))
MANY_TILES = ((100, 100, 3, 2), (70, 50, 2, 3))  # so that a block of threads has several units of tokens
# Rows, columns, blocks of a column and blocks of a row; circulant blocks have as many rows as columns.
BLOCKS = (
    *((5, 5, 2, 3), (64, 33, 3, 2), (64, 64, 3, 2), (97, 12, 1, 4), (97, 97, 1, 4), (12, 97, 4, 1), (63, 63, 4, 1)),
    *((1, 1, 2, 2), (12, 12, 12, 3), (1, 2, 3, 5), *MANY_TILES),
)
SQUARE, OTHER = (CIRCULANT, SKEW_CIRCULANT), (TOEPLITZ, HANKEL)
LARGE = [
    (grid_of(kind, *shape), dtype)
    for shape, kind, dtype in (
        *in_turns([(size, size) for size in (1536, 3072, 4608, 8192)], SQUARE, DTYPES),
        *in_turns([(1536, 3072), (3072, 1536), (4096, 4096)], OTHER, DTYPES),
    )
]
LARGEST = (
    *(grid_of(kind, size, size) for size, kind in zip((11008, 13824, 14336, 16384), 2 * SQUARE, strict=True)),
    *(grid_of(SKEW_CIRCULANT, 11008, 11008), grid_of(CIRCULANT, 16384, 16384)),
    *(grid_of(TOEPLITZ, 8192, 8192), grid_of(HANKEL, 4096, 11008)),
)


@pytest.fixture(scope="module", autouse=True)
def emulated_grid():
    yield from emulated(parity)


@pytest.fixture(autouse=True)
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transforms on tensor cores are tested in test_tensor_cores.py."""
    monkeypatch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")


@pytest.fixture
def kernels(emulated_grid):
    yield from as_it_was(emulated_grid)


@cases("w, dtype", grids_in_turns([(size, size) for size in SIZES], DTYPES))
def test_product_and_gradients_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    parity.assert_matches_dense(w, dtype, 1, (0, 1, 2, 15, 16, 17, 33) if w.columns <= 12 else (1, 5))


@cases("w, dtype", grids_in_turns(RECTANGLES, DTYPES))
def test_rectangles_match_the_dense_matrix(w: Grid, dtype: torch.dtype) -> None:
    parity.assert_matches_dense(w, dtype, 1, (0, 1, 5))


@cases("w, dtype", grids_in_turns(BLOCKS, DTYPES))
def test_blocks_match_the_dense_matrix_in_every_group(w: Grid, dtype: torch.dtype) -> None:
    many = (w.rows, w.columns, w.outputs, w.inputs) in MANY_TILES
    parity.assert_matches_dense(w, dtype, 2, (0, 70) if many else (0, 5))


@cases("w, dtype", LARGE)
def test_large_matrices_match_sampled_rows(w: Grid, dtype: torch.dtype) -> None:
    parity.test_large_matrices_match_sampled_rows(w, dtype)


@pytest.mark.parametrize("w", LARGEST, ids=str)
def test_the_largest_matrices_match_sampled_rows(w: Grid) -> None:
    parity.test_large_matrices_match_sampled_rows(w, torch.float32)


@cases("kind, dtype", in_turns((*SQUARE, *OTHER), (torch.float32, torch.bfloat16)))
def test_sums_that_do_not_fit_shared_memory_are_as_accurate(kind: int, dtype: torch.dtype, kernels) -> None:
    kernels.set_device(2)
    shape = (3072, 3072) if kind in SQUARE else (1000, 2000)
    parity.test_large_matrices_match_sampled_rows(grid_of(kind, *shape), dtype)


SPECTRUM_SHAPES = ((5, 5), (97, 97), (1, 7), (97, 12), (5, 4, 2, 3), (64, 33, 3, 2), (64, 64, 3, 2))


@cases("w, transposed, wide", grids_in_turns(SPECTRUM_SHAPES, (False, True), (torch.float32, torch.float64)))
def test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(
    w: Grid, transposed: bool, wide: torch.dtype
) -> None:
    parity.test_one_kept_spectrum_serves_any_number_of_tokens_of_any_type(w, transposed, wide)


@cases("w, dtype", kinds_and_types_in_turns([(14, 20, 2, 3)]))
def test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(w: Grid, dtype: torch.dtype) -> None:
    parity.test_strided_and_expanded_inputs_give_the_result_of_contiguous_ones(w, dtype, 7)


@cases("w, tokens", grids_in_turns([(64, 64), (97, 97), (768, 768), (97, 1000)], (16, 3, 17, 5)))
def test_rows_beside_larger_and_zero_ones_are_as_accurate_as_their_own_size_allows(w: Grid, tokens: int) -> None:
    parity.test_each_row_is_as_accurate_as_its_own_size_allows(w, tokens)
    parity.test_zero_rows_give_exact_zeros_beside_any_neighbour(w, tokens)


BROKEN_SHAPES = ((97, 97), (64, 20, 2, 3))


@cases("w, dtype, bad", grids_in_turns(BROKEN_SHAPES, (torch.float32, torch.bfloat16), (float("nan"), float("-inf"))))
def test_a_row_that_is_not_finite_gives_nan_in_that_row_only(w: Grid, dtype: torch.dtype, bad: float) -> None:
    parity.test_a_row_that_is_not_finite_gives_nan_in_that_row_only(w, dtype, bad)


@cases("w", [w for (w,) in grids_in_turns([(768, 768), (200, 200, 2, 3), (300, 200), (70, 150, 2, 3)])])
def test_results_are_bitwise_the_same_in_any_order_of_threads_and_blocks(w: Grid, kernels) -> None:
    values, (x, g) = w.values(), w.tokens(1, 33)
    matrix = torch.randn(1, w.outputs * w.rows, w.inputs * w.columns)

    def everything(seed: int) -> list[torch.Tensor]:
        kernels.set_seed(seed)
        sums = parity.grid_dense_adjoint(matrix, w.kind, w.rows, w.columns)
        return [*parity.everything(w, x, g, g, values), sums]

    first, second = everything(1), everything(2)
    assert all(map(torch.equal, first, second))
