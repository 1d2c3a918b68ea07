"""What docs/scale.md says: its counts against formulas by hand, and that each device's part of a matrix is right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import scale
from build_support.ninja import ROOT
from surm_kernels import dense
from surm_kernels.structures import Hydra

M, N = 12, 8  # of the matrices that are split
PARTS = 4


def test_counts_are_those_of_the_formulas() -> None:
    q, v = ("q",), ("q", "v")
    assert scale.trained("LoRA r = 8", v) == 32 * 2 * 8 * (4096 + 4096) == 4_194_304
    assert scale.trained("SURM circulant", v) == 32 * 2 * 2 * 4096
    assert scale.trained("SURM LDR r = 4", q) == 32 * 32_768  # the paper's count for a matrix of Llama-2-7B
    assert scale.trained("SURM Kronecker", q) == 32 * 2 * 64 * 64
    assert scale.trained("block circulant b = 256", ("down",)) == 32 * 4096 * 11008 // 256
    assert scale.constants_bytes("SiVA, k = 2,048", v) == 2 * 64 * 2 * 4096 * 2048
    assert scale.constants_bytes("SURM circulant", v) == 0


def test_ten_thousand_circulant_adapters_are_164_megabytes_a_layer() -> None:
    assert 10_000 * scale.served_bytes("SURM circulant") // scale.LAYERS == 10_000 * 2 * 4096 * 2 == 163_840_000


def test_a_step_is_bytes_and_operations_over_what_the_device_can_do() -> None:
    step = scale.Step.of(("q",), tokens=1000)
    assert step.frozen == pytest.approx(32 * 4 * 4096**2 * 1000 / scale.OPERATIONS)
    assert step.merge == pytest.approx(32 * 4 * 4096**2 / scale.BANDWIDTH)
    assert step.pullback == pytest.approx(32 * 2 * 2 * 4096 * 1000 / scale.BANDWIDTH)
    # Merging pays where it moves less than what direct moves more, which is what the cost model counts.
    tokens = scale.break_even_by_traffic(scale.Circulant(4096, 4096))
    even = scale.Step.of(("q",), tokens=1)
    assert even.merge == pytest.approx(tokens * (even.direct - even.pullback))


def test_the_rate_of_a_copy_is_the_one_of_the_kernels_page() -> None:
    assert f"{scale.BANDWIDTH / 1e12:.1f} TB/s" in (ROOT / "docs" / "gpu-kernels.md").read_text()


def rows_of(index: int, count: int) -> slice:
    """The part of a device among all, of so many."""
    return slice(index * count // PARTS, (index + 1) * count // PARTS)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def circulant() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    c = numbers(N)

    def part(rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        first = rows.start - columns.stop + 1  # the diagonal of the top right corner
        return dense.toeplitz(c[torch.arange(first, first + height + width - 1) % N], width)

    return dense.circulant(c), part


def toeplitz() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    t = numbers(M + N - 1)

    def part(rows: slice, columns: slice) -> Tensor:
        first = rows.start - columns.stop + N
        return dense.toeplitz(t[first : first + rows.stop - rows.start + columns.stop - columns.start - 1],
                              columns.stop - columns.start)  # fmt: skip

    return dense.toeplitz(t, N), part


def hankel() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    h = numbers(M + N - 1)
    return dense.hankel(h, N), lambda rows, columns: dense.hankel(
        h[rows.start + columns.start : rows.stop + columns.stop - 1], columns.stop - columns.start
    )


def block_circulant() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    c, size = numbers(4, 4, 3), 3
    return dense.block_circulant(c), lambda rows, columns: dense.block_circulant(
        c[rows.start // size : rows.stop // size, columns.start // size : columns.stop // size]
    )


def kronecker() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    A, B = numbers(4, 4), numbers(3, 2)
    return dense.kronecker(A, B), lambda rows, columns: dense.kronecker(
        A[rows.start // 3 : rows.stop // 3, columns.start // 2 : columns.stop // 2], B
    )


def low_rank() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    A, B = numbers(2, N), numbers(M, 2)
    return dense.low_rank(A, B), lambda rows, columns: dense.low_rank(A[:, columns], B[rows])


def siva() -> tuple[Tensor, Callable[[slice, slice], Tensor]]:
    U, s, V = numbers(M, 3), numbers(3), numbers(N, 3)
    return dense.siva(U, s, V), lambda rows, columns: dense.siva(U[rows], s, V[columns])


SPLIT = (circulant, toeplitz, hankel, block_circulant, kronecker, low_rank, siva)


@pytest.mark.parametrize("make", SPLIT, ids=lambda make: make.__name__)
def test_a_devices_part_of_rows_or_columns_is_of_the_same_kind(make) -> None:
    whole, part = make()
    outputs, inputs = whole.shape
    for index in range(PARTS):
        rows, columns = rows_of(index, outputs), rows_of(index, inputs)
        torch.testing.assert_close(part(rows, slice(0, inputs)), whole[rows], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part(slice(0, outputs), columns), whole[:, columns], rtol=1e-12, atol=1e-12)


def test_a_devices_rows_of_hydras_blocks_read_the_whole_pool() -> None:
    structure = Hydra(16, 16, splits=4, structure="circulant", pool_size=10)
    pool = numbers(10).requires_grad_()
    (gradient,) = torch.autograd.grad(structure.dense(pool)[:4].square().sum(), pool)
    assert (gradient != 0).all()


def test_no_part_of_a_toeplitz_like_matrix_is_one_of_the_same_rank() -> None:
    """What is low is the displacement rank of the whole."""
    G, H = numbers(1, N), numbers(1, N)
    whole = dense.toeplitz_like(G, H)
    first, second = whole[: N // 2, : N // 2], whole[N // 2 :, : N // 2]
    ranks = [torch.linalg.matrix_rank(_displaced(block), rtol=1e-9).item() for block in (whole, first, second)]
    assert ranks[0] == 1
    assert min(ranks[1:]) > 1


def _displaced(matrix: Tensor) -> Tensor:
    """Z_1 W - W Z_-1."""
    shifted = matrix.roll(1, 0)
    right = matrix.roll(-1, 1)
    right[:, -1] *= -1
    return shifted - right
