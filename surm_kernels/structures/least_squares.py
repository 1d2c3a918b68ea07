"""The nearest Toeplitz-like matrix by alternating least squares, in the Fourier domain.

With the Fourier matrix F and D = diag(exp(i pi j / n)), Z_1(g) = F^-1 diag(fft(g)) F and Z_-1(h) = D^-1 F^-1
diag(fft(D h)) F D (Pan, Structured Matrices and Polynomials, section 2.6). So F W D^-1 F^-1, which has the norm of W,
is K * (sum_l fft(g_l) fft(D h_l)^T), elementwise, with the circulant K = F D^-1 F^-1. To be near to W is therefore a
low rank approximation of E = F W D^-1 F^-1 / K with the weights |K|^2: for fixed H one small problem a row, for fixed
G one a column.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def nearest_generators(
    weight: Tensor, rank: int, iterations: int, tolerance: float, progress: Callable[[int, float], None] | None
) -> tuple[Tensor, Tensor]:
    """Real G and H, (rank, n), with sum_l Z_1(g_l) Z_-1(h_l) near to weight, (n, n), in float64.

    The distance is that of the truncated displacement at the start and never increases.
    """
    weight = weight.double()
    twist, weights, displacement = _transformed(weight)
    size = weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)

    def distance(G: Tensor, H: Tensor) -> float:
        difference = displacement - torch.fft.fft(G).T @ torch.fft.fft(twist * H)
        return ((weights * difference.abs().square()).sum().sqrt() / size).item()

    G, H = _truncated_displacement(weight, rank)
    nearest = distance(G, H)
    for iteration in range(1, iterations + 1):
        row_factor = _solved(weights, displacement, torch.fft.fft(twist * H).T).T
        next_G = torch.fft.ifft(row_factor).real
        column_factor = _solved(weights.T, displacement.T, torch.fft.fft(next_G).T).T
        next_H = (torch.fft.ifft(column_factor) * twist.conj()).real
        reached = distance(next_G, next_H)
        gain = nearest - reached
        if gain > 0:
            G, H, nearest = next_G, next_H, reached
        if progress is not None:
            progress(iteration, nearest)
        if gain <= tolerance * nearest:
            break
    return G, H


def _transformed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(i pi j / n), the weights |K|^2 and the matrix E."""
    index = torch.arange(len(weight), device=weight.device)
    angle = index.double() * (torch.pi / len(weight))
    twist = torch.polar(torch.ones_like(angle), angle)
    column = torch.fft.fft(twist.conj()) / len(weight)
    kernel = column[(index[:, None] - index) % len(weight)]
    spectrum = torch.fft.ifft(torch.fft.fft(weight, dim=0) * twist.conj(), dim=1)
    return twist, kernel.abs().square(), spectrum / kernel


def _truncated_displacement(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Generators from the leading singular vectors of Z_1 W - W Z_-1: a matrix of the structure comes back exactly."""
    shifted = torch.cat([weight[:, 1:], -weight[:, :1]], 1)
    U, S, V = torch.linalg.svd(weight.roll(1, 0) - shifted)
    root = S[:rank].sqrt()
    missing = max(rank - len(S), 0)
    G, H = (torch.nn.functional.pad(t, (0, 0, 0, missing)) for t in ((U[:, :rank] * root).T, root[:, None] * V[:rank]))
    return G / 2, H.flip(-1)


def _solved(weights: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """X with the least sum_b weights[a, b] |values[a, b] - sum_l X[a, l] factor[b, l]|^2 for every a, by (n, rank)."""
    rank = factor.shape[1]
    pairs = (factor.conj()[:, :, None] * factor[:, None, :]).flatten(1)
    gram = torch.view_as_complex((weights @ torch.view_as_real(pairs).flatten(1)).unflatten(1, (-1, 2)))
    right = (weights * values) @ factor.conj()
    inverse = torch.linalg.pinv(gram.unflatten(1, (rank, rank)), rtol=1e-13, hermitian=True)
    return (inverse @ right[:, :, None]).squeeze(2)
