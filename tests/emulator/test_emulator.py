"""The emulator itself: mistakes planted in a kernel are caught, a kernel that is right passes in any order."""

import re

import numpy as np
import pytest

from build_support.ninja import ROOT
from tests.emulator.build import emulated_module
from tests.emulator.stand_in import as_it_was

kernels = emulated_module("planted_kernels", ["tests/emulator/planted_kernels.cpp", "csrc/cuda/device.cu"])

SEEDS = (1, 2, 3, 4, 5)


@pytest.fixture(autouse=True)
def unchanged():
    yield from as_it_was(kernels)


def sums(kernel, blocks: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel sums, and what it should."""
    x = np.random.default_rng(0).standard_normal((blocks, 64)).astype(np.float32)
    y = np.full(blocks, np.nan, dtype=np.float32)
    kernel(x, y)
    return y, x.astype(np.float64).sum(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kernel_that_is_right_passes_in_any_order_with_the_same_result(seed: int) -> None:
    kernels.set_seed(seed)
    y, exact = sums(kernels.sum)
    np.testing.assert_allclose(y, exact, rtol=1e-5)
    kernels.set_seed(0)
    assert np.array_equal(sums(kernels.sum)[0], y)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (
            "sum_with_missing_barrier",
            r"race: it (reads|writes) byte \d+ of shared memory, which thread \d+ (wrote|read)",
        ),
        ("sum_out_of_bounds", "thread 32: access out of bounds: bytes 24 to 27 of 24 bytes of shared memory"),
        ("sum_with_divergent_barrier", r"divergent barrier: thread \d+ waits at the barrier .*, thread \d+ waits at"),
        ("sum_with_missing_lane", "missing lane in a shuffle: .*, thread 37 of its warp waits at the barrier"),
        ("sum_of_threads_that_leave", "missing lane in a shuffle: .*, thread 5 of its warp has left the kernel"),
    ],
)
def test_a_planted_mistake_is_caught_and_its_message_says_what_who_and_where(
    kernel: str, words: str, seed: int
) -> None:
    kernels.set_seed(seed)
    with pytest.raises(kernels.Error, match=words) as caught:
        sums(getattr(kernels, kernel))
    where = rf"block \([0-2], 0, 0\) of \(3, 1, 1\), kernel launched at .*planted_kernels.cpp:\d+, seed {seed}$"
    assert re.search(where, str(caught.value))


def test_a_kernel_runs_again_after_one_that_failed() -> None:
    for _ in range(3):
        with pytest.raises(kernels.Error):
            sums(kernels.sum_with_divergent_barrier)
        y, exact = sums(kernels.sum)
        np.testing.assert_allclose(y, exact, rtol=1e-5)


def test_shared_memory_that_nobody_wrote_is_nan() -> None:
    sums(kernels.sum)  # leaves sums behind
    assert np.isnan(sums(kernels.sum_of_unwritten)[0]).all()


def test_threads_and_blocks_come_in_an_order_that_depends_on_the_seed() -> None:
    def order(seed: int) -> list[int]:
        kernels.set_seed(seed)
        written = np.zeros(8 * 32, dtype=np.int32)
        kernels.write_order(written, 8, 32)
        return written.tolist()

    orders = [order(seed) for seed in SEEDS]
    assert all(sorted(each) == list(range(8 * 32)) for each in orders)
    assert len({tuple(each) for each in orders}) == len(SEEDS)
    assert len({tuple(number // 32 for number in each) for each in orders}) == len(SEEDS)
    assert order(SEEDS[0]) == orders[0]


@pytest.mark.parametrize("kernel", ["rotate_16", "rotate_complex", "rotate_128"])
def test_values_of_every_size_go_through_shared_memory(kernel: str) -> None:
    x = np.random.default_rng(0).integers(
        0, 2**16, (64, {"rotate_16": 1, "rotate_complex": 4, "rotate_128": 8}[kernel])
    )
    x = x.astype(np.uint16)
    y = np.zeros_like(x)
    getattr(kernels, kernel)(x, y, 5)
    assert np.array_equal(y, np.roll(x, 5, 0))
    (launch,) = kernels.take_launches()
    assert (launch.grid, launch.threads, launch.shared_bytes, launch.barriers) == ((1, 1, 1), 64, x.nbytes, 10)


def test_a_race_is_one_of_bytes() -> None:
    kernels.write_halves(1)
    with pytest.raises(kernels.Error, match=r"thread [01]: race: it writes byte 0 .* thread [01] wrote"):
        kernels.write_halves(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_race_is_seen_whichever_thread_comes_first(seed: int) -> None:
    kernels.set_seed(seed)
    with pytest.raises(kernels.Error, match="it writes byte 0 of shared memory, which thread [01] wrote"):
        kernels.write_and_write()
    with pytest.raises(
        kernels.Error, match="it (writes|reads) byte 0 of shared memory, which thread [01] (read|wrote)"
    ):
        kernels.write_and_read()


@pytest.mark.parametrize(
    ("byte", "words"), [(-8, "out of bounds: bytes -8 to -1 of 64"), (64, "out of bounds"), (4, "aligned to 8")]
)
def test_accesses_outside_shared_memory_or_across_an_alignment_are_caught(byte: int, words: str) -> None:
    with pytest.raises(kernels.Error, match=words):
        kernels.read_shared_double(byte)
    assert np.isnan(kernels.read_shared_double(8))


def test_an_unaligned_access_of_device_memory_is_caught() -> None:
    memory = np.zeros(64, dtype=np.uint8)
    aligned = memory[-memory.ctypes.data % 16 :]
    kernels.read_device_16_bytes(aligned)
    with pytest.raises(kernels.Error, match=r"aligned to 16 bytes at .*planted_kernels.cpp:\d+"):
        kernels.read_device_16_bytes(aligned[2:])


@pytest.mark.parametrize(
    ("lanes", "width", "down", "wanted"),
    [
        (4, 32, True, lambda lane: lane + 4 if lane < 28 else lane),
        (3, 8, True, lambda lane: lane + 3 if lane % 8 < 5 else lane),
        (7, 32, False, lambda lane: 7),
        (5, 16, False, lambda lane: lane // 16 * 16 + 5),
    ],
)
def test_a_shuffle_takes_the_value_of_the_lane_that_cuda_says(lanes: int, width: int, down: bool, wanted) -> None:
    y = np.zeros(64, dtype=np.int32)
    kernels.shuffled(y, lanes, width, down)
    assert y.tolist() == [thread // 32 * 32 + wanted(thread % 32) for thread in range(64)]


@pytest.mark.parametrize(("which", "said"), [(0, 2), (37, 2), (63, 2), (64, 1), (-1, 1)])
def test_a_barrier_tells_every_thread_what_any_thread_says(which: int, said: int) -> None:
    y = np.zeros(64, dtype=np.int32)
    kernels.any_of_block(y, which)
    assert y.tolist() == [said] * 64


def test_a_shuffle_needs_whole_warps() -> None:
    with pytest.raises(kernels.Error, match="fewer than 32 threads"):
        kernels.shuffled(np.zeros(40, dtype=np.int32), 1, 32, True)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_of_a_warp_orders_what_its_lanes_do(seed: int) -> None:
    kernels.set_seed(seed)
    y = np.zeros(96, dtype=np.int32)
    kernels.rotate_in_warps(y, 3, False)
    assert y.tolist() == [thread // 32 * 32 + (thread - 3) % 32 for thread in range(96)]
    with pytest.raises(
        kernels.Error, match=r"race: it (writes|reads) byte \d+ .* which (thread \d+|its warp) (read|wrote)"
    ):
        kernels.rotate_in_warps_with_missing_barrier(y, 3, False)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_barrier_of_a_warp_orders_nothing_between_warps(seed: int) -> None:
    kernels.set_seed(seed)
    with pytest.raises(kernels.Error, match=r"race: it (writes|reads) byte \d+ .* which (thread \d+|other threads)"):
        kernels.rotate_in_warps(np.zeros(96, dtype=np.int32), 1, True)


def test_a_barrier_of_a_warp_needs_all_its_lanes() -> None:
    kernels.meet_in_warps(64, -1)
    with pytest.raises(kernels.Error, match="missing lane in a warp barrier: .*, thread 37 of its warp has left"):
        kernels.meet_in_warps(64, 37)
    with pytest.raises(kernels.Error, match="fewer than 32 threads"):
        kernels.meet_in_warps(40, -1)


def factors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of 16 x 16 and 16 x 8, and room for their product."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (16, 16)) / 4, rng.integers(-8, 9, (16, 8)) / 4
    return a.astype(np.float32), b.astype(np.float32), np.full((16, 8), np.nan, dtype=np.float32)


def test_the_matrix_unit_multiplies_both_types() -> None:
    a, b, y = factors()
    kernels.multiply_float16(a.astype(np.float16), b.astype(np.float16), y)
    assert np.array_equal(y, a @ b)
    y.fill(np.nan)
    kernels.multiply_bfloat16(*((each.view(np.uint32) >> 16).astype(np.uint16) for each in (a, b)), y)
    assert np.array_equal(y, a @ b)


def test_the_matrix_unit_multiplies_eight_columns_alone() -> None:
    a, b, y = factors()
    kernels.multiply_in_halves(a.astype(np.float16), b.astype(np.float16), y)
    assert np.array_equal(y, a @ b)


@pytest.mark.parametrize("kernel", ["multiply_with_transposed_factor", "multiply_with_swapped_words"])
def test_a_factor_laid_out_wrongly_gives_another_product(kernel: str) -> None:
    a, b, y = factors()
    getattr(kernels, kernel)(a.astype(np.float16), b.astype(np.float16), y)
    assert np.isfinite(y).all()
    assert not np.allclose(y, a @ b)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_of_matrices_needs_a_barrier_after_their_rows_are_written(seed: int) -> None:
    kernels.set_seed(seed)
    a, b, y = factors()
    with pytest.raises(
        kernels.Error, match=r"race: it (reads|writes) byte \d+ .* which (thread \d+ wrote|its warp read)"
    ):
        kernels.multiply_without_barrier(a.astype(np.float16), b.astype(np.float16), y)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_lanes_get_of_matrices_what_ptx_says(count: int) -> None:
    x = np.random.default_rng(0).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    g, t = np.arange(32) // 4, np.arange(32) % 4
    for name, wanted in ((f"load_{count}", x), (f"load_{count}_transposed", x.transpose(0, 2, 1))):
        words = np.zeros((32, count), dtype=np.uint32)
        getattr(kernels, name)(x, words)
        halves = words.view(np.uint16).reshape(32, count, 2)
        assert np.array_equal(halves, np.stack([wanted[:, g, 2 * t], wanted[:, g, 2 * t + 1]], -1).transpose(1, 0, 2))


def test_words_of_two_values_have_the_first_one_below() -> None:
    assert kernels.float16_pair(1.0, -2.0) == 0xC0003C00
    assert kernels.bfloat16_pair(1.0, -2.0) == 0xC0003F80
    assert kernels.multiply_pair(0x3F80C000, 0x40003F80) == 0x4000C000  # (-2, 1) times (1, 2)
    assert kernels.multiply_pair_float16(0x3C00C000, 0x40003C00) == 0x4000C000


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((1, 1, 1024, 0), "no error"),
        ((1, 65535, 1, 0), "no error"),
        ((1, 1, 1025, 0), "invalid configuration argument"),
        ((1, 1, 0, 0), "invalid configuration argument"),
        ((0, 1, 32, 0), "invalid configuration argument"),
        ((1, 65536, 32, 0), "invalid configuration argument"),
        ((1, 1, 32, 227 << 10), "no error"),
        ((1, 1, 32, (227 << 10) + 1), "invalid argument"),
    ],
)
def test_a_launch_beyond_the_limits_fails_as_with_cuda(sizes: tuple[int, int, int, int], said: str) -> None:
    assert kernels.launch(*sizes) == said


def test_devices_differ_in_the_shared_memory_of_a_block() -> None:
    for device, limit in enumerate(kernels.shared_bytes_of_devices):
        kernels.set_device(device)
        assert kernels.launch(1, 1, 32, limit) == "no error"
        assert kernels.launch(1, 1, 32, limit + 1) == "invalid argument"
    with pytest.raises(ValueError, match="no such device"):
        kernels.set_device(len(kernels.shared_bytes_of_devices))


def test_a_kernel_that_is_not_loaded_cannot_start_while_a_graph_is_captured_but_be_launched() -> None:
    kernels.set_capturing(True)
    assert kernels.start_new() == "operation not permitted when stream is capturing"
    assert kernels.launch_new() == "no error"


def test_a_launch_tells_its_own_failure_alone_and_leaves_none_behind() -> None:
    kernels.fail_earlier()
    assert kernels.launch(1, 1, 32, 0) == "no error"
    assert kernels.last_error() == "out of memory"
    kernels.fail_next_launch()
    assert kernels.launch(1, 1, 32, 0) == "invalid configuration argument"
    assert kernels.last_error() == "no error"
    assert kernels.launch(1, 1, 32, 0) == "no error"


def test_every_half_is_converted_exactly_and_back() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    values = np.array([kernels.half_to_float(int(each)) for each in bits], dtype=np.float32)
    assert np.array_equal(values, halves.astype(np.float32), equal_nan=True)
    back = np.array([kernels.float_to_half(float(each)) for each in values], dtype=np.uint16)
    assert np.array_equal(back[~np.isnan(halves)], bits[~np.isnan(halves)])
    assert np.isnan(back[np.isnan(halves)].view(np.float16)).all()


def test_rounding_to_sixteen_bits_goes_to_the_nearest_and_to_even_between() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4000) * 2.0 ** rng.integers(-30, 20, 4000)).astype(np.float32)
    ties = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, 65504, 65519.996, 65520], dtype=np.float32)
    values = np.concatenate([values, ties, -ties, [0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).view(np.uint16)
    assert [kernels.float_to_half(float(each)) for each in values] == wanted.tolist()

    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, 3.39e38, 3.4e38], dtype=np.float32)
    for value in np.concatenate([values, ties, -ties]):
        bits = int(np.float32(value).view(np.uint32))
        below, rest = bits >> 16, bits & 0xFFFF
        up = rest > 0x8000 or (rest == 0x8000 and below % 2 == 1)
        assert kernels.float_to_bfloat16(float(value)) == below + up
    assert np.isnan(kernels.bfloat16_to_float(kernels.float_to_bfloat16(np.nan)))


def test_kernels_have_no_shared_memory_but_what_the_emulator_checks() -> None:
    files = sorted((ROOT / "csrc/cuda").glob("*.cu*"))
    assert ROOT / "csrc/cuda/device.cuh" in files
    with_raw_memory = [path.name for path in files if "__shared__" in path.read_text()]
    assert with_raw_memory == ["device.cuh"]
