"""The transform plan of a size: radices, twiddle factors, the order of the spectrum, and single butterflies."""

import math

import numpy as np
import pytest

from tests.native.build import native_module

plans = native_module("plan_bindings", ["tests/native/plan_bindings.cpp", "csrc/plan/plan.cpp"])

AWKWARD_SIZES = [1, 2, 3, 5, 12, 63, 64, 97, 192, 384, 768, 1000, 1009, 1024, 4093, 4608, 11008, 13824, 14336, 65537]


def transform_by_plan(plan, values: np.ndarray, lanes: int) -> np.ndarray:
    """The forward transform as the kernels run it, on any plan: stages, then the tile's radix."""
    z = values.astype(complex)
    factors, start = np.array(plan.twiddle_factors(lanes)), 0
    for stage in plan.stages:
        r, q = stage.radix, stage.stride
        count = (r - 1) * q
        split = factors[start : start + 2 * count].reshape(q // lanes, r - 1, 2, lanes)
        start += 2 * count
        twiddles = (split[:, :, 0] + 1j * split[:, :, 1]).transpose(1, 0, 2).reshape(r - 1, q)
        blocks = np.fft.fft(z.reshape(-1, r, q), axis=1)
        blocks[:, 1:] *= twiddles
        z = blocks.reshape(-1)
    assert start == len(factors)
    return np.fft.fft(z.reshape(-1, plan.tile), axis=1).reshape(-1)


@pytest.mark.parametrize("tile", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", AWKWARD_SIZES)
def test_stages_make_the_transform_in_the_order_that_the_plan_says(size, tile):
    plan = plans.Plan(size, tile)
    rng = np.random.default_rng(size)
    values = rng.standard_normal(plan.length)
    spectrum = transform_by_plan(plan, values, lanes=tile)
    expected = np.fft.fft(values)[plan.spectrum_order()]
    assert np.linalg.norm(spectrum - expected) <= 1e-13 * np.linalg.norm(expected)


@pytest.mark.parametrize("tile", [1, 8, 16])
def test_every_size_has_a_plan_that_covers_it(tile):
    rng = np.random.default_rng(0)
    for size in [*range(1, 600), *(int(s) for s in rng.integers(600, 2**20, 200)), 2**20 - 1, 2**20]:
        plan = plans.Plan(size, tile)
        radices = [stage.radix for stage in plan.stages]
        assert math.prod(radices) * tile == plan.length
        assert plan.length == size or (plan.embedded and plan.length >= 2 * size - 1), size
        assert all(plans.has_butterfly(r) or (r % 2 == 1 and r <= plans.largest_radix) for r in radices), size


@pytest.mark.parametrize("tile", [1, 8, 16])
def test_padded_rows_get_a_smooth_length_not_much_longer_than_they_are(tile):
    for size in [*range(1, 300), 383, 1535, 1999, 3839, 8191, 21503, 2**20 - 1]:
        plan = plans.Plan.padded(size, tile)
        assert math.prod(stage.radix for stage in plan.stages) * tile == plan.length
        assert size <= plan.length <= max(4 * tile, 1.34 * size), (size, plan.length)
        assert all(plans.has_butterfly(stage.radix) for stage in plan.stages), size


@pytest.mark.parametrize("size", [128, 192, 384, 768, 1024, 1536, 2048, 3072, 4096, 4608, 11008, 13824, 14336])
def test_sizes_of_transformers_are_transformed_without_embedding(size):
    assert not plans.Plan(size, 16).embedded


@pytest.mark.parametrize("make", [plans.Plan.for_gpu, plans.Plan.padded_for_gpu])
def test_plans_for_a_gpu_have_only_radices_with_a_butterfly_and_few_stages(make):
    for size in [*range(1, 300), 768, 1000, 1536, 3072, 4096, 4608, 8192, 11008, 13824, 14336, 16384, 26624]:
        plan = make(size, 16)
        radices = [stage.radix for stage in plan.stages]
        assert math.prod(radices) * 16 == plan.length
        assert all(plans.has_butterfly(radix) and radix <= 16 for radix in radices), size
        assert all(stage.stride % 16 == 0 for stage in plan.stages), size
    assert [stage.radix for stage in plans.Plan.for_gpu(4096, 16).stages] == [16, 16]


def test_large_primes_are_embedded_in_a_smooth_length():
    for size in (97, 1009, 4093, 65537):
        plan = plans.Plan(size, 16)
        assert plan.embedded and plan.length < 4 * size
        assert max(stage.radix for stage in plan.stages) <= 16


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("radix", [2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 43, 61])
def test_butterfly_is_the_discrete_fourier_transform(radix, inverse):
    rng = np.random.default_rng(radix)
    values = rng.standard_normal(radix) + 1j * rng.standard_normal(radix)
    expected = np.fft.ifft(values) * radix if inverse else np.fft.fft(values)
    result = np.array(plans.butterfly(list(values), inverse))
    assert np.linalg.norm(result - expected) <= 5e-15 * np.linalg.norm(expected)
