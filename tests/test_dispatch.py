"""Which kernel a CUDA tensor gets: the rule on sizes alone, and the operators' way through it without a GPU."""

import ast
import importlib
import inspect
import json
import re
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch

import surm_kernels
from surm_kernels import _environment, gpu_rule
from surm_kernels._namespace import CUDA_NAMESPACE, NAMESPACE
from surm_kernels.block_kinds import CIRCULANT, HANKEL, SKEW_CIRCULANT, TOEPLITZ
from surm_kernels.command import gpu_calibration
from surm_kernels.command.main import main
from surm_kernels.gpu_rule import ALWAYS_CUDA, ALWAYS_TRITON, Crossovers, Machine, Problem
from surm_kernels.ops import _cuda, _problems
from surm_kernels.reference.ops import grid as reference
from tests import oracle
from tests.emulator.build import emulated_kernels

PACKAGE = Path(surm_kernels.__file__).parent
SIXTEEN_BIT = (torch.bfloat16, torch.float16)
ALL = Machine("", "", 232_448)  # both backends on a Hopper
LARGEST = ((torch.bfloat16, 512), (torch.float16, 512), (torch.float32, 64))
OPERATORS = sorted({*gpu_rule.CUDA_OPERATORS, *gpu_rule.TRITON_OPERATORS})


def chosen(problem: Problem, there: Machine = ALL, needed: int = 0, forced: str = "auto") -> str:
    """What the rule says with its defaults."""
    refusals = {
        "cuda": gpu_rule.cuda_refusal(problem, there, needed),
        "triton": gpu_rule.triton_refusal(problem, there),
    }
    return gpu_rule.choose(problem, refusals, Crossovers(), forced)


class TestRule:
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_every_operator_gets_a_backend_that_has_its_kernel_and_type(self, operator: str) -> None:
        dtypes, sizes = (torch.float64, torch.float32, *SIXTEEN_BIT), (1, 64, 512, 513, 4096)
        machines = [Machine(cuda, triton, 100) for cuda, triton in product(("", "no nvcc"), ("", "no Triton"))]
        for dtype, size, few, there, needed in product(dtypes, sizes, (False, True), machines, (0, 101)):
            backend = chosen(Problem(operator, dtype, 2, 3, size, size, few_tokens=few), there, needed)
            cuda_serves = operator in gpu_rule.CUDA_OPERATORS and not there.cuda and needed <= there.shared_memory
            triton_serves = operator in gpu_rule.TRITON_OPERATORS and not there.triton and dtype != torch.float64
            assert backend in ["reference", "cuda", "triton"]
            assert backend != "cuda" or cuda_serves
            assert backend != "triton" or triton_serves
            assert backend != "reference" or not (cuda_serves or triton_serves)

    @pytest.mark.parametrize("operator", ["grid", "grid_backward", "grid_pullback"])
    @pytest.mark.parametrize(("dtype", "largest"), LARGEST)
    def test_blocks_up_to_the_crossover_go_to_triton_and_larger_ones_to_cuda(
        self, operator: str, dtype: torch.dtype, largest: int
    ) -> None:
        assert chosen(Problem(operator, dtype, 1, 1, 1, 1)) == "triton"
        assert chosen(Problem(operator, dtype, 1, 1, largest, largest)) == "triton"
        assert chosen(Problem(operator, dtype, 1, 1, largest + 1, largest + 1)) == "cuda"

    def test_a_rectangle_counts_by_its_products_over_its_rows_and_columns(self) -> None:
        assert chosen(Problem("grid", torch.bfloat16, 1, 1, 384, 768)) == "triton"  # the mean is 512
        assert chosen(Problem("grid", torch.bfloat16, 1, 1, 385, 768)) == "cuda"
        assert chosen(Problem("grid", torch.bfloat16, 1, 1, 1, 1 << 20)) == "triton"

    def test_pullbacks_of_large_grids_go_to_triton_for_larger_blocks(self) -> None:
        for operator, blocks, wanted in (
            ("grid_pullback", (4, 4), "triton"),
            ("grid_backward", (16, 1), "triton"),
            ("grid_pullback", (3, 5), "cuda"),
            ("grid", (4, 4), "cuda"),
        ):
            assert chosen(Problem(operator, torch.bfloat16, *blocks, 768, 768)) == wanted
            assert chosen(Problem(operator, torch.bfloat16, *blocks, 769, 769)) == "cuda"

    def test_few_tokens_go_to_cuda_unless_it_cannot(self) -> None:
        few = Problem("grid", torch.bfloat16, 1, 1, 64, 64, few_tokens=True)
        assert chosen(few) == "cuda"
        assert chosen(few, ALL._replace(cuda="no nvcc")) == "triton"

    def test_what_does_not_fit_shared_memory_goes_to_triton_and_in_float64_to_the_reference(self) -> None:
        large = Problem("grid", torch.bfloat16, 1, 1, 1 << 16, 1 << 16)
        assert chosen(large, needed=ALL.shared_memory) == "cuda"
        assert chosen(large, needed=ALL.shared_memory + 1) == "triton"
        assert chosen(large._replace(dtype=torch.float64), needed=ALL.shared_memory + 1) == "reference"
        assert chosen(large._replace(operator="ldr"), needed=ALL.shared_memory + 1) == "reference"

    @pytest.mark.parametrize("forced", ["cuda", "triton"])
    def test_a_forced_backend_serves_alone_or_says_what_it_cannot(self, forced: str) -> None:
        other = "triton" if forced == "cuda" else "cuda"
        for size, few in product((1, 4096), (False, True)):
            assert chosen(Problem("grid", torch.bfloat16, 2, 3, size, size, few_tokens=few), forced=forced) == forced
        only_other = {"cuda": "diagonal", "triton": "ldr"}[forced]
        for problem, there in (
            (Problem(only_other, torch.float32, 1, 1, 5, 7, 2), ALL),
            (Problem("grid", torch.float32, 1, 1, 5, 7, 2), ALL._replace(**{forced: "it is not here"})),
        ):
            assert chosen(problem, there) == other
            wanted = f"SURM_KERNELS_BACKEND={forced}, but not {problem.operator} in float32 with 1 x 1 blocks of 5 x 7"
            with pytest.raises(RuntimeError, match=re.escape(wanted)):
                chosen(problem, there, forced=forced)

    def test_a_forced_cuda_says_how_much_shared_memory_is_missing(self) -> None:
        with pytest.raises(RuntimeError, match="it takes 101 bytes of shared memory, the device has 100"):
            chosen(Problem("grid", torch.float32), Machine("", "", 100), 101, "cuda")

    @pytest.mark.parametrize("size", [1, 17, 1000, 1 << 20])
    def test_the_ways_of_the_check_take_one_backend_whatever_the_size(self, size: int) -> None:
        refusals = {"cuda": "", "triton": ""}
        for operator, dtype in product(("grid", "grid_backward"), (torch.float32, torch.bfloat16)):
            problem = Problem(operator, dtype, 5, 5, size, size)
            assert gpu_rule.choose(problem, refusals, ALWAYS_CUDA) == "cuda"
            assert gpu_rule.choose(problem, refusals, ALWAYS_TRITON) == "triton"

    @pytest.mark.parametrize(
        ("architectures", "runs", "does_not"),
        [
            ("8.0 9.0 10.0+PTX", ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)), ((7, 5),)),
            ("9.0", ((9, 0),), ((8, 9), (10, 0))),
            ("9.0a", ((9, 0),), ((9, 5), (10, 0))),
            ("7.0+PTX", ((7, 0), (7, 5), (9, 0)), ((6, 1),)),
        ],
    )
    def test_machine_code_serves_its_generation_and_ptx_all_later_ones(self, architectures, runs, does_not) -> None:
        assert all(_cuda.runs_on(architectures, capability) for capability in runs)
        assert not any(_cuda.runs_on(architectures, capability) for capability in does_not)


class TestOperators:
    @pytest.mark.parametrize("operator", OPERATORS)
    def test_every_operator_has_a_choice_for_cuda_with_its_own_arguments(self, operator: str) -> None:
        schema = getattr(torch.ops.surm_kernels, operator).default._schema
        arguments = [argument.name for argument in schema.arguments]
        assert list(inspect.signature(getattr(_problems, operator)).parameters) == arguments
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"surm_kernels::{operator}", "CUDA")
        assert found == (_environment.read("SURM_KERNELS_BACKEND") != "reference")

    @pytest.mark.parametrize("operator", gpu_rule.CUDA_OPERATORS)
    def test_operators_of_cuda_have_one_schema_in_both_namespaces(self, operator: str) -> None:
        ours, cuda = (
            str(getattr(getattr(torch.ops, namespace), operator).default._schema).removeprefix(f"{namespace}::")
            for namespace in (NAMESPACE, CUDA_NAMESPACE)
        )
        assert ours == cuda

    @pytest.mark.parametrize("operator", sorted(gpu_rule.TRITON_OPERATORS))
    def test_operators_of_triton_are_functions_with_their_arguments(self, operator: str) -> None:
        file = PACKAGE / "triton" / f"{gpu_rule.TRITON_OPERATORS[operator]}.py"  # importing it would take Triton
        functions = {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
        schema = getattr(torch.ops.surm_kernels, operator).default._schema
        found = [argument.arg for argument in functions[operator].args.args]
        assert found == [argument.name for argument in schema.arguments]

    def test_a_problem_is_of_the_matrix_as_it_is_applied(self) -> None:
        x, v, t = torch.empty(2, 8, 15), torch.empty(2, 3, 4, 5), torch.empty(2, 3, 4, 11, dtype=torch.float64)
        assert _problems.grid(x, v, None, CIRCULANT, 5, 1.0, True)[2:6] == (4, 3, 5, 5)
        assert _problems.grid(x, v, None, CIRCULANT, 5, 1.0, False)[2:6] == (3, 4, 5, 5)
        assert _problems.grid_pullback(x, x, SKEW_CIRCULANT, 5, 5, 1.0)[2:6] == (3, 3, 5, 5)
        assert _problems.grid(x, t, None, TOEPLITZ, 5, 1.0, False)[1:6] == (torch.float64, 3, 4, 7, 5)
        assert _problems.grid(x, t, None, TOEPLITZ, 5, 1.0, True)[2:6] == (4, 3, 5, 7)

    def test_a_problem_knows_the_kind_of_its_blocks(self) -> None:
        x, v = torch.empty(1, 8, 5), torch.empty(1, 1, 1, 9)
        for kind in (TOEPLITZ, HANKEL):
            assert _problems.grid(x, v, None, kind, 5, 1.0, False).kind == kind
            assert _problems.grid_pullback(x, x, kind, 5, 5, 1.0).kind == kind
            assert _problems.grid_backward(x, x, v, kind, 5, 1.0, True).kind == kind

    def test_a_spectrum_is_kept_and_used_by_one_backend_whatever_the_type(self) -> None:
        v = torch.empty(1, 3, 4, 5, dtype=torch.bfloat16)
        for dtype, transposed in product(SIXTEEN_BIT, (False, True)):
            kept = _problems.grid_spectrum(v, SKEW_CIRCULANT, 5, transposed)
            outputs, inputs = (4, 3) if transposed else (3, 4)
            x = torch.empty(1, 1, inputs * 5, dtype=dtype)
            used = _problems.grid_by_spectrum(x, v, None, SKEW_CIRCULANT, outputs, inputs, 5, 5, 1.0)
            assert kept._replace(operator="") == used._replace(operator="")

    def test_fewer_tokens_than_a_tile_count_as_few_over_all_groups(self) -> None:
        v = torch.empty(3, 1, 1, 4)
        assert _problems.grid(torch.empty(3, 5, 4), v, None, CIRCULANT, 4, 1.0, False).few_tokens
        assert not _problems.grid(torch.empty(3, 6, 4), v, None, CIRCULANT, 4, 1.0, False).few_tokens


@pytest.fixture
def on_cpu(monkeypatch):
    """Calls with the dispatch key of CUDA tensors on CPU tensors, on a machine that may be set up."""
    there = {"machine": Machine("no nvcc", "no Triton", 100), "shared": 0}
    monkeypatch.setattr(_cuda, "machine", lambda device: there["machine"])
    monkeypatch.setattr(_cuda, "shared_bytes", lambda problem: there["shared"])
    monkeypatch.setattr(_cuda, "_instead", Crossovers())
    monkeypatch.setenv("SURM_KERNELS_BACKEND", "auto")
    monkeypatch.setattr(_cuda, "_warned", False)
    _cuda._backend.cache_clear()
    yield there
    _cuda._backend.cache_clear()


def as_on_cuda(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The product with a grid of circulant blocks."""
    keys, columns = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), v.shape[-1]
    return torch.ops.surm_kernels.grid.default.redispatch(keys, x, v, None, CIRCULANT, columns, 1.0, False)


@pytest.mark.skipif(
    _environment.read("SURM_KERNELS_BACKEND") == "reference", reason="there is no choice where the reference serves"
)
class TestCall:
    x, v = torch.randn(1, 17, 24), torch.randn(1, 3, 2, 12)

    @property
    def exact(self) -> torch.Tensor:
        return self.x.double() @ oracle.matrix(self.v[0], 1).T

    def test_without_kernels_the_reference_serves_after_one_warning_that_says_what_is_missing(self, on_cpu) -> None:
        with pytest.warns(RuntimeWarning, match=r"slow PyTorch reference for grid .* on CUDA: no nvcc; no Triton"):
            y = as_on_cuda(self.x, self.v)
        oracle.assert_close(y, self.exact)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            as_on_cuda(self.x[:, :3], self.v)
            as_on_cuda(self.x.double(), self.v.double())

    def test_what_no_backend_has_goes_to_the_reference_in_silence(self, on_cpu) -> None:
        on_cpu.update(machine=Machine("", "", 100), shared=101)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            oracle.assert_close(as_on_cuda(self.x.double(), self.v.double()), self.exact)

    def test_the_choice_is_made_once_for_tokens_of_one_kind(self, on_cpu, monkeypatch) -> None:
        calls = []
        monkeypatch.setattr(_cuda, "_warn", lambda *arguments: calls.append(arguments))
        for tokens in (16, 17, 16, 17):
            as_on_cuda(self.x[:, :tokens], self.v)
        assert len(calls) == 1

    @pytest.mark.parametrize("backend", ["cuda", "triton"])
    def test_a_call_reaches_the_function_of_the_backend(self, backend: str, on_cpu, monkeypatch) -> None:
        on_cpu.update(machine=ALL)
        asked = []

        def function(name: str, backend: str):
            asked.append((name, backend))
            return getattr(reference, name)

        monkeypatch.setattr(_cuda, "_function", function)
        run = _cuda.kernel("grid", _problems.grid, lambda *arguments: pytest.fail("the reference was called"))
        monkeypatch.setenv("SURM_KERNELS_BACKEND", backend)
        for tokens in (1, 17):
            y = run(self.x[:, :tokens], self.v, None, CIRCULANT, 12, 1.0, False)
            oracle.assert_close(y, self.exact[:, :tokens])
        assert asked == [("grid", backend)]

    @pytest.mark.parametrize("backend", ["cuda", "triton"])
    def test_the_kernels_themselves_serve_on_the_cpu_emulated_or_interpreted(self, backend: str, on_cpu) -> None:
        on_cpu.update(machine=ALL)
        if backend == "cuda":
            emulated_kernels()
        elif not pytest.importorskip("triton").knobs.runtime.interpret:
            pytest.skip("Triton compiles in this process")
        with _cuda.using(ALWAYS_CUDA if backend == "cuda" else ALWAYS_TRITON):
            assert _cuda._backend(_problems.grid(self.x, self.v, None, CIRCULANT, 12, 1.0, False), 0) == backend
            oracle.assert_close(as_on_cuda(self.x, self.v), self.exact)

    def test_factors_too_large_for_a_tile_are_not_for_triton(self, on_cpu) -> None:
        triton = importlib.import_module("surm_kernels.triton")
        if reason := triton.why_not():
            pytest.skip(reason)
        on_cpu.update(machine=ALL)
        small = Problem("kronecker", torch.float32, 12, 16, 5, 7)
        assert _cuda._backend(small, 0) == "triton"
        assert _cuda._backend(small._replace(rows=1 << 12), 0) == "reference"

    def test_constants_may_be_replaced_for_a_time(self, on_cpu) -> None:
        on_cpu.update(machine=ALL)
        problem = Problem("grid", torch.float32, 1, 1, 100, 100)
        with _cuda.using(ALWAYS_TRITON):
            assert _cuda._backend(problem, 0) == "triton"
        assert _cuda._backend(problem, 0) == "cuda"


class TestCrossovers:
    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch, tmp_path: Path):
        monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "cache"))
        gpu_rule.forget()
        yield
        gpu_rule.forget()

    def test_what_is_written_for_a_gpu_is_in_use_for_that_gpu_alone(self) -> None:
        own = Crossovers(1024, 2048, 0, 9)
        file = gpu_rule.write(own, "Abacus / 3000")
        gpu_rule.forget()
        assert file.parent.name == "cache"
        assert gpu_rule.crossovers_of("Abacus / 3000") == own
        assert gpu_rule.crossovers_of("Abacus 4000") == Crossovers()

    @pytest.mark.parametrize("text", ["nonsense", "{}", "[]", json.dumps({"sixteen_bit": "many"})])
    def test_a_file_of_anything_else_is_ignored_with_a_warning(self, text: str) -> None:
        gpu_rule.write(Crossovers(), "Abacus").write_text(text)
        with pytest.warns(RuntimeWarning, match=r"surm_kernels ignores .*surm-kernels tune"):
            assert gpu_rule.crossovers_of("Abacus") == Crossovers()

    def test_the_limit_that_is_kept_costs_the_least_time(self) -> None:
        sizes = (64, 128, 256, 512)
        assert gpu_calibration.best_limit(sizes, (2, 2, 2, 2), (1, 1, 3, 9)) == 128
        assert gpu_calibration.best_limit(sizes, (1, 1, 1, 1), (2, 2, 2, 2)) == 0
        assert gpu_calibration.best_limit(sizes, (2, 2, 2, 2), (1, 1, 1, 1)) == 512
        assert gpu_calibration.best_limit(sizes, (2, 2, 2, 2), (1, 2.1, 1, 9)) == 256  # one disturbed measurement

    def test_measuring_asks_both_backends_at_every_size(self, monkeypatch) -> None:
        ways: list[Crossovers | None] = []

        def milliseconds(call) -> float:
            call()
            ways.append(_cuda._instead)
            return 1.0 if _cuda._instead == ALWAYS_TRITON else 2.0

        monkeypatch.setattr(gpu_calibration, "milliseconds", milliseconds)
        monkeypatch.setattr(gpu_calibration, "SIZES", (4, 8))
        monkeypatch.setattr(gpu_calibration, "VALUES", 64)
        heard: list[str] = []
        assert gpu_calibration.measure(torch.device("cpu"), heard.append) == Crossovers(8, 8, 8)
        assert ways == [ALWAYS_CUDA, ALWAYS_TRITON] * 6
        assert len(heard) == 3

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_tuning_a_gpu_that_is_not_there_is_refused(self, capsys) -> None:
        assert main(["tune", "--device", "cuda"]) == 2
        assert "--device: 'cuda' cannot be used here: torch sees no GPU" in capsys.readouterr().err
        assert main(["tune", "--device", "cuda", "--threads", "2"]) == 2
        assert "--threads and --output are for the processor's constants" in capsys.readouterr().err
