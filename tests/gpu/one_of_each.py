"""One small call of every kernel, for compute-sanitizer: `compute-sanitizer python -m tests.gpu.one_of_each`.

Results are compared roughly; the sanitizer looks at the accesses. What a forced backend does not serve is left out.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from surm_kernels.block_kinds import HANKEL, SKEW_CIRCULANT
from tests import oracle, updates
from tests.gpu import DEVICE, MISSING, tune_nothing
from tests.grids import Grid, grid_of

DTYPES = (torch.float32, torch.bfloat16)
# A product of small primes, a prime for Bluestein, one of several threads a transform, a grid.
GRIDS = (
    *(grid_of(SKEW_CIRCULANT, *shape) for shape in ((12, 12), (97, 97), (768, 768), (64, 64, 2, 3))),
    *(grid_of(HANKEL, *shape) for shape in ((12, 12), (33, 97), (384, 256))),
)
TOLERANCE = 0.02


def close(got: Tensor, exact: Tensor) -> None:
    error = oracle.error(got.cpu(), exact)
    assert error <= TOLERANCE, f"off by {error:.1e}"


def grid(dtype: torch.dtype, w: Grid) -> None:
    """All operators of one grid."""
    ops, (kind, outputs, inputs, rows, columns) = torch.ops.surm_kernels, w
    values, (x, g) = w.values(1, dtype), w.tokens(1, 19, dtype)
    (W,), (wanted,) = w.matrices(values), w.pullback(g, x)
    values_, x_, g_ = (tensor.to(DEVICE) for tensor in (values, x, g))
    close(ops.grid(x_, values_, g_, kind, columns, 1.0, False)[0], (g.double() + x.double() @ W.T)[0])
    close(ops.grid(g_, values_, None, kind, columns, 1.0, True)[0], g[0].double() @ W)
    close(ops.grid_pullback(g_, x_, kind, rows, columns, 1.0)[0], wanted)
    x_gradient, gradient = ops.grid_backward(g_, x_, values_, kind, columns, 1.0, False)
    close(x_gradient[0], g[0].double() @ W)
    close(gradient[0], wanted)
    close(ops.grid_backward(x_, g_, values_, kind, columns, 1.0, True)[1][0], wanted)
    spectrum = ops.grid_spectrum(values_, kind, columns, False)
    y = ops.grid_by_spectrum(x_, spectrum, None, kind, outputs, inputs, rows, columns, 1.0)
    close(y[0], x[0].double() @ W.T)
    close(ops.grid_dense(values_, kind, columns)[0], W)
    sums = ops.grid_dense_adjoint(W[None].to(DEVICE, dtype), kind, rows, columns)
    close(sums[0], w.sums(W[None].to(dtype))[0])


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
        *((f"grid {w}", grid, w) for w in GRIDS),
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
