"""What the launchers of the CUDA kernels do on devices of other sizes, with their tables, and in a captured graph."""

import ctypes

import pytest
import torch

from surm_kernels import _extension
from surm_kernels._namespace import CUDA_NAMESPACE
from surm_kernels.block_kinds import CIRCULANT, KINDS, SKEW_CIRCULANT, TOEPLITZ
from tests import oracle
from tests.emulator.build import emulated_kernels
from tests.emulator.stand_in import as_it_was

pytestmark = pytest.mark.usefixtures("poisoned_memory")

operators = getattr(torch.ops, CUDA_NAMESPACE)
TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/shapes.h

device_cases = pytest.mark.parametrize("device", [0, 1, 2])


@pytest.fixture(scope="module")
def built():
    if not _extension.available:
        pytest.skip("the emulated kernels are tested once, beside the compiled library")
    return emulated_kernels()


@pytest.fixture(autouse=True)
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose shared memory the dispatcher asks for; transforms on tensor cores fall back to them."""
    monkeypatch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")


@pytest.fixture
def kernels(built):
    yield from as_it_was(built)


def fails_as_too_large(call) -> bool:
    """Whether a call is refused because it does not fit, and in no other way."""
    try:
        call()
    except RuntimeError as error:
        assert "the working set does not fit the shared memory of this device" in str(error)
        return True
    return False


CIRCULANT_GRIDS = [
    (1, 1, 2048, 2048),
    (1, 1, 4096, 4096),
    (1, 1, 16384, 16384),
    (1, 1, 11008, 11008),
    (2, 3, 2048, 2048),
]
TOEPLITZ_GRIDS = [(1, 1, 1000, 3000), (1, 1, 4096, 4096), (1, 1, 8192, 8192)]


@device_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [*((CIRCULANT, sizes) for sizes in CIRCULANT_GRIDS), *((TOEPLITZ, sizes) for sizes in TOEPLITZ_GRIDS)],
    ids=str,
)
def test_a_grid_runs_exactly_where_its_shared_memory_fits(
    kind: int, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: int, kernels
) -> None:
    kernels.set_device(device)
    outputs, inputs, rows, columns = sizes
    values = torch.randn(1, outputs, inputs, KINDS[kind].values(rows, columns)).to(dtype)
    x, g = torch.randn(1, 2, inputs * columns).to(dtype), torch.randn(1, 2, outputs * rows).to(dtype)
    calls = {
        False: lambda: operators.grid(x, values, None, kind, columns, 1.0, False),
        True: lambda: operators.grid_backward(g, x, values, kind, columns, 1.0, False),
    }
    wanted = {gradient: shared_bytes(kernels, "grid", TYPES[dtype], kind, *sizes, gradient) for gradient in calls}
    assert_fits(calls, wanted, kernels, device)


@device_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("rank", "size"), [(4, 1024), (1, 2048), (2, 4096), (2, 8192)])
def test_ldr_runs_exactly_where_its_shared_memory_fits(rank, size, dtype: torch.dtype, device: int, kernels) -> None:
    kernels.set_device(device)
    left, right = torch.randn(1, rank, size, dtype=dtype), torch.randn(1, rank, size, dtype=dtype)
    x = torch.randn(1, 2, size, dtype=dtype)
    calls = {
        False: lambda: operators.ldr(x, left, right, None, size, 1.0, False, False),
        True: lambda: operators.ldr_backward(x, x, left, right, 1.0, False),
    }
    wanted = {kind: shared_bytes(kernels, "ldr", TYPES[dtype], rank, size, kind) for kind in calls}
    assert_fits(calls, wanted, kernels, device)


def shared_bytes(kernels, primitive: str, *arguments: int) -> int:
    """What the library tells the dispatcher that a product, or a gradient, needs of shared memory."""
    function = getattr(ctypes.CDLL(kernels.__file__), f"surm_kernels_cuda_{primitive}_shared_bytes")
    function.restype = ctypes.c_int64
    return function(*(ctypes.c_int64(each) for each in arguments))


def assert_fits(calls, wanted, kernels, device: int) -> None:
    """Each call runs if and only if what it wants fits, in no more than the device has and no less than it said."""
    for gradient, call in calls.items():
        fits = wanted[gradient] <= kernels.shared_bytes_of_devices[device]
        assert fails_as_too_large(call) != fits
        taken = [launch.shared_bytes for launch in kernels.take_launches()]
        assert not fits or max(taken) >= wanted[gradient]


def test_what_does_not_fit_names_the_operator_and_its_sizes(kernels) -> None:
    x, v = torch.randn(3, 2, 16384).double(), torch.randn(3, 1, 1, 16384).double()
    with pytest.raises(RuntimeError, match="grid with 1 x 1 blocks of 16384 x 16384 and 3 x 2 tokens failed"):
        operators.grid(x, v, None, CIRCULANT, 16384, 1.0, False)
    with pytest.raises(RuntimeError, match="grid_pullback with 1 x 1 blocks of 16384 x 16384 and 3 x 2 tokens failed"):
        operators.grid_pullback(x, x, CIRCULANT, 16384, 16384, 1.0)


def test_tables_are_uploaded_once_for_every_device_and_size(kernels) -> None:
    def uploads(size: int) -> int:
        before = kernels.allocations()
        operators.grid(torch.randn(1, 2, size), torch.randn(1, 1, 1, size), None, CIRCULANT, size, 1.0, False)
        return kernels.allocations() - before

    assert [uploads(1760), uploads(1760), uploads(1280)] == [1, 0, 1]
    kernels.set_device(1)
    assert [uploads(1760), uploads(1760)] == [1, 0]


def product(size: int) -> None:
    """A product of a size, held to the dense matrix."""
    x, v = torch.randn(1, 2, size), torch.randn(1, 1, 1, size)
    oracle.assert_close(operators.grid(x, v, None, CIRCULANT, size, 1.0, False), x.double() @ oracle.matrix(v[0], 1).T)


def test_a_kernel_is_granted_the_most_shared_memory_of_each_device_once_and_for_all(kernels) -> None:
    for device in (0, 1, 0):
        kernels.set_device(device)
        for size in (8192, 4096, 8192):  # the second takes less
            product(size)
    grants = kernels.grants()
    assert {device for _, device, _ in grants} >= {0, 1}
    assert all(granted == kernels.shared_bytes_of_devices[device] for _, device, granted in grants)
    assert len({(kernel, device) for kernel, device, _ in grants}) == len(grants)


def test_a_failure_of_somebody_before_is_not_that_of_a_product(kernels) -> None:
    kernels.fail_earlier()
    product(12)


def test_a_product_that_cannot_start_says_so_and_the_next_is_right(kernels) -> None:
    kernels.fail_next_launch()
    with pytest.raises(RuntimeError, match="grid with .* failed on CUDA: invalid configuration argument"):
        product(12)
    assert kernels.last_error() == "no error"
    product(12)


def test_tables_that_found_no_memory_are_uploaded_by_the_next_call(kernels) -> None:
    kernels.fail_next_allocation()
    with pytest.raises(RuntimeError, match="failed on CUDA: out of memory"):
        product(1056)
    assert kernels.last_error() == "no error"
    product(1056)


@pytest.mark.parametrize("size", [880, 1320])
def test_a_size_may_be_new_while_a_graph_is_captured(size: int, kernels) -> None:
    x, v = torch.randn(1, 2, size), torch.randn(1, 1, 1, size)
    kernels.set_capturing(True)
    assert kernels.refuses_allocations()
    y = operators.grid(x, v, None, SKEW_CIRCULANT, size, 1.0, False)
    assert kernels.refuses_allocations()
    oracle.assert_close(y, x.double() @ oracle.matrix(v[0], -1).T)
    operators.grid_backward(x, x, v, SKEW_CIRCULANT, size, 1.0, False)
