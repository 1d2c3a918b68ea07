"""What torch.utils.flop_counter.FlopCounterMode counts for each operator: the nominal work that the cost model has.

A product takes the work of its form for every token, and so does each gradient; forming W takes the form's work of
merging. Two operations are a multiplication and an addition, as torch counts a matrix product.

torch.utils.flop_counter imports Triton, so nothing is registered before somebody else imports it.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from surm_kernels._namespace import NAMESPACE
from surm_kernels.block_kinds import KINDS
from surm_kernels.ops import diagonal, generated, grid, kronecker, ldr
from surm_kernels.ops._primitive import Form, Primitive, transform_work

COUNTER = "torch.utils.flop_counter"

Formula = Callable[..., int]


def _tokens(rows: Tensor) -> int:
    return rows.shape[:-1].numel()


def _products(form: Form, rows: Tensor, arguments: Sequence[Tensor], *constants: Any, results: int = 1) -> int:
    """A result of a product's cost, or several, for tokens like rows."""
    return round(2 * results * _tokens(rows) * Primitive(form, tuple(arguments), constants).work.token)


def _formed(form: Form, arguments: Sequence[Tensor], *constants: Any) -> int:
    """A matrix for every problem."""
    return round(2 * arguments[0].shape[0] * Primitive(form, tuple(arguments), constants).work.merge)


def _shaped(*shape: int) -> Tensor:
    """An argument of a problem, of which the work depends on the shape alone."""
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _grid_values(outputs: int, inputs: int, kind: int, rows: int, columns: int) -> Tensor:
    """Values for a matrix of outputs x inputs."""
    return _shaped(1, outputs // rows, inputs // columns, KINDS[kind].values(rows, columns))


def _grid_pullback(g: Tensor, x: Tensor, kind: int, rows: int, columns: int, scale: float) -> int:
    values = _grid_values(g.shape[-1], x.shape[-1], kind, rows, columns)
    return _products(grid.form, x, [values], kind, columns)


def _grid_dense_adjoint(w: Tensor, kind: int, rows: int, columns: int) -> int:
    problems, outputs, inputs = w.shape
    return problems * _formed(grid.form, [_grid_values(outputs, inputs, kind, rows, columns)], kind, columns)


def _grid_spectrum(values: Tensor, kind: int, columns: int, transposed: bool) -> int:
    rows = KINDS[kind].rows(values.shape[-1], columns)
    return round(values.shape[:-1].numel() * transform_work(KINDS[kind].transform(rows, columns)))  # and not back


def _grid_by_spectrum(
    x: Tensor,
    spectrum: Tensor,
    base: Tensor | None,
    kind: int,
    outputs: int,
    inputs: int,
    rows: int,
    columns: int,
    scale: float,
) -> int:
    return _products(grid.form, x, [_shaped(1, outputs, inputs, KINDS[kind].values(rows, columns))], kind, columns)


def _ldr(rows: Tensor, generators: Tensor, results: int = 1) -> int:
    return _products(ldr.form, rows, [generators, generators], *generators.shape[-1:] * 2, False, results=results)


def _kronecker_left(g: Tensor, x: Tensor, b: Tensor, scale: float) -> int:
    a = _shaped(1, g.shape[-1] // b.shape[1], x.shape[-1] // b.shape[2])
    return _products(kronecker.form, x, [a, b])


def _kronecker_right(g: Tensor, x: Tensor, a: Tensor, scale: float) -> int:
    b = _shaped(1, g.shape[-1] // a.shape[1], x.shape[-1] // a.shape[2])
    return _products(kronecker.form, x, [a, b])


def _diagonal(rows: Tensor, u: Tensor, v: Tensor, results: int = 1) -> int:
    return _products(diagonal.form, rows, [u, _shaped(1, u.shape[-1]), v], results=results)


def _generated(x: Tensor, parameters: Sequence[Tensor], kind: str, results: int = 1) -> int:
    return _products(generated.form, x, parameters, kind, x.shape[-1], results=results)


def _grid_of(v: Tensor) -> Tensor:
    return _shaped(1, *((1, 1) if v.dim() == 1 else v.shape[:2]), v.shape[-1])


FORMULAS: dict[str, Formula] = {
    "grid": lambda x, values, base, kind, columns, *_: _products(grid.form, x, [values], kind, columns),
    "grid_pullback": _grid_pullback,
    "grid_backward": lambda g, x, values, kind, columns, *_: _products(
        grid.form, x, [values], kind, columns, results=2
    ),
    "grid_dense": lambda values, kind, columns: _formed(grid.form, [values], kind, columns),
    "grid_dense_adjoint": _grid_dense_adjoint,
    "grid_spectrum": _grid_spectrum,
    "grid_by_spectrum": _grid_by_spectrum,
    "grid_merge": lambda weight, values, kind, columns, *_: _formed(grid.form, [values[None]], kind, columns),
    "factored_grid": lambda x, v, factor, bias, kind, columns, *_: _products(
        grid.form, x[None], [_grid_of(v)], kind, columns
    ),
    "factored_grid_gradients": lambda g, x, v, factor, kind, columns, scale, input_gradient: _products(
        grid.form, x[None], [_grid_of(v)], kind, columns, results=1 + input_gradient
    ),
    "circulant_bank": lambda x, c, index, base, kind, *_: _products(
        grid.form, x, [_shaped(1, 1, 1, c.shape[1])], kind, c.shape[1]
    ),
    "ldr": lambda x, left, *_: _ldr(x, left),
    "ldr_pullback_left": lambda g, x, right, *_: _ldr(x, right),
    "ldr_pullback_right": lambda g, x, left, *_: _ldr(x, left),
    "ldr_backward": lambda g, x, left, *_: _ldr(x, left, results=3),
    "kronecker": lambda x, a, b, *_: _products(kronecker.form, x, [a, b]),
    "kronecker_pullback_left": _kronecker_left,
    "kronecker_pullback_right": _kronecker_right,
    "kronecker_backward": lambda g, x, a, b, *_: _products(kronecker.form, x, [a, b], results=3),
    "diagonal": lambda x, u, s, v, *_: _diagonal(x, u, v),
    "diagonal_pullback": lambda g, x, u, v, *_: _diagonal(x, u, v),
    "diagonal_backward": lambda g, x, u, s, v, *_: _diagonal(x, u, v, results=2),
    "diagonal_bank": lambda x, u, s, v, *_: _diagonal(x, u[None], v[None]),
    "generated": lambda x, parameters, base, kind, *_: _generated(x, parameters, kind),
    "generated_backward": lambda g, x, parameters, kind, scale, need_x, need_parameters: _generated(
        x, parameters, kind, results=need_x + need_parameters
    ),
    "stochastic_sum": lambda weight, *_: weight.numel(),
    "rounding_key": lambda first, others, seed: first.numel() + sum(other.numel() for other in others),
    "powers": lambda v, columns: 2 * v.numel() * columns,
    "empty_rows": lambda x, columns: 0,
}


def register() -> None:
    """Has the formulas registered now, where torch.utils.flop_counter is imported, or as soon as it is."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _AtImport())


def _register(counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name), get_raw=True)(_raw(formula))
    # torch knows addmm, but not in place, as adapted layers add their frozen product.
    counter.flop_registry.setdefault(torch.ops.aten.addmm_, counter.flop_registry[torch.ops.aten.addmm])


def _raw(formula: Formula) -> Callable[..., int]:
    return lambda *arguments, out_val=None, **named: formula(*arguments, **named)


class _AtImport(MetaPathFinder):
    """Finds torch.utils.flop_counter as ever, and registers the formulas when it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
