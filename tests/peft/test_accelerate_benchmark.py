"""The benchmark of accelerate(): it prints a row a case, and times nothing whose outputs differ."""

import pytest
import torch

pytest.importorskip("peft")

from benchmarks import peft_accelerate as benchmark
from surm_kernels._timing import Effort

HASTY = Effort(most=2, fewest=2, seconds=0.0, warm_up=1, sample_seconds=0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FEATURES", 96), ("TOKENS", (5, 8)), ("SENTENCES", ()), ("EFFORT", HASTY)):
        monkeypatch.setattr(benchmark, name, value)


def test_it_prints_a_row_for_every_method_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--threads", str(torch.get_num_threads())])
    out = capsys.readouterr().out
    for method in benchmark.METHODS:
        for tokens in benchmark.TOKENS:
            assert f"| {method}, 96 → 96 × {tokens} | " in out
    assert out.count("× (") == len(benchmark.METHODS) * len(benchmark.TOKENS)


def test_outputs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, own = benchmark.layer_steps("C3A, block 96", 5)
    monkeypatch.setattr(benchmark, "samples", pytest.fail)
    wrong = benchmark.Step(lambda: ours.output() * 1.01, ours.gradient, ours.leaves, ours.update, 1, True)
    with pytest.raises(SystemExit, match="a case: the outputs differ"):
        benchmark.row("a case", (wrong, own))
