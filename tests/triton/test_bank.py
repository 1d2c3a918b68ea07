"""The Triton kernels of the bank against dense float64 matrices, interpreted, and compiled ahead.

The interpreter computes in bfloat16 wrongly without a word, so that type is compiled only.
"""

import pytest
import torch

from surm_kernels.block_kinds import CIRCULANT, SKEW_CIRCULANT
from tests import oracle, test_diagonal
from tests.triton import harness
from tests.triton.test_diagonal import BY_VALUES, for_16_bits

bank = pytest.importorskip("surm_kernels.triton.bank")
diagonal = pytest.importorskip("surm_kernels.triton.diagonal")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

dtype_cases = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])

CIRCULANT_TYPES = {
    **dict.fromkeys(("x", "c", "base", "y"), "*bf16"),
    "index": "*i64",
    "scale": "fp32",
    **dict.fromkeys(("size", "adapters", "x_token", "base_token", "shape_class"), "i32"),
}
AHEAD_OF_TIME = [
    harness.Case("bank: circulant", bank.circulant_kernel, CIRCULANT_TYPES, {"SKEW": True, "TRANSPOSED": True}),
    harness.Case(
        "bank: siva",
        diagonal.product_kernel,
        {**BY_VALUES, "adapter": "*i64"},
        {"matrix_output": 1, "LONGEST_SUM": 1024},
        only=lambda config, target: for_16_bits(config, target) and not diagonal.is_large(config),
    ),
]


@dtype_cases
@pytest.mark.parametrize("kind", [CIRCULANT, SKEW_CIRCULANT], ids=["circulant", "skew-circulant"])
@pytest.mark.parametrize("transposed", [False, True], ids=["product", "transposed"])
@pytest.mark.parametrize("size", [1, 5, 97])
def test_circulant_products_match_the_matrix_of_each_token(size: int, transposed: bool, kind: int, dtype) -> None:
    x, c, base = (torch.randn(tokens, size).to(dtype) for tokens in (9, 4, 9))
    index = torch.randint(4, (9,))
    matrices = torch.stack([oracle.f_circulant(row, oracle.SIGNS[kind]) for row in c])[index]
    exact = torch.einsum("tij,tj->ti", matrices.mT if transposed else matrices, x.double())
    size_of_terms = (x.double().norm() * c.double().norm()).item()
    y = bank.circulant_bank(x, c, index, None, kind, 1.0, transposed)
    oracle.assert_close(y, exact, size=size_of_terms)
    y = bank.circulant_bank(x, c, index.int(), base, kind, -0.5, transposed)
    oracle.assert_close(y, base.double() - 0.5 * exact, size=size_of_terms)


@dtype_cases
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 97, 12), (20, 16, 70)], ids=str)
def test_diagonal_products_match_the_matrix_of_each_token(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    u, s, v = (torch.randn(size).to(dtype) for size in ((m, k), (4, k), (n, k)))
    x, base, index = torch.randn(35, n).to(dtype), torch.randn(m).to(dtype).expand(35, m), torch.randint(4, (35,))
    between = (x.double() @ v.double()) * s.double()[index]
    exact = between @ u.double().T
    terms = between.abs() @ u.double().abs().T
    for y, wanted, of_base in (
        (bank.diagonal_bank(x, u, s, v, index, None, 1.0), exact, 0),
        (bank.diagonal_bank(x, u, s, v, index, base, -0.5), base.double() - 0.5 * exact, base.double().abs()),
    ):
        test_diagonal.assert_close(y, wanted, "result", terms.norm().item(), terms + of_base, False)


@dtype_cases
def test_an_index_out_of_range_gives_its_row_nan_and_touches_no_other(dtype: torch.dtype) -> None:
    x, c, u, s, v = (torch.randn(size, 20).to(dtype) for size in (5, 3, 7, 3, 20))
    index, there = torch.tensor([0, 3, -1, 2, 1 << 40]), torch.tensor([True, False, False, True, False])
    within = index.clamp(0, 2)
    for call in (
        lambda index: bank.circulant_bank(x, c, index, None, CIRCULANT, 1.0, False),
        lambda index: bank.diagonal_bank(x, u, s, v, index, None, 1.0),
    ):
        assert torch.equal(call(index)[there], call(within)[there])
        assert call(index)[~there].isnan().all()


def test_no_tokens_give_no_rows_and_float64_is_refused() -> None:
    c, index = torch.randn(3, 8), torch.zeros(0, dtype=torch.int64)
    assert bank.circulant_bank(torch.randn(0, 8), c, index, None, CIRCULANT, 1.0, False).shape == (0, 8)
    assert bank.diagonal_bank(torch.randn(0, 8), c, c, torch.randn(8, 8), index, None, 1.0).shape == (0, 3)
    with pytest.raises(ValueError, match="float64"):
        bank.circulant_bank(torch.randn(1, 8).double(), c.double(), torch.zeros(1).long(), None, CIRCULANT, 1.0, False)


@harness.case_and_target(AHEAD_OF_TIME)
def test_kernels_compile_without_spills_and_fit_their_targets(case: harness.Case, target: str, compiled) -> None:
    harness.assert_sound(case, target, compiled)
