"""One small call of every kernel, for compute-sanitizer: `compute-sanitizer python -m tests.gpu.one_of_each`.

Results are compared roughly; the sanitizer looks at the accesses. What a forced backend does not serve is left out.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tests import oracle, updates
from tests.gpu import DEVICE, MISSING, tune_nothing

DTYPES = (torch.float32, torch.bfloat16)
# A product of small primes, a prime for Bluestein, one of several threads a transform, a grid.
BLOCKS = ((1, 1, 12), (1, 1, 97), (1, 1, 768), (2, 3, 64))
RECTANGLES = ((12, 12), (33, 97), (384, 256))
TOLERANCE = 0.02


def close(got: Tensor, exact: Tensor) -> None:
    error = oracle.error(got.cpu(), exact)
    assert error <= TOLERANCE, f"off by {error:.1e}"


def krylov(dtype: torch.dtype, grid: tuple[int, int, int]) -> None:
    """All operators of one grid."""
    ops = torch.ops.surm_kernels
    outputs, inputs, block = grid
    v = torch.randn(1, *grid).to(dtype)
    x, g = (torch.randn(1, 19, count * block).to(dtype) for count in (inputs, outputs))
    W = oracle.matrix(v[0], -1)
    v_, x_, g_ = (tensor.to(DEVICE) for tensor in (v, x, g))
    close(ops.krylov(x_, v_, g_, -1, 1.0, False)[0], (g.double() + x.double() @ W.T)[0])
    close(ops.krylov(g_, v_, None, -1, 1.0, True)[0], g[0].double() @ W)
    wanted = oracle.diagonal_sums(g[0].double().T @ x[0].double(), block, -1)
    close(ops.krylov_pullback(g_, x_, block, -1, 1.0)[0], wanted)
    close(ops.krylov_backward(g_, x_, v_, -1, 1.0, False)[1][0], wanted)
    spectrum = ops.krylov_spectrum(v_, -1, False)
    close(ops.krylov_by_spectrum(x_, spectrum, None, outputs, inputs, block, -1, 1.0)[0], x[0].double() @ W.T)
    close(ops.krylov_dense(v_, -1)[0], W)
    close(ops.krylov_dense_adjoint(W[None].to(DEVICE, dtype), block, -1)[0], oracle.diagonal_sums(W, block, -1))


def toeplitz(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """All operators of one rectangle."""
    ops = torch.ops.surm_kernels
    rows, columns = shape
    t = torch.randn(1, 1, 1, rows + columns - 1).to(dtype)
    x, g = (torch.randn(1, 19, size).to(dtype) for size in (columns, rows))
    W = oracle.hankel(t[0], columns)
    t_, x_, g_ = (tensor.to(DEVICE) for tensor in (t, x, g))
    close(ops.toeplitz(x_, t_, g_, columns, 1.0, False, True)[0], (g.double() + x.double() @ W.T)[0])
    close(ops.toeplitz(g_, t_, None, columns, 1.0, True, True)[0], g[0].double() @ W)
    close(ops.toeplitz_backward(g_, x_, t_, columns, 1.0, True)[0][0], g[0].double() @ W)
    ops.toeplitz_pullback(g_, x_, rows, columns, 1.0, True)
    spectrum = ops.toeplitz_spectrum(t_, columns, False, True)
    close(ops.toeplitz_by_spectrum(x_, spectrum, None, 1, 1, rows, columns, 1.0, True)[0], x[0].double() @ W.T)
    close(ops.toeplitz_dense(t_, columns, True)[0], W)
    ops.toeplitz_dense_adjoint(W[None].to(DEVICE, dtype), rows, columns, True)


def structure(dtype: torch.dtype, name: str) -> None:
    """What an adapted layer asks of a structure."""
    made = updates.SQUARES[name]
    parameters = updates.parameters_of(made, dtype)
    moved = [parameter.to(DEVICE) for parameter in parameters]
    g, x = (torch.randn(19, size).to(dtype) for size in (made.out_features, made.in_features))
    W = updates.matrix(made, parameters, dtype)
    close(made.linear(x.to(DEVICE), *moved), x.double() @ W.T)
    close(made.gradients(g.to(DEVICE), x.to(DEVICE), *moved)[0], g.double() @ W)
    made.merge(torch.zeros(W.shape, dtype=dtype, device=DEVICE), *moved)


def calls() -> list[tuple[str, Callable[..., None], object]]:
    """Every call by name."""
    return [
        *((f"krylov {grid}", krylov, grid) for grid in BLOCKS),
        *((f"toeplitz {shape}", toeplitz, shape) for shape in RECTANGLES),
        *((name, structure, name) for name in updates.SQUARES),
    ]


def main() -> int:
    """Runs all; 1 where a result is wrong or a call fails."""
    if MISSING:
        print(f"one_of_each: {MISSING}", file=sys.stderr)
        return 2
    tune_nothing()
    torch.manual_seed(0)
    counts = {"ran": 0, "not served": 0, "failed": 0}
    for name, call, argument in calls():
        for dtype in DTYPES:
            try:
                call(dtype, argument)
                outcome = "ran"
            except Exception as error:
                outcome = "not served" if "SURM_KERNELS_BACKEND=" in str(error) else "failed"
                if outcome == "failed":
                    print(f"{name}, {dtype}: {type(error).__name__}: {error}", flush=True)
            counts[outcome] += 1
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] or not counts["ran"] else 0


if __name__ == "__main__":
    sys.exit(main())
