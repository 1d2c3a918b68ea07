"""The examples in their tiny setting: random models, made-up data, no packages of models or data."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

from examples import (
    bottleneck,
    language_model,
    pinwheel,
    plots,
    program,
    step_time,
    study,
    tables,
    text_classification,
    vision,
)
from examples.methods import METHODS, SIX, TABLE
from examples.study import Measures, Results, Run
from surm_kernels.command.demo import requirements

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

MAINS: dict[str, tuple[Callable[[list[str]], None], Any]] = {
    "text_classification": (text_classification.main, text_classification.Study),
    "vision_stripes": (vision.main, vision.Study),
    "language_model": (language_model.main, language_model.Study),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made_run(
    method: str = "circulant", rate: float = 1e-2, seed: int = 0, loss: float | None = 0.5, accuracy: float = 0.7
) -> Run:
    if loss is None:
        return Run(method, 32, rate, seed, Measures(24, 10, [0.7], 1.0))
    return Run(method, 32, rate, seed, Measures(24, 10, [0.7, 0.6], 1.0, loss, 0.8, loss, accuracy, [9.0, 9.5], 0.1))


@pytest.mark.parametrize("name", MAINS)
def test_a_tiny_study_is_made_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, made = MAINS[name]
    words = ["--tiny", "--seeds", "3", "--methods", "probe", "circulant", "--results", str(tmp_path)]
    main(words)
    document = json.loads((tmp_path / f"{name}.json").read_text())
    probe, circulant = document["summary"]
    assert probe["adapter_parameters"] == 0
    assert circulant["adapter_parameters"] > 0
    assert probe["seeds"] == circulant["seeds"] == [3]
    assert 3 <= len(circulant["tried"]) <= study.MOST
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def fail(*_: object) -> Measures:
        raise AssertionError("made again")

    monkeypatch.setattr(made, "__call__", fail)
    main(words)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == document
    with pytest.raises(AssertionError, match="made again"):
        main([*words, "--seeds", "3", "4"])


START_ELSEWHERE = {"vera", "fourierft", "c3a", "circulant_random", *(one for one in METHODS if "fixed" in one)}


@pytest.mark.parametrize("method", [method for method in METHODS if method not in START_ELSEWHERE])
def test_every_method_but_some_starts_as_the_model(method: str) -> None:
    torch.manual_seed(0)
    model = text_classification.tiny_material().encoder.eval()
    x = torch.tensor([[1, 2, 3]])
    before = model(x).last_hidden_state.detach()
    adapted: Any = METHODS[method].adapt(model)
    torch.testing.assert_close(adapted(x).last_hidden_state, before)


def test_methods_of_the_shared_count() -> None:
    shared = (
        "lora_r1", "c3a", "fourierft", "vera", "circulant", "toeplitz", "kronecker", "hydra_toeplitz_768",
        "hydra_hankel_768", "hydra_circulant_768", "hydra_vandermonde_768", "block_circulant", "ldr_r1",
        "hydra_splits_1", "hydra_splits_2", "hydra_splits_8",
    )  # fmt: skip
    for method in shared:
        model = METHODS[method].adapt(text_classification.tiny_material().encoder)
        assert sum(each.numel() for each in model.parameters() if each.requires_grad) == 4 * 768, method
    assert set(SIX) < set(TABLE) < set(METHODS)


class TestLearningRates:
    def test_three_are_tried_where_the_best_is_the_middle_one(self) -> None:
        losses: dict[float, float] = {}
        while (rate := study.next_rate(1.0, losses)) is not None:
            losses[rate] = abs(math.log(rate))
        assert sorted(losses) == [0.25, 1.0, 4.0]
        assert study.best_rate(losses) == 1.0

    @pytest.mark.parametrize("direction", [1, -1])
    def test_the_next_beyond_an_end_that_is_best_is_tried_too(self, direction: int) -> None:
        losses: dict[float, float] = {}
        while (rate := study.next_rate(1.0, losses)) is not None:
            losses[rate] = -direction * math.log(rate)
        assert sorted(round(direction * math.log(rate, 4)) for rate in losses) == [-1, 0, 1, 2, 3]

    def test_one_that_diverges_is_never_chosen(self) -> None:
        assert study.best_rate({0.25: 0.7, 1.0: 0.6, 4.0: math.inf}) == 1.0
        assert study.next_rate(1.0, {0.25: 0.7, 1.0: 0.6, 4.0: math.inf}) is None

    def test_a_variant_takes_that_of_the_method_it_follows(self, tmp_path: Path) -> None:
        asked: list[tuple[str, int, float]] = []

        def train(method: str, examples: int, rate: float, seed: int) -> Measures:
            asked.append((method, examples, rate))
            return made_run(loss=abs(math.log(rate / 2e-3))).measures

        results = Results(tmp_path / "file.json", study.header("test", {}))
        study.carry_out(results, [study.Task("lora_r2", 64, 32)], [0], train)
        assert asked == [
            *[("lora_r8", 32, rate) for rate in (2e-3, 5e-4, 8e-3)],
            ("lora_r2", 64, 2e-3),
        ]

    def test_those_of_other_seeds_come_from_the_first(self, tmp_path: Path) -> None:
        asked: list[tuple[float, int]] = []

        def train(method: str, examples: int, rate: float, seed: int) -> Measures:
            asked.append((rate, seed))
            return made_run(loss=abs(math.log(rate / 1e-2)) + seed * rate).measures

        results = Results(tmp_path / "file.json", study.header("test", {}))
        task = study.Task("circulant", 32, 32)
        study.carry_out(results, [task], [0], train)
        study.carry_out(Results(results.file, study.header("test", {})), [task], [5], train)
        assert asked == [*[(rate, 0) for rate in (1e-2, 2.5e-3, 4e-2)], (1e-2, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"runs": [', "is no file of this study: JSONDecodeError"),
        ("[]", "is no file of this study: TypeError"),
        ('{"rows": []}', "is no file of this study: KeyError: 'runs'"),
        ('{"runs": [{"method": "probe"}]}', "is no file of this study: KeyError"),
        ('{"runs": [], "setting": {"title": "x", "examples": 1000}}', "is of another setting"),
    ],
)
def test_a_file_that_runs_cannot_be_added_to_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "text_classification.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match=message):
        text_classification.main(["--tiny", "--methods", "probe", "--results", str(tmp_path)])
    assert file.read_text() == text


def test_methods_that_are_not_known_are_told(tmp_path: Path) -> None:
    Results(tmp_path / "file.json", study.header("test", {})).add(made_run())
    text = (tmp_path / "file.json").read_text().replace('"circulant"', '"surely_not"')
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(SystemExit, match="methods that are not known: surely_not"):
        Results(tmp_path / "file.json", {})


def test_a_method_of_another_experiment_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        text_classification.main(["--tiny", "--methods", "lora_r2"])
    assert "lora_r2 takes --experiments counts" in capsys.readouterr().err


def test_tests_leave_the_published_results_alone() -> None:
    assert program.results_folder(None, tiny=True) != program.results_folder(None, tiny=False) == program.FOLDER


@pytest.mark.parametrize("text", ["", "3", '{"runs": []}'])
@pytest.mark.parametrize("read", [plots.draw, lambda file: tables.main([str(file)])], ids=["plots", "tables"])
def test_tables_and_pictures_of_other_files_are_refused(read: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(SystemExit, match="other.json is no file of an example"):
        read(tmp_path / "other.json")


def test_what_a_user_can_mend_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(SystemExit, match="llm_nothing is not installed"):
        program.run(lambda: print(requirements.package_folder("llm_nothing")))
    with pytest.raises(SystemExit, match="file: File exists"):
        program.run(lambda: text_classification.main(["--tiny", "--results", str(tmp_path / "file")]))
    with pytest.raises(SystemExit, match="interrupted"):
        program.run(lambda: fail(KeyboardInterrupt()))
    with pytest.raises(SystemExit, match="No module named onnx; for all examples: pip install"):
        program.run(lambda: fail(ModuleNotFoundError("No module named onnx")))


class TestResults:
    def test_runs_of_two_processes_are_kept(self, tmp_path: Path) -> None:
        first, second = (Results(tmp_path / "file.json", study.header("test", {})) for _ in range(2))
        first.add(made_run(seed=0))
        second.add(made_run(seed=1))
        assert Results(tmp_path / "file.json", {}).runs == [made_run(seed=0), made_run(seed=1)]
        assert second.has("circulant", 32, 1e-2, 0)
        assert not second.has("circulant", 32, 1e-2, 2)

    def test_a_run_that_two_processes_made_is_kept_once(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "file.json", study.header("test", {}))
        results.add(made_run(loss=0.6))
        results.add(made_run(loss=0.5))
        assert results.runs == [made_run(loss=0.5)]

    def test_the_summary_is_that_of_the_chosen_rate(self) -> None:
        runs = [
            made_run(rate=1e-2, loss=0.6), made_run(rate=4e-2, loss=0.5, accuracy=0.6), made_run(rate=1.0, loss=None),
            made_run(rate=4e-2, seed=1, loss=0.9, accuracy=0.8),
        ]  # fmt: skip
        (entry,) = study.summary(runs)
        assert entry["learning_rate"] == 4e-2
        assert entry["tried"] == {"0.01": 0.6, "0.04": 0.5, "1.0": None}
        assert entry["accuracies"] == [0.6, 0.8]
        assert entry["mean"] == pytest.approx(0.7)
        assert entry["deviation"] == pytest.approx(0.02**0.5)
        assert entry["perplexity"] == pytest.approx(math.exp(0.7))
        assert entry["effective_rank"] == [9.0, 9.5]
        assert entry["loss_curve"] == [0.7, 0.6]

    def test_tables_and_pictures(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "file.json", study.header("test", {"title": "a test", "examples": 32}))
        for seed in (0, 1, 2):
            results.add(Run("probe", 32, 0.0, seed, Measures(0, 10, [], 1.0, 0.6, 0.6, 0.6, 0.6)))
            results.add(made_run(seed=seed, accuracy=0.7 + seed / 100))
            results.add(made_run("circulant_repo", seed=seed))
        document = json.loads((tmp_path / "file.json").read_text())
        assert "| SURM circulant | 24 | 0.01 | 3 | 71.0 ± 1.0 | +11.0 ± 1.0 | +0.50 | 0.100 |" in tables.study_table(
            document, 32
        )
        assert [file.name for file in plots.draw(tmp_path / "file.json")] == ["file.png", "file_starts.png"]

    def test_a_language_model_is_compared_with_itself_before_training(self, tmp_path: Path) -> None:
        setting = {"title": "a test", "examples": 32, "probe": "before training"}
        results = Results(tmp_path / "file.json", study.header("test", setting))
        for seed, loss in enumerate((1.0, 2.0)):
            results.add(Run("probe", 32, 0.0, seed, Measures(0, 0, [], 0.0, 3.0, None, 3.0)))
            results.add(Run("circulant", 32, 1e-2, seed, Measures(24, 0, [3.0], 1.0, loss, None, loss)))
        lines = tables.study_table(json.loads((tmp_path / "file.json").read_text()), 32).splitlines()
        assert "above before training" in lines[0]
        assert lines[2].startswith("| before training | 0 |  | 2 | 20.1 ± 0.0 |  |")
        assert lines[3].startswith("| SURM circulant | 24 | 0.01 | 2 | 4.5 ± 3.3 | -74.8 ± 16.4 % |")

    def test_results_over_the_number_of_examples(self, tmp_path: Path) -> None:
        results = Results(tmp_path / "file.json", study.header("test", {"title": "a test", "examples": 32}))
        for examples, accuracy in ((32, 0.7), (64, 0.8)):
            results.add(Run("circulant", examples, 1e-2, 0, Measures(24, 0, [3.0], 1.0, 0.5, 0.5, 0.5, accuracy)))
        results.add(Run("lora_r8", 32, 1e-2, 0, Measures(24, 0, [3.0], 1.0, 0.5, 0.5, 0.5, 0.9)))
        table = tables.by_examples(json.loads((tmp_path / "file.json").read_text()))
        assert table is not None
        assert table.splitlines()[0] == "| method | numbers | 32 examples | 64 examples |"
        assert table.splitlines()[2:] == ["| SURM circulant | 24 | 70.0 | 80.0 |"]

    def test_ranks_share_places(self) -> None:
        assert tables._ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]


def test_a_bottleneck_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(3, 6)
    adapted = bottleneck.Bottleneck(layer, 2)
    assert torch.equal(adapted(x), layer(x))
    adapted.up.weight.data.normal_()
    assert not torch.equal(adapted(x), layer(x))


def test_files_of_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])
    (tmp_path / "x-ubyte.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(vision, "FASHION", tmp_path)
    assert vision._idx("x").tolist() == [[0, 1, 2], [3, 4, 5]]


class TestPinwheel:
    def test_alignment_does_not_see_rotation_scale_and_shift(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(50, 6, dtype=torch.float64)
        rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        assert pinwheel.alignment(x, 3 * x @ rotation + 1) == pytest.approx(1)
        assert pinwheel.alignment(x, torch.randn(50, 6)) < 0.5
        assert pinwheel.alignment(x, torch.ones(50, 6)) == 0

    def test_a_tiny_run(self, tmp_path: Path) -> None:
        pinwheel.main(["--tiny", "--seeds", "1", "--results", str(tmp_path)])
        rows = json.loads((tmp_path / "pinwheel.json").read_text())["rows"]
        assert [row["update"] for row in rows] == list(pinwheel.UPDATES)[1:]


def test_step_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "in_fresh_process", lambda call, *arguments: call(*arguments))
    step_time.main(["--tiny", "--threads", "1", "--methods", "circulant", "--results", str(tmp_path)])
    frozen, circulant = json.loads((tmp_path / "step_time.json").read_text())["rows"]
    assert frozen["multiple"] == [1, 1, 1]
    assert circulant["seconds"] > 0
