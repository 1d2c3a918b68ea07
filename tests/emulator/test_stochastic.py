"""Stochastic rounding on CUDA under the emulator: the tests of its operators; a weight is the CPU's to the bit."""

import pytest
import torch
from torch import Tensor

from surm_kernels._namespace import CUDA_NAMESPACE, NAMESPACE
from tests import oracle
from tests import test_stochastic as parity
from tests.emulator.stand_in import emulated
from tests.grids import Grid, grids_in_turns
from tests.test_stochastic import (  # noqa: F401  tests that run here as they are
    test_a_number_becomes_a_neighbour_and_one_of_the_type_stays_as_it_is,
    test_merging_a_grid_rounds_as_the_reference_to_the_bit_and_as_the_sum,
    test_rows_may_have_any_strides,
    test_the_kernel_rounds_as_the_reference_to_the_bit,
    test_the_kernel_takes_the_key_of_the_reference,
    test_what_has_no_neighbours_is_rounded_as_to_nearest,
)
from tests.turns import cases

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Whole packets of 16 bytes and ragged ones, blocks of both kinds in a grid.
SHAPES = ((1, 1), (64, 64), (97, 97), (64, 33), (33, 64), (5, 24, 3, 2), (24, 5, 2, 3), (64, 64, 3, 2), (300, 200))
OF_SUMS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
#: The types of weight and result that have a sum.
PAIRS = [(weight, out) for weight in OF_SUMS for out in OF_SUMS if weight is out or torch.float32 in (weight, out)]


@pytest.fixture(scope="module", autouse=True)
def emulated_operators():
    yield from emulated(parity)


def merged(namespace: str, weight: Tensor, values: Tensor, w: Grid, key: Tensor | None, out: torch.dtype) -> Tensor:
    """The bits of the weight that a device forms."""
    result = torch.empty(weight.shape, dtype=out)
    getattr(torch.ops, namespace).grid_merge(weight, values, w.kind, w.columns, 0.7, key, result)
    return result.view(OF_SUMS[out])


@cases("w, types", grids_in_turns(SHAPES, PAIRS))
def test_both_devices_form_the_same_weight_to_the_bit(w: Grid, types: tuple[torch.dtype, torch.dtype]) -> None:
    for dtype in OF_SUMS:
        (values,) = w.values(1, dtype)
        weight = torch.randn(w.outputs * w.rows, w.inputs * w.columns).to(types[0])
        keys = [None, parity.KEY] if types[1] in oracle.SIXTEEN_BIT else [None]
        for key in keys:
            of_cuda, of_cpu = (merged(each, weight, values, w, key, types[1]) for each in (CUDA_NAMESPACE, NAMESPACE))
            assert torch.equal(of_cuda, of_cpu)


@parity.types
def test_a_weight_may_be_merged_in_place_with_a_key_of_what_it_is_formed_of(dtype: torch.dtype) -> None:
    w = parity.grid_of(0, 40, 40)
    (values,) = w.values(1, dtype)
    weights, keys = [torch.randn(40, 40).to(dtype)] * 2, []
    for place, namespace in enumerate((CUDA_NAMESPACE, NAMESPACE)):
        operators, weight = getattr(torch.ops, namespace), weights[place].clone()
        for _ in range(3):  # as steps of training follow each other
            keys.append(operators.rounding_key(weight[0], [values], 7))
            operators.grid_merge(weight, values, w.kind, w.columns, 2.0**-9, keys[-1], weight)
        weights[place] = weight
    assert torch.equal(*weights)
    assert len(set(map(int, keys))) == 3
