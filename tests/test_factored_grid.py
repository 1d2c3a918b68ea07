"""A layer's one operator gives what views, products of parameters and kernel give one by one, and the dense matrix."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from surm_kernels import _extension
from surm_kernels.ops.factored_grid import factored_grid, factored_grid_gradients
from surm_kernels.ops.grid import grid, grid_backward, grid_pullback
from tests import oracle
from tests.grids import DTYPES, EVERY_KIND, Grid, grid_of, grids_in_turns, kind_cases
from tests.turns import cases

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SIZES = ((1, 1), (2, 2), (5, 3), (3, 5), (63, 64), (97, 97), (768, 768), (300, 1000))
BLOCKS = ((5, 5, 2, 3), (12, 97, 1, 4), (64, 33, 3, 2))
SCALE = 0.75


def factors_of(w: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two, as a layer has them: vectors of one block, else (M, K, values)."""
    v, factor = w.values(1, dtype).squeeze(0), w.values(1, dtype).squeeze(0)
    return (v.flatten(), factor.flatten()) if w.outputs * w.inputs == 1 else (v, factor)


def size(scale: float, a: Tensor, b: Tensor, terms: int) -> float:
    """Of a sum of so many products, for errors where it cancels."""
    return scale * a.double().norm().item() * b.double().norm().item() / terms**0.5


def assert_equals_the_steps(w: Grid, dtype: torch.dtype, tokens: int, factored: bool) -> None:
    v, other = factors_of(w, dtype)
    factor = other if factored else None
    values = (v * other if factored else v).view(1, w.outputs, w.inputs, -1)
    dense = w.matrices(values)[0]
    (x, g), bias = w.tokens(1, tokens, dtype), torch.randn(w.outputs * w.rows).to(dtype)
    rows, cotangents = x.squeeze(0), g.squeeze(0)

    for added in (None, bias):
        base = None if added is None else added.expand(1, tokens, -1)
        y = factored_grid(rows, v, factor, added, w.kind, w.columns, SCALE)
        assert torch.equal(y, grid(x, values, base, w.kind, w.columns, SCALE, False).squeeze(0))
        if added is None:
            oracle.assert_close(y, SCALE * rows.double() @ dense.T, "y", size(SCALE, rows, dense, w.inputs * w.columns))

    for input_gradient in (True, False):
        found = factored_grid_gradients(cotangents, rows, v, factor, w.kind, w.columns, SCALE, input_gradient)
        if input_gradient:
            x_gradient, gradient = grid_backward(g, x, values, w.kind, w.columns, SCALE, False)
            of_x = found.pop(0)
            assert torch.equal(of_x, x_gradient.squeeze(0))
            exact = SCALE * cotangents.double() @ dense
            oracle.assert_close(of_x, exact, "gradient of x", size(SCALE, cotangents, dense, w.outputs * w.rows))
        else:
            gradient = grid_pullback(g, x, w.kind, w.rows, w.columns, SCALE)
        sums = w.pullback(SCALE * g.double(), x)
        oracle.assert_close(gradient, sums, "gradient of the values", size(SCALE, g, x, max(tokens, 1)))
        gradient = gradient.view(v.shape)
        expected = [gradient * other, gradient * v] if factored else [gradient]
        assert len(found) == len(expected)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@cases("w, dtype", grids_in_turns([*SIZES, *BLOCKS], DTYPES))
def test_it_equals_the_steps_bit_for_bit(w: Grid, dtype: torch.dtype) -> None:
    for tokens in (0, 1, 17):
        for factored in (False, True):
            assert_equals_the_steps(w, dtype, tokens, factored)


@kind_cases
def test_rows_may_be_any_strided_ones(kind: int) -> None:
    w = grid_of(kind, 12, 12)
    v, factor = factors_of(w, torch.float32)
    x, g = torch.randn(12, 7).T, torch.randn(7, 40)[:, 5:17]
    expected = factored_grid(x.contiguous(), v, factor, None, kind, 12, SCALE)
    assert torch.equal(factored_grid(x, v, factor, None, kind, 12, SCALE), expected)
    theirs = factored_grid_gradients(g.contiguous(), x.contiguous(), v, factor, kind, 12, SCALE, True)
    ours = factored_grid_gradients(g, x, v.repeat(2)[: len(v)], factor, kind, 12, SCALE, True)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("factored", [False, True])
def test_torch_compile_sees_their_shapes(factored: bool) -> None:
    for kind in EVERY_KIND:
        w = grid_of(kind, 6, 6, 2, 3)
        v, other = factors_of(w, torch.float32)
        (x, g), factor = w.tokens(1, 5), other if factored else None
        tests = ("test_schema", "test_faketensor")
        opcheck(factored_grid, (x[0], v, factor, None, kind, 6, SCALE), test_utils=tests)
        for input_gradient in (True, False):
            arguments = (g[0], x[0], v, factor, kind, 6, SCALE, input_gradient)
            opcheck(factored_grid_gradients, arguments, test_utils=tests)


@pytest.mark.skipif(not _extension.available, reason="the reference checks nothing: torch does")
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"x": torch.randn(3, 7)}, "x.shape"),
        ({"x": torch.randn(1, 3, 8)}, "x must have 2 dimensions"),
        ({"v": torch.randn(2, 8)}, "v must have 1 or 3 dimensions"),
        ({"factor": torch.randn(9)}, "factor"),
        ({"factor": torch.randn(8).double()}, "factor has another dtype"),
        ({"bias": torch.randn(7)}, "bias.shape"),
        ({"bias": torch.randn(8).double()}, "bias has another dtype"),
    ],
)
def test_a_direct_call_is_kept_from_reading_out_of_bounds(changed: dict[str, Tensor], named: str) -> None:
    sound = {"x": torch.randn(3, 8), "v": torch.randn(8), "factor": torch.randn(8), "bias": torch.randn(8)}
    with pytest.raises(RuntimeError, match=named):
        factored_grid(*(sound | changed).values(), 0, 8, 1.0)
