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
from surm_kernels import _environment, _extension, _processor, calibration, cost_constants, cost_model
from surm_kernels._timing import Effort
from surm_kernels.command import accuracy, check, info, machine, provenance, terminal, tune, usage
from surm_kernels.command.bench import cases, measure, memory, records, session
from surm_kernels.command.bench.case import (
    OURS,
    TORCH_FFT,
    Case,
    Claim,
    MemoryCase,
    MemoryClaim,
    Method,
    Point,
    Unavailable,
    point,
)
from surm_kernels.command.bench.families import (
    adapted,
    circulant,
    displacement,
    encoders,
    hydra,
    kronecker,
    steps,
    toeplitz,
)
from surm_kernels.command.bench.workload import Steps, inputs, workload
from surm_kernels.command.main import COMMANDS, main
from surm_kernels.ops import grid as ops
from surm_kernels.structures import Siva
from tests import oracle

SMALL = Point(12, 12, 5)
FAST = Effort(most=4, fewest=4, seconds=0.0, warm_up=1, sample_seconds=0.0)


def wrong(function):
    """The function with results off by a thousandth."""

    def call(*arguments):
        results = function(*arguments)
        return tuple(1.001 * t for t in results) if isinstance(results, tuple) else 1.001 * results

    return call


def small_points(case: Case) -> list[Point]:
    """Sizes at which a case takes no time: square, and rectangular where the case has such a size."""
    tokens = 5 if case.points[0].tokens else 0
    if case.name == "block-circulant-training":
        return [Point(256, 256, tokens)]
    if case in steps.CASES:
        return [Point(48, 48, 16)]  # in 16 bits the error of fewer values may well be larger
    rectangular = [Point(12, 20, tokens), Point(20, 12, tokens)] if any(not one.square for one in case.points) else []
    return [Point(12, 12, tokens), *rectangular]


@pytest.fixture
def small_check(monkeypatch):
    """The check on few problems."""
    few = {"circulant": (((5,),), ((64,),)), "block circulant": (((2, 3, 5),),), "f-circulant -0.3": (((12,),),)}
    tried = [dataclasses.replace(family, cases=few[family.name]) for family in check.FAMILIES if family.name in few]
    monkeypatch.setattr(check, "FAMILIES", tuple(tried))


@pytest.fixture
def small_bench(monkeypatch):
    """Every case at one small size, a few repeats, without PEFT."""
    small = tuple(
        dataclasses.replace(
            case,
            points=(small_points(case)[0],) * 2,
            quick=(small_points(case)[0],),
            contenders=tuple(one for one in case.contenders if one.name not in (circulant.PEFT_C3A, adapted.PEFT_LORA)),
        )
        for case in cases.CASES
    )
    monkeypatch.setattr(cases, "CASES", small)
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
        assert all(f"\n    {command} " in out for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
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
            ["tune", "--threads", "0"],
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
            (["tune", "--output", "/nowhere/costs.json"], "surm-kernels tune: --output: there is no folder /nowhere"),
        ],
    )
    def test_what_cannot_be_done_ends_with_2_and_one_line(self, words: list[str], message: str, capsys) -> None:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert len(err.splitlines()) == 1
        assert not out

    def test_a_missing_package_is_named(self, monkeypatch, capsys) -> None:
        def need_peft(arguments):
            raise ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners")

        monkeypatch.setattr(info, "run", need_peft)
        assert main(["info"]) == 2
        assert capsys.readouterr().err == "surm-kernels info: the package peft is missing: pip install peft\n"

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


class TestTerminal:
    def test_a_table_has_its_first_column_on_the_left_and_folds_it(self, monkeypatch) -> None:
        monkeypatch.setenv("COLUMNS", "36")
        rows = [["circulant, forward and backward, float32", "1.5 ms\n(2.00×)"], ["copy", "12 µs"]]
        assert terminal.table(["what", "time"], rows).splitlines() == [
            "what                       time",
            "──────────────────────  ───────",
            "circulant, forward and   1.5 ms",
            "backward, float32       (2.00×)",
            "copy                      12 µs",
        ]

    def test_values_of_pairs_are_folded_beside_their_names(self, monkeypatch) -> None:
        monkeypatch.setenv("COLUMNS", "30")
        text = terminal.pairs([("a", "words that take more than a line"), ("long", "/no/blank/to/fold/this/path/at")])
        assert text.splitlines() == [
            "a     words that take more",
            "      than a line",
            "long  /no/blank/to/fold/this/path/at",
        ]

    def test_without_a_terminal_progress_is_a_line_for_each_beginning(self, capsys) -> None:
        with terminal.Progress(2, "measuring") as progress:
            for name in ("a", "b"):
                progress.begin(f"measuring {name}")
                progress.advance()
            progress.print("done")
        assert capsys.readouterr().out == "measuring a\nmeasuring b\ndone\n"

    def test_on_a_terminal_a_bar_moves_below_what_is_printed(self, monkeypatch, capsys) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        with terminal.Progress(2) as progress:
            progress.begin("measuring a")
            progress.advance()
            progress.print("a is fast")
        out = capsys.readouterr().out
        assert "\rmeasuring a: " in out
        assert "a is fast\n" in out
        assert out.endswith("\r")  # the bar is gone


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
        monkeypatch.setattr(_processor, "PROCESSORS", processors)
        assert machine.instruction_sets() == sets
        assert machine.processor() == "Abacus 3000"


class TestCheck:
    def test_every_kernel_has_a_line_and_all_is_well(self, small_check, capsys) -> None:
        assert main(["check"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for family in check.FAMILIES:
            for name in check.MAPS:
                (line,) = (one for one in lines if one.startswith(f"{family.name:<20}{name:<15}"))
                assert line.endswith("  ok")
        assert lines[-1].startswith("all 18 kernels ok")

    def test_json_has_every_kernel_in_every_type(self, small_check, tmp_path: Path, capsys) -> None:
        file = tmp_path / "c.json"
        assert main(["check", "--json", str(file)]) == 0
        document = json.loads(file.read_text())
        assert document["device"] == machine.processor()
        places = {(one["structure"], one["kernel"], one["dtype"]) for one in document["kernels"]}
        assert len(places) == len(document["kernels"]) == 18 * 4
        assert all(0 <= one["error"] <= one["limit"] and not one["failed"] for one in document["kernels"])

    def test_on_a_gpu_both_ways_are_checked(self, small_check, monkeypatch, capsys) -> None:
        ways = check._ways(torch.device("cuda"))
        assert len(ways) == 2
        monkeypatch.setattr(check, "_ways", lambda device: ways)
        assert main(["check"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for title in ways:
            assert lines.count(title) == 1
        assert lines[-1].startswith("all 36 kernels ok")

    @pytest.mark.parametrize(
        ("operator", "fails"),
        [
            ("grid", {"product", "transposed"}),
            ("grid_pullback", {"pullback"}),
            ("grid_backward", {"fused backward"}),
            ("grid_dense", {"dense"}),
            ("grid_dense_adjoint", {"dense adjoint"}),
        ],
    )
    def test_a_wrong_operator_fails_in_the_lines_that_use_it(
        self, operator: str, fails: set[str], small_check, monkeypatch, capsys
    ) -> None:
        monkeypatch.setattr(ops, f"_{operator}", wrong(getattr(ops, f"_{operator}")))
        assert main(["check", "--only", "block"]) == 1
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("block circulant")]
        assert {line[20:35].strip() for line in lines if line.endswith("FAILED")} == fails
        assert len(lines) == len(check.MAPS)

    def test_a_kernel_that_raises_has_failed(self, small_check, monkeypatch, capsys) -> None:
        def broken(*arguments):
            raise RuntimeError("[out] of order")

        monkeypatch.setattr(ops, "_grid_dense", broken)
        assert main(["check", "--only", "block"]) == 1
        out = capsys.readouterr().out
        assert "float32, parameters (2, 3, 5): RuntimeError: [out] of order" in out
        assert "2 of 6 kernels FAILED" in out

    @pytest.mark.parametrize("dtype", check.DTYPES, ids=str)
    def test_limits_let_a_rounded_answer_pass_and_nothing_worse(self, dtype: torch.dtype) -> None:
        exact = torch.randn(1000, dtype=torch.float64)
        assert accuracy.deviation(exact.to(dtype), exact).ok
        assert not accuracy.deviation((exact * 1.01).to(dtype), exact).ok
        assert accuracy.deviation(exact.to(dtype), exact, roundings=2).ok
        assert not accuracy.deviation((exact * 1.01).to(dtype), exact, roundings=2).ok
        broken = exact.to(dtype)
        broken[3] = torch.nan
        assert not accuracy.deviation(broken, exact).ok
        assert not accuracy.deviation(exact.to(dtype)[:-1], exact).ok
        zero = torch.zeros(4, dtype=torch.float64)
        assert accuracy.deviation(zero.to(dtype), zero).ok
        assert not accuracy.deviation(zero.to(dtype) + 1e-3, zero).ok

    def test_more_is_allowed_only_where_tensor_cores_may_serve(self, monkeypatch) -> None:
        monkeypatch.setenv("SURM_KERNELS_GPU_PRECISION", "auto")
        for dtype in (torch.bfloat16, torch.float16):
            assert accuracy.factor(dtype, "cuda") == 1.2
            assert accuracy.factor(dtype, "cpu") == 1.05
        monkeypatch.setenv("SURM_KERNELS_GPU_PRECISION", "float32")
        assert accuracy.factor(torch.float16, "cuda") == accuracy.factor(torch.bfloat16, "cuda") == 1.05


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

    def test_ours_may_be_allowed_to_deviate_by_more_than_its_limit_and_a_rival_may_not(self) -> None:
        error = 2 * accuracy.FLOAT32_LIMIT
        measured = measure.measure(self.workload("ours", "rival", log=[], error=error), FAST, allowed=3.0)
        assert not measured.refused and not measured.deviations["ours"].ok
        assert set(measured.samples) == {"ours", "rival"}
        made = self.workload("rival", log=[], error=1e-2).contenders[0]
        worse = dataclasses.replace(made, name="worse")
        workload = self.workload("ours", log=[], error=error)
        workload = dataclasses.replace(workload, contenders=(*workload.contenders, worse))
        assert set(measure.measure(workload, FAST, allowed=3.0).samples) == {"ours"}
        assert measure.measure(workload, FAST, allowed=1.5).refused

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


def first_column(at: Point, c: torch.Tensor) -> torch.Tensor:
    return oracle.f_circulant(c, 1.0)


#: The float64 matrix at a point, by the index formula of the tests.
MATRICES = {
    "circulant-forward": first_column,
    "circulant-training": first_column,
    "awkward-forward": first_column,
    "awkward-training": first_column,
    "one-token": first_column,
    "dense-circulant": first_column,
    "block-circulant-training": lambda at, c: oracle.matrix(c, 1.0),
    "skew-circulant-training": lambda at, s: oracle.f_circulant(s, -1.0),
    "toeplitz-training": lambda at, t: oracle.toeplitz(t, at.in_features),
    "dense-toeplitz": lambda at, t: oracle.toeplitz(t, at.in_features),
    "hankel-training": lambda at, h: oracle.hankel(h, at.in_features),
    "toeplitz-like-training": lambda at, left, right: oracle.ldr(left, right, False),
    "kronecker-training": lambda at, a, b: oracle.kronecker(a, b),
    "vandermonde-training": lambda at, v: oracle.vandermonde(v, at.in_features),
    "hydra-training": lambda at, pool: hydra.structure(at).dense(pool),
}


def siva_update(structure: Siva, s: torch.Tensor) -> torch.Tensor:
    U, V = (basis.double() for basis in adapted.siva_bases(structure))
    return torch.einsum("ik,k,jk->ij", U, s, V)


def symmetric(t: torch.Tensor) -> torch.Tensor:
    return oracle.toeplitz(torch.cat([t.flip(0)[:-1], t]), len(t))


#: The same of the updates of the frozen layer.
UPDATES = {
    "adapted-circulant": first_column,
    "adapted-bfloat16": first_column,
    "adapted-siva": lambda at, s: siva_update(adapted.siva_structure(at), s),
    "adapted-toeplitz": lambda at, t: oracle.toeplitz(t, at.in_features),
    "adapted-kronecker": lambda at, a, b: oracle.kronecker(a, b),
    "adapted-toeplitz-like": lambda at, left, right: oracle.ldr(left, right, False),
    "adapted-surm": lambda at, r1, r2: oracle.f_circulant(r1 * r2, 1.0),
    "adapted-siva-half": lambda at, s: siva_update(steps.SIVA.make(at), s),
    "adapted-surm-toeplitz": lambda at, t1, t2: symmetric(t2) @ symmetric(t1),
    "adapted-hydra": lambda at, pool: hydra.structure(at).dense(pool),
}


ADAPTED = (*adapted.CASES, *steps.CASES, *encoders.CASES)
AT_SMALL_POINTS = [
    pytest.param(case, one, dtype, id=f"{case.name}-{one.in_features}-{one.out_features}-{records.name_of(dtype)}")
    for case in cases.CASES
    for one in small_points(case)
    for dtype in case.dtypes
]


class TestRivals:
    @pytest.mark.parametrize(("case", "at", "dtype"), AT_SMALL_POINTS)
    def test_every_rival_that_computes_the_same_agrees(self, case: Case, at: Point, dtype: torch.dtype) -> None:
        made = workload(case, at, dtype, pytest.skip)
        found = measure.deviations(made)
        assert {name for name, deviation in found.items() if not deviation.ok} == set()
        other_maps = {one.name for one in case.contenders if one.comparable is measure.compare_nothing}
        assert set(found) == {one.name for one in made.contenders} - other_maps
        assert OURS in found
        assert len(found) >= 2
        with torch.set_grad_enabled(made.gradients):
            results = [one.call() for one in made.contenders if one.name in found]
        count = 2 + len(case.shapes(at)) if case.gradients else 1
        assert [[t.dtype for t in result] for result in results] == [[dtype] * count] * len(found)

    @pytest.mark.parametrize(
        ("case", "at", "dtype"),
        [one for one in AT_SMALL_POINTS if one.values[0].name in MATRICES and one.values[2] == torch.float32],
    )
    def test_the_exact_answer_is_that_of_the_matrix(self, case: Case, at: Point, dtype: torch.dtype) -> None:
        x, parameters, g = inputs(case, at, dtype)
        exact = workload(case, at, dtype, lambda reason: None).exact()
        matrix = MATRICES[case.name](at, *(p.double() for p in parameters))
        assert matrix.shape == (at.out_features, at.in_features)
        assert accuracy.error(exact[0], x.double() @ matrix.T if at.tokens else matrix) < 1e-13
        if g is not None:
            assert accuracy.error(exact[1], g.double() @ matrix) < 1e-13

    @pytest.mark.parametrize("case", ADAPTED, ids=lambda case: case.name)
    def test_the_exact_answer_of_an_adapted_layer_is_the_frozen_one_and_the_update(self, case: Case) -> None:
        product = case.exact(SMALL)
        x, parameters, _ = inputs(case, SMALL, torch.float64)
        (alone,) = (one for one in case.contenders if one.name == adapted.FROZEN)
        frozen = alone.load(SMALL, torch.float64)(x)
        nothing = product(x, *(torch.nn.Parameter(torch.zeros_like(p)) for p in parameters))
        assert accuracy.error(nothing, frozen) < 1e-13
        larger = [2 * parameter for parameter in parameters]  # twice what is timed: an update to be seen
        found = product(x, *map(torch.nn.Parameter, larger))
        assert accuracy.error(found, frozen) > 0.01
        if case not in encoders.CASES:
            update = UPDATES[case.name.replace("-token-", "-")]
            assert accuracy.error(found - frozen, x @ update(SMALL, *larger).T) < 1e-13

    @pytest.mark.parametrize("case", [case for case in ADAPTED if case.updates], ids=lambda case: case.name)
    def test_every_call_of_an_adapted_layer_has_other_parameters(self, case: Case) -> None:
        for contender in workload(case, SMALL, case.dtypes[0], pytest.skip).contenders:
            first, second, third = (contender.call()[0].double() for _ in range(3))
            if contender.name != adapted.FROZEN:
                assert accuracy.error(second, first) > 1e-4
            assert accuracy.error(third, first) < (1e-2 if case.dtypes[0] == torch.bfloat16 else 1e-5)

    def test_steps_change_parameters_every_time_and_leave_them_near_their_start(self) -> None:
        start, gradient = torch.randn(50), torch.randn(50)
        parameter = start.clone()
        step = Steps((parameter,))
        for index in range(1000):
            before = parameter.clone()
            step((gradient,))
            downhill = torch.dot(parameter - before, gradient) < 0
            assert downhill == (index % 2 == 0)
            assert accuracy.error(parameter, before.double()) == pytest.approx(0.02, rel=0.05)
        assert accuracy.error(parameter, start.double()) < 1e-5

    def test_what_cannot_be_loaded_of_ours_is_no_measurement_but_a_note(self, monkeypatch, capsys) -> None:
        def load(at: Point, dtype: torch.dtype):
            raise Unavailable("no BERT layers here")

        broken = dataclasses.replace(
            encoders.BERT_CIRCULANT, contenders=(Method(OURS, load), *encoders.BERT_CIRCULANT.contenders[1:])
        )
        with pytest.raises(Unavailable):
            workload(broken, SMALL, torch.float32, pytest.fail)
        monkeypatch.setattr(cases, "CASES", (dataclasses.replace(broken, quick=(SMALL,)),))
        assert main(["bench", "--quick", "--only", "adapted-bert"]) == 0
        out = capsys.readouterr().out
        assert "note: no BERT layers here" in out
        assert adapted.FROZEN not in out

    def test_without_peft_the_reason_is_noted(self, monkeypatch) -> None:
        circulant._peft_c3a.cache_clear()
        monkeypatch.setitem(sys.modules, "peft.tuners.c3a.layer", None)
        notes: list[str] = []
        made = workload(circulant.TRAINING, SMALL, torch.float32, notes.append)
        circulant._peft_c3a.cache_clear()
        assert circulant.PEFT_C3A not in [one.name for one in made.contenders]
        assert notes[0].startswith("no comparison with PEFT C3A: ")
        assert "pip install peft" in notes[0]

    @pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
    def test_claims_are_about_rivals_types_and_sizes_that_are_measured(self, case: Case) -> None:
        assert set(case.quick) <= set(case.points)
        for claim in case.claims:
            assert claim.rival in [method.name for method in case.contenders if method.in_quick]
            assert claim.dtype in case.dtypes
            assert any(claim.about(one) for one in case.points)

    @pytest.mark.parametrize("case", cases.MEMORY_CASES, ids=lambda case: case.name)
    def test_memory_claims_are_about_rivals_and_sizes_that_are_measured(self, case: MemoryCase) -> None:
        assert case.methods[0].name == OURS
        assert set(case.methods) <= set(case.case.contenders)
        assert case.claim.rival in [None, *(method.name for method in case.methods[1:])]
        assert set(case.quick) <= set(case.points)
        assert case.case.gradients

    def test_names_tell_every_case_apart(self) -> None:
        names = [case.name for case in (*cases.CASES, *cases.MEMORY_CASES)]
        assert len(set(names)) == len(names)

    def test_points_have_the_elements_of_the_larger_side(self) -> None:
        assert point(768, 3072) == Point(768, 3072, 1365)
        assert point(4096) == Point(4096, 4096, 1024)
        assert point(768, tokens=4096) == Point(768, 768, 4096)
        assert [str(one) for one in (Point(12, 12, 5), Point(12, 20, 5), Point(12, 20, 0))] == [
            "12 × 5",
            "12 → 20 × 5",
            "20 × 12",
        ]

    def test_the_kronecker_factors_at_768_are_those_of_surm(self) -> None:
        assert kronecker.factors(point(768)) == ((32, 24), (24, 32))
        assert kronecker.factors(point(7)) == ((7, 1), (1, 7))


class TestBench:
    def test_json_markdown_and_tables_hold_what_was_measured(self, small_bench, tmp_path: Path, capsys) -> None:
        files = tmp_path / "b.json", tmp_path / "b.md"
        before = torch.get_num_threads()
        words = ["bench", "--quick", "--only", "circulant-", "one-token", "--threads", "1", "2"]
        assert main([*words, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
        assert torch.get_num_threads() == before
        document = json.loads(files[0].read_text())
        assert document["command"] == "surm-kernels bench --quick --only circulant- one-token --threads 1 2"
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
                ("skew-circulant-training", "float32"),
                ("one-token", "float32"),
            ]
            for threads in (1, 2)
        }
        for one in document["measurements"]:
            assert not one["refused"]
            assert (one["in_features"], one["out_features"]) in ((12, 12), (256, 256))
            assert one["tokens"] == 5
            ours, rival = one["contenders"][OURS], one["contenders"][TORCH_FFT]
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
        monkeypatch.setattr(ops, "_grid_backward", wrong(ops._grid_backward))
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

    def test_a_page_has_a_section_for_each_machine_and_json_gives_it_again(
        self, small_bench, monkeypatch, tmp_path: Path, capsys
    ) -> None:
        page, files = tmp_path / "b.md", [tmp_path / "one.json", tmp_path / "two.json"]
        page.write_text("What was here before is no page of ours.\n\n## It goes\n")
        words = [
            "bench",
            "--only",
            "one-token",
            "adapted-surm",
            "memory-circulant",
            "--threads",
            "1",
            "--dtype",
            "float32",
        ]
        monkeypatch.setattr(memory, "extra_megabytes", lambda *arguments: 1.5)
        for file, name in zip(files, ("Abacus 3000", "Abacus 4000"), strict=True):
            monkeypatch.setattr(machine, "processor", lambda name=name: name)
            assert main([*words, "--json", str(file), "--markdown", str(page)]) == 0
        found = page.read_text()
        sections = [line for line in found.splitlines() if line.startswith("## ")]
        assert [title.partition(",")[0] for title in sections] == ["## Abacus 3000", "## Abacus 4000"]
        assert found.count("### Circulant, one token, forward, float32, 1 thread") == 2
        monkeypatch.setattr(measure, "samples", lambda *arguments: pytest.fail("nothing is to be measured"))
        again = tmp_path / "again.md"
        assert main(["bench", "--from-json", *map(str, files), "--markdown", str(again)]) == 0
        assert again.read_text() == found
        assert "Abacus 3000" in capsys.readouterr().out
        # A later run of a machine takes the place of the earlier one.
        document = json.loads(files[0].read_text())
        files[0].write_text(json.dumps(document | {"date": "2099-01-01"}))
        assert main(["bench", "--from-json", str(files[0]), "--markdown", str(page)]) == 0
        assert page.read_text().count("## Abacus 3000") == 1
        assert page.read_text().count("- date: ") == 2
        assert "- date: 2099-01-01" in page.read_text()

    def test_a_run_with_a_wrong_result_is_one_when_it_is_read_again(self, small_bench, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr(ops, "_grid_backward", wrong(ops._grid_backward))
        file = tmp_path / "b.json"
        words = ["bench", "--only", "circulant-training", "--dtype", "float32", "--json", str(file)]
        assert main(words) == main(["bench", "--from-json", str(file)]) == 1

    @pytest.mark.parametrize("text", ["", "3", "{}", '{"command": 3}'])
    def test_what_is_no_run_of_bench_is_refused(self, text: str, tmp_path: Path, capsys) -> None:
        file = tmp_path / "b.json"
        file.write_text(text)
        assert main(["bench", "--from-json", str(file)]) == 2
        assert f"--from-json: {file} holds no run of bench" in capsys.readouterr().err

    def test_a_quick_look_leaves_cases_out_unless_they_are_asked_for(self, small_bench, monkeypatch, tmp_path) -> None:
        few = [case for case in cases.CASES if case.name in ("circulant-training", "hankel-training")]
        left_out = [dataclasses.replace(case, quick=()) if case.name == "hankel-training" else case for case in few]
        monkeypatch.setattr(cases, "CASES", tuple(left_out))
        monkeypatch.setattr(cases, "MEMORY_CASES", ())
        file = tmp_path / "b.json"
        for more, names in (([], {"circulant-training"}), (["--only", "hankel"], {"hankel-training"})):
            assert main(["bench", "--quick", "--json", str(file), *more]) == 0
            assert {one["case"] for one in json.loads(file.read_text())["measurements"]} == names

    def test_the_cases_are_listed(self, capsys) -> None:
        assert main(["bench", "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == [case.name for case in (*cases.CASES, *cases.MEMORY_CASES)]

    def test_every_new_structure_is_measured_against_its_rivals(self, small_bench, tmp_path: Path) -> None:
        file = tmp_path / "b.json"
        wanted = ["toeplitz-training", "like-", "hankel", "kronecker", "vandermonde-training", "hydra", "dense-"]
        words = ["bench", "--only", *wanted, "--threads", "1", "--dtype", "float32", "--json", str(file)]
        assert main(words) == 0
        document = json.loads(file.read_text())
        assert {one["case"] for one in document["measurements"]} == {
            case.name for case in cases.CASES if any(word in case.name for word in wanted)
        }
        assert not any(one["refused"] for one in document["measurements"])
        titles = [claim["title"] for claim in document["claims"]]
        assert titles.count("Kronecker, forward + backward, float32") == 2
        assert all(claim["median"] > 0 for claim in document["claims"])

    @pytest.mark.parametrize("name", ["memory-circulant", "kept-adapted-siva"])  # the peak, and what is kept
    def test_memory_is_measured_in_a_process_of_its_own(self, name: str) -> None:
        (case,) = (case for case in cases.MEMORY_CASES if case.name == name)
        rival = case.methods[1].name
        found = memory.extra_megabytes(case, rival, Point(1024, 1024, 2048), torch.float32, 1)
        if found is None:
            pytest.skip("this system does not tell the peak of a part of a process")
        assert found > 4  # of 4 MB each: the whole matrix, or two spectra

    def test_our_adapted_layer_keeps_nothing_for_the_backward(self) -> None:
        (case,) = (one for one in adapted.MEMORY_CASES if one.kept)
        at = Point(24, 24, 100)
        ours, rival = (memory._measure_here(case.case, one, at, torch.float32, kept=True) for one in case.methods)
        assert ours == 0
        assert rival == 100 * adapted.siva_structure(at).k * 4 / memory.MEGABYTE  # x V

    def test_a_failing_memory_process_is_a_clear_error(self) -> None:
        with pytest.raises(usage.UsageError, match="memory: the measuring process failed"):
            memory.extra_megabytes(cases.MEMORY_CASES[0], "nothing", SMALL, torch.float32, 1)

    @pytest.mark.parametrize(
        ("claim", "ours", "rival", "worst", "reached"),
        [
            (MemoryClaim(8.0), [4.0, 16.0], [1.0, 1.0], 8.0, True),
            (MemoryClaim(8.0), [4.0, 17.0], [1.0, 1.0], 8.5, False),
            (MemoryClaim(0.2, TORCH_FFT), [4.0, 10.0], [40.0, 50.0], 0.2, True),
            (MemoryClaim(0.2, TORCH_FFT), [4.0, 10.0], [40.0, 40.0], 0.25, False),
        ],
    )
    def test_a_memory_claim_is_about_a_thread_or_a_share_of_the_rival(
        self, claim: MemoryClaim, ours: list[float], rival: list[float], worst: float, reached: bool
    ) -> None:
        case = dataclasses.replace(displacement.MEMORY_CASES[0], claim=claim)
        (verdict,) = records.verdicts([], self.memory_records(case, ours, rival))
        assert (verdict.worst, verdict.reached, verdict.sizes) == (worst, reached, "2 of 3")
        assert verdict.title == "memory of Toeplitz-like r = 4, forward + backward"

    @pytest.mark.parametrize("rival", [[None, None], [0.0, 1.0]])
    def test_a_memory_claim_without_the_rivals_memory_is_left_out(self, rival: list[float | None]) -> None:
        found = self.memory_records(displacement.MEMORY_CASES[0], [1.0, 1.0], rival)
        assert records.verdicts([], found) == []

    @staticmethod
    def memory_records(case: MemoryCase, *megabytes: list) -> list[records.MemoryRecord]:
        return [
            records.MemoryRecord(case, method, at, torch.float32, 2, value)
            for method, values in zip((OURS, TORCH_FFT), megabytes, strict=True)
            for at, value in zip(case.points, values, strict=False)
        ]

    def test_a_claim_about_a_number_of_tokens_leaves_the_others_out(self) -> None:
        case = dataclasses.replace(adapted.CASES[0], claims=(Claim(adapted.FROZEN, 0.9, 0.9, tokens=2048),))
        fine = {OURS: accuracy.Deviation(0.0, 1.0)}
        found = [
            records.Record(
                case, at, torch.float32, 2, measure.Measurement(OURS, fine, {OURS: [1.0], adapted.FROZEN: [ratio]})
            )
            for at, ratio in zip(case.points, (0.95, 0.1), strict=True)
        ]
        (verdict,) = records.verdicts(found, [])
        assert (verdict.reached, verdict.worst, verdict.sizes) == (True, 0.95, "1 of 1")
        assert verdict.title == "frozen layer + circulant, training step, float32, 2048 tokens"

    def test_a_claim_about_square_sizes_leaves_the_others_out(self) -> None:
        case = next(case for case in cases.CASES if case.name == "toeplitz-training")
        fine = {OURS: accuracy.Deviation(0.0, 1.0)}
        found = [
            records.Record(
                case, at, torch.float32, 2,
                measure.Measurement(OURS, fine, {OURS: [1.0], toeplitz.CIRCULANT: [ratio]}),
            )
            for at, ratio in ((Point(12, 12, 5), 0.5), (Point(12, 20, 5), 0.1))
        ]  # fmt: skip
        (verdict,) = records.verdicts(found, [])
        assert verdict.reached
        assert (verdict.worst, verdict.sizes, verdict.wanted) == (0.5, "1 of 4", "≥ 0.435×")

    @pytest.mark.parametrize(
        ("ratios", "reached"), [((4.6, 4.6), True), ((3.4, 9.0), False), ((3.6, 4.6), False), ((3.6, 5.6), True)]
    )
    def test_a_claim_needs_its_median_and_its_worst_size(self, ratios: tuple[float, ...], reached: bool) -> None:
        fine = {OURS: accuracy.Deviation(0.0, 1.0)}
        found = [
            records.Record(
                circulant.TRAINING, SMALL, torch.float32, 2,
                measure.Measurement(OURS, fine, {OURS: [1.0], TORCH_FFT: [ratio]}),
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


class TestTune:
    @pytest.fixture(autouse=True)
    def few_families(self, monkeypatch, tmp_path: Path):
        """Two families of small sizes, measured in no time, and a cache of the test's own."""
        few = {name: calibration.FAMILIES[name] for name in ("Circulant", "Structure")}
        hasty = Effort(most=1, fewest=1, seconds=0.0, sample_seconds=0.0)
        for module, names in {
            tune: {"FAMILIES": few, "SIZES": (12, 48), "FULL": hasty, "QUICK": hasty},
            calibration: {"FAMILIES": few, "SIZES": (12, 48), "TOKENS": (2, 8)},
        }.items():
            for name, value in names.items():
                monkeypatch.setattr(module, name, value)
        monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "new" / "cache"))
        monkeypatch.setenv("COLUMNS", "300")
        cost_model.forget()
        yield
        cost_model.forget()

    @staticmethod
    def file(threads: int) -> Path:
        return cost_constants.user_file(cost_constants.Place.here(threads))

    def test_what_it_measures_is_kept_and_in_use_until_it_is_reset(self, capsys) -> None:
        threads = torch.get_num_threads()
        shipped = cost_constants.table_in_use(threads)
        assert main(["tune"]) == 0
        assert torch.get_num_threads() == threads
        measured = cost_constants.table_in_use(threads)
        assert measured.place == cost_constants.Place.here(threads)
        assert list(measured.families) == ["Circulant", "Structure"]
        assert [list(at) for types in measured.families.values() for at in types.values()] == [[12, 48]] * 4
        assert list(self.file(threads).parent.iterdir()) == [self.file(threads)]
        assert f"wrote {self.file(threads)}" in capsys.readouterr().out

        assert main(["tune", "--reset"]) == 0
        assert f"removed {self.file(threads)}" in capsys.readouterr().out
        assert not self.file(threads).exists()
        assert cost_constants.table_in_use(threads) == shipped
        assert main(["tune", "--reset"]) == 0
        assert f"there is no {self.file(threads)}" in capsys.readouterr().out

    def test_every_number_of_threads_has_constants_of_its_own(self) -> None:
        assert main(["tune", "--quick", "--threads", "1", "2"]) == 0
        tables = [cost_constants.table_in_use(threads) for threads in (1, 2)]
        assert [table.place.threads for table in tables] == [1, 2]
        assert self.file(1) != self.file(2)

    def test_a_file_of_its_own_has_what_the_package_ships(self, monkeypatch, tmp_path: Path) -> None:
        file = tmp_path / "costs.json"
        assert main(["tune", "--threads", "1", "3", "--output", str(file)]) == 0
        assert not self.file(1).exists()
        monkeypatch.setattr(cost_constants, "SHIPPED", file)
        cost_model.forget()
        assert [cost_constants.table_in_use(threads).place.threads for threads in (1, 2, 3)] == [1, 3, 3]

    def test_a_file_of_tables_keeps_those_of_other_machines(self, tmp_path: Path) -> None:
        file = tmp_path / "costs.json"
        here = cost_constants.Place.here(1)
        old, other = (
            cost_constants.Table(dataclasses.replace(here, **changes), cost_constants.table_in_use(1).families)
            for changes in ({"version": "0.0.1"}, {"processor": "Abacus 3000"})
        )
        cost_constants.write([old, other], file)
        assert main(["tune", "--threads", "1", "--output", str(file)]) == 0
        kept, measured = cost_constants.read_all(file)
        assert (kept, measured.place) == (other, here)

    def test_a_file_that_holds_no_tables_is_refused_before_the_work(self, monkeypatch, tmp_path: Path, capsys) -> None:
        monkeypatch.setattr(calibration, "measure", lambda *arguments: pytest.fail("nothing is to be measured"))
        file = tmp_path / "costs.json"
        file.write_text("[{}]")
        assert main(["tune", "--output", str(file)]) == 2
        assert f"--output: {file} holds something else than tables" in capsys.readouterr().err

    def test_it_lists_what_was_measured_where_and_says_what_serves(self, capsys) -> None:
        assert main(["tune", "--list", "--threads", "2"]) == 0
        before = capsys.readouterr().out
        shipped = cost_constants.read_all(cost_constants.SHIPPED)
        assert before.count("  the package\n") == len(shipped)
        assert all(f"{one.date}" in before and one.place.processor in before for one in shipped)
        assert main(["tune", "--threads", "2"]) == 0
        capsys.readouterr()
        assert main(["tune", "--list", "--threads", "2"]) == 0
        after = capsys.readouterr().out
        assert after.count("  the cache\n") == 1
        assert "they are this machine's own" in after

    def test_it_shows_what_is_in_use_without_measuring(self, monkeypatch, capsys) -> None:
        monkeypatch.setattr(calibration, "measure", lambda *arguments: pytest.fail("nothing is to be measured"))
        assert main(["tune", "--show", "--threads", "2"]) == 0
        out = capsys.readouterr().out
        assert provenance.measured_text(cost_constants.table_in_use(2)) in out
        for name, make in calibration.FAMILIES.items():
            (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
            found = [
                cost_model.break_even(make(size), getattr(torch, dtype), threads=2)
                for dtype in cost_constants.MEASURED_TYPES
                for size in tune.SIZES
            ]
            assert line.split()[1:] == [f"{tokens:.0f}" for tokens in found]

    def test_an_interruption_leaves_no_file(self, monkeypatch) -> None:
        def interrupt(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(calibration, "costs", interrupt)
        assert main(["tune"]) == 130
        assert not list(self.file(1).parent.iterdir())

    def test_a_cache_that_cannot_be_made_is_refused_before_the_work(self, monkeypatch, tmp_path: Path, capsys) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "file" / "cache"))
        monkeypatch.setattr(calibration, "measure", lambda *arguments: pytest.fail("nothing is to be measured"))
        assert main(["tune"]) == 2
        assert "surm-kernels tune: the cache " in capsys.readouterr().err

    def test_info_says_which_constants_choose_and_what_to_run_where_they_are_of_another_machine(
        self, monkeypatch, tmp_path: Path, capsys
    ) -> None:
        processors = tmp_path / "cpuinfo"
        processors.write_text("model name\t: Abacus 3000\nflags\t\t: amx_tile amx_bf16 avx512_bf16 avx512f\n")
        monkeypatch.setattr(_processor, "PROCESSORS", processors)
        threads = torch.get_num_threads()
        shipped = cost_constants.table_in_use(threads)
        main(["info"])
        out = capsys.readouterr().out
        assert f"{provenance.measured_text(shipped)}: those of the package" in out
        assert f"they are not this machine's own: the processor is Abacus 3000, not {shipped.place.processor}" in out
        assert f"matrix products run on amx_bf16, not {shipped.place.products} (SiVA" in out
        assert f"`surm-kernels tune --threads {threads}` measures them here" in out
        main(["tune"])
        main(["info"])
        out = capsys.readouterr().out
        assert str(self.file(threads)) in out
        assert "they are this machine's own" in out

    def test_info_says_what_was_measured_at_first_use(self, capsys) -> None:
        place = cost_constants.Place.here(torch.get_num_threads())
        families = {"Circulant": cost_constants.table_in_use(1).families["Circulant"]}
        file = cost_constants.first_use_file(place)
        cost_constants.write(cost_constants.Table(place, families), file)
        main(["info"])
        out = capsys.readouterr().out
        assert f"Circulant: measured here, {cost_constants.Table(place, {}).date}: {file}" in out
        assert "those of the package" in out
        main(["tune", "--reset"])
        assert not file.exists()
