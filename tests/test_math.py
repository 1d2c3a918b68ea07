"""The formulas of docs/math.md, against dense matrices in float64."""

import pytest
import torch
from torch import Tensor

from surm_kernels import convert, dense
from surm_kernels.structures import Kronecker

N = 8
ETA = torch.exp(1j * torch.pi * torch.arange(N, dtype=torch.float64) / N)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def displaced(matrix: Tensor) -> Tensor:
    """Z_1 W − W Z_-1, with the shifts as matrices."""
    shift = torch.diag(torch.ones(N - 1, dtype=torch.float64), -1)
    corner = torch.zeros_like(shift)
    corner[0, -1] = 1
    return (shift + corner) @ matrix - matrix @ (shift - corner)


@pytest.mark.parametrize("f", [-2.0, -1.0, 0.0, 0.3, 1.0])
def test_a_krylov_matrix_has_powers_of_the_shift_for_columns_and_is_linear_in_f(f: float) -> None:
    v = numbers(N)
    shift = torch.diag(torch.ones(N - 1, dtype=torch.float64), -1)
    shift[0, -1] = f
    columns = [torch.linalg.matrix_power(shift, power) @ v for power in range(N)]
    same(dense.krylov(v, f), torch.stack(columns, 1))
    same(dense.krylov(v, f), (1 + f) / 2 * dense.circulant(v) + (1 - f) / 2 * dense.skew_circulant(v))


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (dense.circulant(numbers(N)), 1),
        (dense.toeplitz(numbers(2 * N - 1), N), 2),
        (dense.symmetric_toeplitz(numbers(N)) @ dense.symmetric_toeplitz(numbers(N).flip(0)), 4),
        (dense.toeplitz_like(numbers(3, N), numbers(3, N).flip(0)), 3),
    ],
    ids=["circulant", "Toeplitz", "product", "Toeplitz-like"],
)
def test_what_is_low_is_the_displacement_rank(matrix: Tensor, rank: int) -> None:
    assert torch.linalg.matrix_rank(displaced(matrix), rtol=1e-10) == rank
    assert torch.linalg.matrix_rank(matrix) == N


def test_a_displacement_gives_its_matrix() -> None:
    G, H = numbers(2, N), numbers(2, N).flip(0)
    matrix = sum(dense.krylov(g, 1) @ dense.krylov(h.flip(0), -1) for g, h in zip(G, H, strict=True)) / 2
    same(displaced(matrix), G.T @ H)
    same(dense.toeplitz_like(*convert.toeplitz_like_from_displacement(G, H)), matrix)


def test_transforms_make_the_fast_products() -> None:
    v, x = numbers(N), numbers(N).flip(0)
    same(torch.fft.irfft(torch.fft.rfft(v) * torch.fft.rfft(x), n=N), dense.circulant(v) @ x)
    product = torch.fft.ifft(torch.fft.fft(ETA * v) * torch.fft.fft(ETA * x))
    same((ETA.conj() * product).real, dense.skew_circulant(v) @ x)


def test_a_toeplitz_matrix_is_the_sum_of_a_circulant_and_a_skew_circulant_one() -> None:
    t = numbers(2 * N - 1)
    below, above = t[N - 1 :], torch.cat([t.new_zeros(1), t[: N - 1]])  # t_k and t_{k - n} for k = 0 … n - 1
    a, b = (below + above) / 2, (below - above) / 2
    same(dense.circulant(a) + dense.skew_circulant(b), dense.toeplitz(t, N))
    same(dense.hankel(t, N), dense.toeplitz(t, N).flip(1))


def test_transposes_are_of_the_same_kind() -> None:
    v = numbers(N)
    back = torch.cat([v[:1], v[1:].flip(0)])
    same(dense.circulant(v).T, dense.circulant(back))
    same(dense.skew_circulant(v).T, dense.skew_circulant(torch.cat([v[:1], -v[1:].flip(0)])))


def test_the_pullback_of_two_tokens_in_one_complex_row() -> None:
    v = numbers(N).requires_grad_()
    x, g = numbers(2, N), numbers(2, N).flip(0)
    (wanted,) = torch.autograd.grad((g * (x @ dense.circulant(v).T)).sum(), v)
    one_by_one = torch.fft.irfft(torch.fft.rfft(x).conj() * torch.fft.rfft(g), n=N).sum(0)
    same(one_by_one, wanted)
    z, y = torch.complex(x[0], x[1]), torch.complex(g[0], g[1])
    same(torch.fft.ifft(torch.fft.fft(y) * torch.fft.fft(z).conj()).real, wanted)


def test_a_kronecker_product_is_two_matrix_products() -> None:
    A, B, x = numbers(4, 3), numbers(2, 5), numbers(15)
    same(dense.kronecker(A, B) @ x, (A @ x.reshape(3, 5) @ B.T).flatten())
    assert Kronecker(768, 768).token_work() == 36_864
