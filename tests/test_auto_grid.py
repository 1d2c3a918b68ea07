"""The grid that judges `auto`: it spans what it promises, compares before it times, and counts what it finds."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import auto_grid
from benchmarks.auto_grid import Row, Shape
from surm_kernels import cost_constants, structures
from surm_kernels._timing import Effort

HASTY = Effort(most=2, fewest=2, seconds=0.0, warm_up=1, sample_seconds=0.0)
TRAINING = Shape("Circulant", 12, 20, 5, "float32", True)
INFERENCE = Shape("Toeplitz", 12, 12, 5, "bfloat16", False)


def test_the_grid_spans_sizes_tokens_types_structures_and_uses() -> None:
    grid = auto_grid.GRID
    assert len(set(map(str, grid))) == len(grid) == 30
    assert (min(one.tokens for one in grid), max(one.tokens for one in grid)) == (1, 16384)
    sizes = [size for one in grid for size in (one.in_features, one.out_features)]
    assert (min(sizes), max(sizes)) == (192, 4096)
    assert any(one.in_features < one.out_features for one in grid)
    assert any(one.in_features > one.out_features for one in grid)
    assert {one.dtype for one in grid} == {"float32", "bfloat16"}
    assert {one.training for one in grid} == {True, False}
    measured = {family.split()[0] for table in cost_constants._shipped() for family in table.families}
    assert {one.structure for one in grid} == measured & set(structures.__all__) - {"Structure"}


@pytest.mark.parametrize("shape", auto_grid.GRID, ids=str)
def test_every_structure_of_the_grid_can_be_made(shape: Shape) -> None:
    made = shape.make()
    assert (made.in_features, made.out_features) == (shape.in_features, shape.out_features)


@pytest.mark.parametrize("shape", [TRAINING, INFERENCE], ids=str)
def test_a_row_has_the_times_of_all_strategies_and_the_choice(shape: Shape) -> None:
    row = auto_grid.row(shape, HASTY)
    assert set(row.samples) == {"direct", "merged", "auto"}
    assert all(len(times) == 2 and min(times) > 0 for times in row.samples.values())
    assert 0 < row.ratio < math.inf
    assert row.chosen in ("direct", "merged")
    assert shape.training or row.chosen == "merged"


def test_a_training_step_changes_the_parameters_and_inference_does_not() -> None:
    for shape in (TRAINING, INFERENCE):
        layer = auto_grid.layer(shape, "merged")
        x = torch.randn(shape.tokens, shape.in_features).to(getattr(torch, shape.dtype))
        g = torch.randn(shape.tokens, shape.out_features) if shape.training else None
        before = layer.merged_weight()
        results = auto_grid.call(layer, x, g)()
        assert len(results) == (3 if shape.training else 1)
        assert torch.equal(before, layer.merged_weight()) is not shape.training


def test_strategies_that_do_not_agree_are_not_timed(monkeypatch) -> None:
    def different(shape: Shape, strategy: str) -> nn.Module:
        layer = made(shape, strategy)
        if strategy == "merged":
            layer.scale = 2.0
        return layer

    made = auto_grid.layer
    monkeypatch.setattr(auto_grid, "layer", different)
    row = auto_grid.row(TRAINING, HASTY)
    assert row.samples == {}
    assert row.ratio == math.inf
    assert not row.is_near
    assert row.to_json()["ratio"] is None
    assert ("results differ",) in auto_grid.table([row]).rows[0]


@pytest.mark.parametrize(
    ("auto", "ratio", "near"),
    [([1.0, 2.0, 3.0], 1.0, True), ([1.2, 2.4, 2.9], 1.2, False), ([1.1, 2.0, 9.0], 1.1, True)],
)
def test_a_ratio_is_taken_within_a_turn_to_the_shorter_time(auto: list[float], ratio: float, near: bool) -> None:
    row = Row(TRAINING, "direct", {"direct": [1.0, 4.0, 3.0], "merged": [5.0, 2.0, 6.0], "auto": auto})
    assert row.ratio == pytest.approx(ratio)
    assert row.is_near is near


def test_a_run_writes_table_and_samples(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(auto_grid, "GRID", (TRAINING, INFERENCE))
    monkeypatch.setattr(auto_grid, "EFFORT", HASTY)
    folder, threads = tmp_path / "new" / "folder", torch.get_num_threads()
    auto_grid.main(["--out", str(folder), "--threads", str(threads)])
    document = json.loads((folder / "auto_grid.json").read_text())
    assert [one["shape"]["structure"] for one in document["rows"]] == ["Circulant", "Toeplitz"]
    assert document["threads"] == threads
    near = sum(one["ratio"] <= auto_grid.LIMIT for one in document["rows"])
    page, out = (folder / "auto_grid.md").read_text(), capsys.readouterr().out
    for text in (f"of the best at {near} of 2", "Circulant, 12 → 20 × 5, float32, training"):
        assert text in page
        assert text in out
