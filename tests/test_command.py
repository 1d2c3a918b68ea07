"""The command line: info, check and bench say what is so, refuse what is wrong and end with the right code."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import surm_kernels
from surm_kernels import _environment, _extension
from surm_kernels.command import accuracy, check, info, machine, usage
from surm_kernels.command.bench import cases, measure, memory, methods, records, session
from surm_kernels.command.main import main
from surm_kernels.ops import krylov as ops

SMALL = cases.Point(12, 5)
FAST = measure.Effort(most=4, fewest=4, seconds=0.0, warm_up=1, sample_seconds=0.0)


def wrong(function):
    """The function with results off by a thousandth."""

    def call(*arguments):
        results = function(*arguments)
        return tuple(1.001 * t for t in results) if isinstance(results, tuple) else 1.001 * results

    return call


@pytest.fixture
def small_check(monkeypatch):
    """The check on few problems."""
    few = {"circulant": (((5,),), ((64,),)), "block circulant": (((2, 3, 5),),), "f-circulant -0.3": (((12,),),)}
    chosen = [
        dataclasses.replace(structure, cases=few[structure.name])
        for structure in check.STRUCTURES
        if structure.name in few
    ]
    monkeypatch.setattr(check, "STRUCTURES", tuple(chosen))


@pytest.fixture
def small_bench(monkeypatch):
    """Every case at one small size, a few repeats, without PEFT."""
    blocks = {"block-circulant-training": cases.Point(256, 5)}
    small = tuple(
        dataclasses.replace(
            case,
            points=(blocks.get(case.name, SMALL),) * 2,
            quick=(blocks.get(case.name, SMALL),),
            contenders=tuple(method for method in case.contenders if method.name != methods.PEFT_C3A),
        )
        for case in cases.CASES
    )
    monkeypatch.setattr(cases, "CASES", small)
    monkeypatch.setattr(records, "CASES", small)
    monkeypatch.setattr(session, "QUICK", FAST)
    monkeypatch.setattr(session, "FULL", FAST)


class TestMain:
    def test_it_runs_as_a_module(self) -> None:
        outcome = subprocess.run(
            [sys.executable, "-m", "surm_kernels", "--version"], capture_output=True, text=True, check=True
        )
        assert outcome.stdout == f"surm_kernels {surm_kernels.__version__}\n"

    def test_help_lists_every_command(self, capsys) -> None:
        with pytest.raises(SystemExit) as end:
            main(["--help"])
        assert end.value.code == 0
        assert main([]) == 2
        out, err = capsys.readouterr()
        assert out == err
        assert all(f"\n    {command} " in out for command in ("info", "check", "bench", "demo"))

    @pytest.mark.parametrize("command", ["info", "check", "bench", "demo"])
    def test_every_command_has_help(self, command: str, capsys) -> None:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert f"surm-kernels {command}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words",
        [
            ["nothing"],
            ["info", "--nothing"],
            ["check", "--only"],
            ["bench", "--threads", "0"],
            ["bench", "--threads", "two"],
            ["bench", "--dtype", "int8"],
        ],
        ids=" ".join,
    )
    def test_bad_words_end_with_2_and_the_usage(self, words: list[str], capsys) -> None:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert "usage: surm-kernels" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["check", "--only", "toeplits"],
                "surm-kernels check: --only: nothing is called 'toeplits'; there are circ",
            ),
            (["check", "--device", "abacus"], "surm-kernels check: --device: 'abacus' cannot be used here"),
            (["check", "--device", "meta"], "surm-kernels check: --device: meta tensors hold no numbers"),
            (["bench", "--only", "nothing"], "surm-kernels bench: --only: nothing is called 'nothing'; there are circ"),
            (["bench", "--only", "one-token", "--dtype", "bfloat16"], "one-token is not measured in bfloat16"),
            (["bench", "--json", "/nowhere/b.json"], "surm-kernels bench: --json: there is no folder /nowhere"),
            (["bench", "--markdown", "/"], "surm-kernels bench: --markdown: / is a folder"),
        ],
    )
    def test_what_cannot_be_done_ends_with_2_and_one_line(self, words: list[str], message: str, capsys) -> None:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert len(err.splitlines()) == 1
        assert not out

    def test_a_missing_package_is_named(self, monkeypatch, capsys) -> None:
        monkeypatch.setitem(sys.modules, "rich.console", None)
        monkeypatch.delitem(sys.modules, "surm_kernels.command.info")
        assert main(["info"]) == 2
        assert capsys.readouterr().err == "surm-kernels info: the package rich is missing: pip install rich\n"

    def test_an_interruption_is_one_line(self, monkeypatch, capsys) -> None:
        def interrupt(arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(info, "run", interrupt)
        assert main(["info"]) == 130
        assert capsys.readouterr().err == "surm-kernels info: interrupted\n"


def test_a_whole_name_selects_itself_and_a_part_selects_all_that_have_it() -> None:
    names = ["skew-circulant", "circulant", "dense"]
    assert usage.select("--only", ["circulant"], names) == ["circulant"]
    assert usage.select("--only", ["dense", "circ"], names) == names
    assert usage.select("--only", None, names) == names


class TestInfo:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch) -> None:
        monkeypatch.setenv("COLUMNS", "300")

    def test_it_shows_versions_instruction_set_and_variables(self, capsys) -> None:
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert surm_kernels.__version__ in out
        assert torch.__version__ in out
        assert (_extension.instruction_set or "none, the library is not loaded") in out
        assert f"{torch.get_num_threads()} in an operation" in out
        for variable in _environment.VARIABLES:
            assert variable.name in out
            assert variable.meaning in out

    def test_it_says_what_a_variable_is_set_to(self, monkeypatch, capsys) -> None:
        monkeypatch.setenv("SURM_KERNELS_ISA", "avx2")
        monkeypatch.setenv("SURM_KERNELS_CUDA", "perhaps")
        main(["info"])
        out = capsys.readouterr().out
        assert "avx2 (default auto)" in out
        assert "perhaps (default auto), not one of auto, 0, 1" in out

    def test_it_says_why_the_library_does_not_serve(self, monkeypatch, capsys) -> None:
        for name, value in {"available": False, "reason": "no compiler", "instruction_set": ""}.items():
            monkeypatch.setattr(_extension, name, value)
        main(["info"])
        out = capsys.readouterr().out
        assert "not loaded, the PyTorch reference serves: no compiler" in out
        assert "none: no compiler" in out

    @pytest.mark.parametrize(
        ("flags", "sets"),
        [
            ("", ("baseline",)),
            ("avx2 fma f16c", ("baseline", "avx2")),
            ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl", ("baseline", "avx2", "avx512")),
        ],
    )
    def test_instruction_sets_come_from_the_processor(self, flags: str, sets, monkeypatch, tmp_path: Path) -> None:
        processors = tmp_path / "cpuinfo"
        processors.write_text(f"processor\t: 0\nmodel name\t: Abacus 3000\nflags\t\t: {flags}\nprocessor\t: 1\n")
        monkeypatch.setattr(machine, "PROCESSORS", processors)
        assert machine.instruction_sets() == sets
        assert machine.processor() == "Abacus 3000"


class TestCheck:
    def test_every_kernel_has_a_line_and_all_is_well(self, small_check, capsys) -> None:
        assert main(["check"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for structure in check.STRUCTURES:
            for name in check.MAPS:
                (line,) = (one for one in lines if one.startswith(f"{structure.name:<17}{name:<15}"))
                assert line.endswith("  ok")
        assert lines[-1].startswith("all 18 kernels ok")

    @pytest.mark.parametrize(
        ("operator", "fails"),
        [
            ("krylov", {"product", "transposed", "pullback", "fused backward"}),
            ("krylov_pullback", {"pullback"}),
            ("krylov_backward", {"fused backward"}),
            ("krylov_dense", {"dense", "dense adjoint"}),
            ("krylov_dense_adjoint", {"dense adjoint"}),
        ],
    )
    def test_a_wrong_operator_fails_in_the_lines_that_use_it(
        self, operator: str, fails: set[str], small_check, monkeypatch, capsys
    ) -> None:
        monkeypatch.setattr(ops, operator, wrong(getattr(ops, operator)))
        assert main(["check", "--only", "block"]) == 1
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("block circulant")]
        assert {line[17:32].strip() for line in lines if line.endswith("FAILED")} == fails
        assert len(lines) == len(check.MAPS)

    def test_a_kernel_that_raises_has_failed(self, small_check, monkeypatch, capsys) -> None:
        def broken(*arguments):
            raise RuntimeError("[out] of order")

        monkeypatch.setattr(ops, "krylov_dense", broken)
        assert main(["check", "--only", "block"]) == 1
        out = capsys.readouterr().out
        assert "float32, parameters (2, 3, 5): RuntimeError: [out] of order" in out
        assert "2 of 6 kernels FAILED" in out

    @pytest.mark.parametrize("dtype", check.DTYPES, ids=str)
    def test_limits_let_a_rounded_answer_pass_and_nothing_worse(self, dtype: torch.dtype) -> None:
        exact = torch.randn(1000, dtype=torch.float64)
        assert accuracy.deviation(exact.to(dtype), exact).ok
        assert not accuracy.deviation((exact * 1.01).to(dtype), exact).ok
        broken = exact.to(dtype)
        broken[3] = torch.nan
        assert not accuracy.deviation(broken, exact).ok
        assert not accuracy.deviation(exact.to(dtype)[:-1], exact).ok
        zero = torch.zeros(4, dtype=torch.float64)
        assert accuracy.deviation(zero.to(dtype), zero).ok
        assert not accuracy.deviation(zero.to(dtype) + 1e-3, zero).ok


class TestHarness:
    @staticmethod
    def workload(*names: str, log: list[str], gradients: bool = False, error: float = 0.0) -> measure.Workload:
        def contender(name: str, factor: float) -> measure.Contender:
            def call():
                log.append(name)
                return (torch.full((4,), factor),)

            return measure.Contender(name, call)

        contenders = tuple(contender(name, 1 + error if index == 0 else 1.0) for index, name in enumerate(names))
        return measure.Workload(contenders, lambda: (torch.ones(4, dtype=torch.float64),), gradients)

    def test_repeats_are_interleaved_in_rotating_order(self) -> None:
        log: list[str] = []
        measure.measure(self.workload("a", "b", "c", log=log), FAST)
        assert log[:3] == ["a", "b", "c"]  # parity
        assert log[3:6] == ["a", "b", "c"]  # warm-up
        assert "".join(log[6:]) == "abcbcacababc"

    def test_ratios_are_taken_within_a_repeat(self) -> None:
        times = iter([1.0, 1.0, *(1.0, 2.0), *(6.0, 2.0), *(4.0, 4.0), *(2.0, 1.0)])
        measured = measure.measure(self.workload("ours", "rival", log=[]), FAST, lambda call, calls: next(times))
        assert measured.samples == {"ours": [1.0, 2.0, 4.0, 1.0], "rival": [2.0, 6.0, 4.0, 2.0]}
        assert measured.ratio("rival") == measure.Spread(1.75, 2.0, 2.25)
        assert measured.seconds("ours") == measure.Spread(1.0, 1.5, 2.5)
        assert measured.ratio("nobody") is None

    def test_short_calls_are_repeated_within_a_sample(self) -> None:
        asked: list[int] = []

        def clock(call, calls: int) -> float:
            asked.append(calls)
            return 1e-4

        effort = dataclasses.replace(FAST, sample_seconds=1e-3, most_calls=8)
        measure.measure(self.workload("ours", log=[]), effort, clock)
        assert asked == [1, 8, 8, 8, 8]

    def test_measuring_ends_when_the_time_is_spent(self) -> None:
        effort = dataclasses.replace(FAST, most=1000, fewest=2, seconds=0.05)
        start = time.perf_counter()
        measured = measure.measure(self.workload("ours", log=[]), effort)
        assert 2 <= len(measured.samples["ours"]) <= 1000
        assert time.perf_counter() - start < 5

    def test_nobody_is_timed_where_ours_is_wrong(self) -> None:
        log: list[str] = []
        measured = measure.measure(self.workload("ours", "rival", log=log, error=1e-5), FAST)
        assert measured.refused
        assert not measured.samples
        assert log == ["ours", "rival"]

    @pytest.mark.parametrize("gradients", [True, False])
    def test_gradients_are_recorded_as_asked_and_the_mode_put_back(self, gradients: bool) -> None:
        seen: list[bool] = []

        def call():
            seen.append(torch.is_grad_enabled())
            return (torch.ones(1),)

        one = measure.Contender("ours", call)
        made = measure.Workload((one,), lambda: (torch.ones(1, dtype=torch.float64),), gradients)
        measure.measure(made, FAST)
        assert set(seen) == {gradients}
        assert torch.is_grad_enabled()


class TestRivals:
    @pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
    @pytest.mark.parametrize("dtype", cases.BOTH, ids=str)
    def test_every_rival_that_computes_the_same_agrees(self, case: cases.Case, dtype: torch.dtype) -> None:
        point = cases.Point(256 if "block" in case.name else 12, 5)
        made = cases.workload(case, point, dtype, pytest.skip)
        found = measure.deviations(made)
        assert {name for name, deviation in found.items() if not deviation.ok} == set()
        assert {methods.OURS, methods.TORCH_FFT} <= set(found)
        assert {methods.LORA, methods.CLONE}.isdisjoint(found)
        results = [one.call() for one in made.contenders if one.name in (methods.OURS, methods.TORCH_FFT)]
        assert [[t.dtype for t in result] for result in results] == [[dtype] * (3 if case.gradients else 1)] * 2

    def test_without_peft_the_reason_is_noted(self, monkeypatch) -> None:
        methods._peft_c3a.cache_clear()
        monkeypatch.setitem(sys.modules, "peft.tuners.c3a.layer", None)
        notes: list[str] = []
        training = next(case for case in cases.CASES if case.name == "circulant-training")
        made = cases.workload(training, SMALL, torch.float32, notes.append)
        methods._peft_c3a.cache_clear()
        assert methods.PEFT_C3A not in [one.name for one in made.contenders]
        assert notes[0].startswith("no comparison with PEFT C3A: ")
        assert "pip install peft" in notes[0]

    def test_claims_are_about_cases_and_rivals_that_are_measured(self) -> None:
        known = {case.name: case for case in cases.CASES}
        for claim in cases.CLAIMS:
            case = known[claim.case]
            assert claim.rival in [method.name for method in case.contenders if method.in_quick]
            assert claim.dtype in case.dtypes
            assert set(case.quick) <= set(case.points)


class TestBench:
    def test_json_markdown_and_tables_hold_what_was_measured(self, small_bench, tmp_path: Path, capsys) -> None:
        files = tmp_path / "b.json", tmp_path / "b.md"
        before = torch.get_num_threads()
        words = ["bench", "--quick", "--only", "circulant", "one", "--threads", "1", "2"]
        assert main([*words, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
        assert torch.get_num_threads() == before
        document = json.loads(files[0].read_text())
        assert document["command"] == "surm-kernels bench --quick --only circulant one --threads 1 2"
        assert document["machine"]["cores"] == machine.cores()
        assert document["versions"]["torch"] == torch.__version__
        assert {(one["case"], one["dtype"], one["threads"]) for one in document["measurements"]} == {
            (name, dtype, threads)
            for name, dtype in [
                ("circulant-forward", "float32"),
                ("circulant-forward", "bfloat16"),
                ("circulant-training", "float32"),
                ("circulant-training", "bfloat16"),
                ("block-circulant-training", "float32"),
                ("one-token", "float32"),
            ]
            for threads in (1, 2)
        }
        for one in document["measurements"]:
            assert not one["refused"]
            ours, rival = one["contenders"][methods.OURS], one["contenders"][methods.TORCH_FFT]
            assert len(ours["seconds"]) == len(rival["seconds"]) == FAST.most
            assert ours["error"] <= ours["error_limit"]
            assert ours["ratio_to_ours"] is None
            assert sorted(rival["ratio_to_ours"]) == rival["ratio_to_ours"]
        assert {claim["sizes"] for claim in document["claims"]} == {"1 of 2"}
        assert {claim["threads"] for claim in document["claims"]} == {1, 2}
        page, out = files[1].read_text(), capsys.readouterr().out
        assert "`surm-kernels bench --quick" in page
        assert document["date"] in page
        for text in ("a quick run", "circulant, forward + backward, bfloat16, 2 threads", machine.processor()):
            assert text in page.replace("## C", "## c")
            assert text in out

    def test_no_ratio_is_reported_where_our_result_is_wrong(self, small_bench, monkeypatch, tmp_path, capsys) -> None:
        monkeypatch.setattr(ops, "krylov_backward", wrong(ops.krylov_backward))
        file = tmp_path / "b.json"
        words = ["bench", "--only", "circulant-training", "--dtype", "float32", "--json", str(file)]
        assert main(words) == 1
        document = json.loads(file.read_text())
        assert all(one["refused"] for one in document["measurements"])
        assert not any(rival["seconds"] for one in document["measurements"] for rival in one["contenders"].values())
        assert {(claim["reached"], claim["median"], claim["worst"]) for claim in document["claims"]} == {
            (None, None, None)
        }
        out = capsys.readouterr().out
        assert "surm_kernels is wrong at circulant, forward + backward, float32, 12 × 5 (normwise error 1.0e-03" in out
        assert "no ratio is reported" in out
        assert "WRONG" in out

    def test_the_cases_are_listed(self, capsys) -> None:
        assert main(["bench", "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [*(case.name for case in cases.CASES), cases.MEMORY_NAME]

    def test_memory_is_measured_in_a_process_of_its_own(self) -> None:
        point = cases.Point(1024, 2048)
        megabytes = memory.extra_megabytes(methods.TORCH_FFT, point, torch.float32, 1)
        if megabytes is None:
            pytest.skip("this system does not tell the peak of a part of a process")
        assert megabytes > 4  # two spectra at least, 8 MB each

    def test_a_failing_memory_process_is_a_clear_error(self) -> None:
        with pytest.raises(usage.UsageError, match="memory: the measuring process failed"):
            memory.extra_megabytes("nothing", SMALL, torch.float32, 1)

    @pytest.mark.parametrize(
        ("ratios", "reached"), [((4.6, 4.6), True), ((3.4, 9.0), False), ((3.6, 4.6), False), ((3.6, 5.6), True)]
    )
    def test_a_claim_needs_its_median_and_its_worst_size(self, ratios: tuple[float, ...], reached: bool) -> None:
        case = next(case for case in cases.CASES if case.name == "circulant-training")
        fine = {methods.OURS: accuracy.Deviation(0.0, 1.0)}
        found = [
            records.Record(
                case, SMALL, torch.float32, 2,
                measure.Measurement(methods.OURS, fine, {methods.OURS: [1.0], methods.TORCH_FFT: [ratio]}),
            )
            for ratio in ratios
        ]  # fmt: skip
        (verdict,) = records.verdicts(found, [])
        assert verdict.reached is reached
        assert verdict.worst == min(ratios)

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(2.0, "2.00 s"), (0.0161, "16.1 ms"), (0.151, "151 ms"), (8.294e-6, "8.29 µs"), (1234.5, "1234 s")],
    )
    def test_durations_have_three_digits(self, seconds: float, text: str) -> None:
        assert records.duration(seconds) == text
