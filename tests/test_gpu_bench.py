"""The GPU session without a GPU: a dry run, and programs in the place of its own that fail as on a GPU they may."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_checks, gpu_record, gpu_report, gpu_stages, gpu_work
from benchmarks.gpu_stages import LOG, RESULTS, Stage, run_stage
from build_support.ninja import ROOT
from surm_kernels import _extension
from surm_kernels.block_kinds import CIRCULANT, TOEPLITZ
from surm_kernels.command.bench.case import OURS, TORCH_FFT
from surm_kernels.gpu_rule import CUDA_OPERATORS, Problem
from surm_kernels.ops import _cuda
from tests.gpu import hooks

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON = (sys.executable, "-c")


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> tuple[int, dict, Path]:
    """The exit status, the document and the file of a dry run."""
    out = tmp_path_factory.mktemp("dry")
    status = gpu.main(["--dry-run", "--out", str(out)])
    file = out / RESULTS
    return status, gpu_record.read(file), file


def row(case: str, n: int, **seconds: list[float]) -> dict:
    """A row of a document with the times of some contenders; names in this test are shorter."""
    names = {"ours": OURS, "copy": gpu_cases.COPY, "fft": TORCH_FFT, "matmul": gpu_cases.MATMUL}
    contenders = {names[name]: {"seconds": times, "operations": 1e9} for name, times in seconds.items()}
    sizes = {"in_features": n, "out_features": n, "tokens": 8}
    return {"case": case, "title": case, **sizes, "dtype": "bfloat16", "refused": False, "contenders": contenders}


def document_of(*rows: dict) -> dict:
    return {"stages": [], "checks": [], "notes": [], "rows": list(rows)}


def test_a_dry_run_walks_every_row_and_says_what_it_is(dry) -> None:
    status, document, _ = dry
    assert status == 0
    assert document["dry_run"] is True
    assert document["wanted_rows"] == len(document["rows"])
    wanted = [gpu_cases.shrunk(job).key for job in gpu_cases.jobs()]
    assert [{name: one[name] for name in gpu_cases.KEY} for one in document["rows"]] == [
        key for index, key in enumerate(wanted) if key not in wanted[:index]
    ]
    assert [one["check"] for one in document["checks"]] == [check.key["check"] for check in gpu_checks.checks()]
    assert all(one["share"] <= 1 for one in document["checks"])
    for one in document["rows"]:
        assert not one.get("error"), one["error"]
        assert one["dtype"] == "bfloat16" or not one["refused"]  # few numbers may round unluckily in 16 bits
        assert one["contenders"][OURS]["error"] is not None
        assert one["refused"] or all(contender["seconds"] for contender in one["contenders"].values())
        assert {OURS, gpu_cases.COPY} < set(one["contenders"])


def test_rows_span_the_sizes_types_and_uses_that_are_wanted() -> None:
    jobs = list(gpu_cases.jobs())
    assert len({str(job.key) for job in jobs}) == len(jobs)
    for use in ("forward", "pullback", "training"):
        for dtype in (torch.float32, torch.bfloat16):
            found = [job for job in jobs if job.of.case.name == f"circulant-{use}" and job.dtype == dtype]
            assert {256, 768, 3072, 8192, 11008, 14336, 16384} <= {job.point.in_features for job in found}
            elements = [job.point.in_features * job.point.tokens for job in found]
            assert min(elements) > 0.99 * gpu_cases.ELEMENTS and max(elements) <= gpu_cases.ELEMENTS


def test_what_says_the_most_is_measured_first() -> None:
    first = [(job.of.case.name, job.point.in_features) for job in gpu_cases.jobs()][:12]
    uses = ("circulant-forward", "circulant-pullback", "circulant-training")
    assert first == [(use, n) for n in (4096, 1024, 8192, 768) for use in uses]
    names = [job.of.case.name for job in gpu_cases.jobs()]
    assert names[12:14] == 2 * ["adapted-step"]
    types = [job.dtype for job in gpu_cases.jobs()]
    assert types == sorted(types, key=str)


def test_the_first_look_calls_every_kernel_below_and_above_the_shared_memory_that_all_may_have() -> None:
    called = {check.operator for check in gpu_checks.checks()}
    # What a spectrum is kept for, and the pullbacks of one generator, have the kernels of these.
    others = {"grid_spectrum", "grid_by_spectrum", "ldr_pullback_left", "ldr_pullback_right"}
    assert called == set(CUDA_OPERATORS) - others
    places = {check.place for check in gpu_checks.checks()}
    taken = [Problem("grid", torch.float32, 1, 1, n, n, kind=kind) for n, kind in ((768, CIRCULANT), (4096, TOEPLITZ))]
    assert all(f"{kind} 1 x 1 of {n} x {n}, float32" in places for n, kind in ((768, "circulant"), (4096, "toeplitz")))
    if _extension.why_no_cuda():
        return
    below, above = map(_cuda.shared_bytes, taken)
    assert below < 48 * 1024 < above


def test_a_wrong_result_of_the_first_look_is_an_error(monkeypatch) -> None:
    check = next(gpu_checks.checks())
    assert "error" not in check.run(torch.device("cpu"))
    monkeypatch.setattr(gpu_checks, "ALLOWED", 1e-3)
    assert check.run(torch.device("cpu"))["error"] == "the result is wrong"
    merge = next(check for check in gpu_checks.checks() if check.operator == "grid_merge")
    assert merge.run(torch.device("cpu")) == {"share": 0.0}
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    assert merge.run(torch.device("cpu"))["error"] == "the result is not the CPU's to the bit"


def test_a_result_that_is_wrong_is_refused_and_named() -> None:
    found = {**row("circulant-forward", 256), "refused": True}
    table = gpu_report.short_table(document_of(found))
    assert "NOT MEASURED circulant-forward, bfloat16, 256 × 8: our result is wrong" in table


def test_a_result_that_is_inexact_is_timed_and_named() -> None:
    found = row("circulant-forward", 256, ours=[1.0])
    found["contenders"][OURS] |= {"error": 3e-3, "error_limit": 2e-3}
    table = gpu_report.short_table(document_of(found))
    assert "INEXACT circulant-forward, bfloat16, 256 × 8: our error is 1.50 times its limit" in table
    assert "4 of 5 rows were left out: no time" in gpu_report.short_table({**document_of(found), "wanted_rows": 5})


def test_inputs_rotate_and_every_contender_meets_all_of_them(monkeypatch) -> None:
    monkeypatch.setattr(gpu_cases, "sets_for", lambda x: 3)
    job = gpu_cases.shrunk(next(job for job in gpu_cases.jobs() if job.dtype == torch.float32))
    made = gpu_cases.workload(job, torch.device("cpu"), set())
    for contender in made.contenders:
        results = [contender.call()[0] for _ in range(4)]
        different = contender.name != gpu_cases.COPY  # copies of one source have the same values
        assert torch.equal(results[0], results[1]) is not different
        assert torch.equal(results[0], results[3])


def test_a_forward_that_is_as_fast_as_copies_reaches_the_aim() -> None:
    rows = [row("circulant-forward", n, ours=[3.0, 4.0, 5.0], copy=[2.0, 2.0, 2.0]) for n in (256, 8192)]
    rows.append(row("circulant-forward", 768, ours=[3.0], copy=[2.0]))
    rows.append(row("circulant-forward", 16384, ours=[9.0], copy=[1.0]))  # beyond what is promised
    assert "wanted ≤ 1.8, median 1.50, worst 1.50, reached at 1 of 1 sizes" in gpu_report.aim_lines(rows)[0]
    assert "wanted ≤ 2, median 2.00, worst 2.00, reached at 1 of 1 sizes" in gpu_report.aim_lines(rows)[1]


def test_one_slow_size_is_told() -> None:
    rows = [row("circulant-training", n, ours=[1.0], fft=[times]) for n, times in ((256, 6.0), (768, 4.0))]
    line = gpu_report.aim_lines(rows)[5]
    assert "wanted ≥ 5, median 5.00, worst 4.00, reached at 1 of 2 sizes" in line


def test_the_rate_is_that_of_operations_over_the_matrix_products() -> None:
    found = row("siva-pullback", 768, ours=[2.0], matmul=[8.0])
    found["contenders"][OURS]["operations"] = 0.2e9
    assert gpu_report.share_of_matmul(found) == pytest.approx(0.8)
    assert "median 0.80" in gpu_report.aim_lines([found])[6]


def test_what_was_not_measured_is_no_aim_reached() -> None:
    assert all(line.endswith("not measured") for line in gpu_report.aim_lines([]))


def test_the_report_has_every_case_and_goes_between_the_marks_of_a_page(dry, tmp_path, capsys) -> None:
    _, document, file = dry
    assert gpu.main(["--report", str(file)]) == 0
    text = capsys.readouterr().out
    assert all(f"### {one['title'][0].upper()}{one['title'][1:]}, {one['dtype']}" in text for one in document["rows"])
    assert "DRY RUN" in text

    real, page = tmp_path / "real.jsonl", tmp_path / "page.md"
    real.write_text(file.read_text().replace('"dry_run": true', '"dry_run": false', 1))
    page.write_text(f"# Before\n{gpu_report.BEGIN}\nold\n{gpu_report.END}\nAfter\n")
    assert gpu.main(["--report", str(real), "--into", str(page)]) == 0
    found = page.read_text()
    assert found.startswith(f"# Before\n{gpu_report.BEGIN}\n") and found.endswith(f"{gpu_report.END}\nAfter\n")
    assert "old" not in found and "| features × tokens |" in found


def test_a_dry_run_is_not_published_and_a_page_without_marks_is_refused(dry, tmp_path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{gpu_report.BEGIN}\n{gpu_report.END}\n")
    assert gpu.main(["--report", str(dry[2]), "--into", str(page)]) == 2
    assert "nothing to publish" in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs the lines"):
        gpu_report.put_into("no marks", "part")


def begun(file: Path, **key: object) -> None:
    gpu_record.add(file, gpu_record.BEGUN, {"kind": "row", "key": key})


def test_a_record_has_all_that_was_found_before_its_writer_was_killed(tmp_path) -> None:
    file = tmp_path / RESULTS
    gpu_record.add(file, "facts", {"date": "today"})
    gpu_record.add(file, "stage", {"name": "first", "status": "cut short"})
    begun(file, case="a")
    gpu_record.add(file, "row", {"key": {"case": "a"}, "result": {"title": "A"}})
    begun(file, case="b")
    gpu_record.add(file, "stage", {"name": "first", "status": "ok"})
    gpu_record.add(file, "note", {"text": "a note"})
    with file.open("a") as end:
        end.write('{"row": {"key": {"case": "c"}, "res')
    found = gpu_record.read(file)
    assert found["date"] == "today" and found["notes"] == ["a note"]
    assert found["stages"] == [{"name": "first", "status": "ok"}]
    assert found["rows"] == [{"case": "a", "title": "A"}, {"case": "b", "error": "its process ended"}]


def task(name: str, run) -> gpu_work.Task:
    return gpu_work.Task("row", {"case": name}, lambda device, notes: run())


def raise_error(message: str) -> None:
    raise RuntimeError(f"{message}\nCUDA kernel errors might be asynchronously reported")


def test_after_an_error_that_spoils_the_gpu_a_new_process_goes_on_with_the_next_row(tmp_path, monkeypatch) -> None:
    file, ran, serves = tmp_path / RESULTS, [], iter([True, False, True, True])
    monkeypatch.setattr(gpu_work, "device_serves", lambda device: next(serves))

    def right() -> dict:
        ran.append("right")
        return {"title": "right"}

    tasks = [
        task("a", right),
        task("b", lambda: raise_error("CUDA error: an illegal memory access was encountered")),
        task("c", right),
        task("d", lambda: raise_error("out of memory")),
    ]
    go_on = gpu_work.work, tasks, file, float("inf"), torch.device("cpu")
    assert go_on[0](*go_on[1:]) == gpu_work.DEVICE_LOST
    assert ran == ["right"]
    assert go_on[0](*go_on[1:]) == 1
    assert go_on[0](*go_on[1:]) == 0  # nothing is left
    assert ran == ["right", "right"]
    rows = {one["case"]: one.get("error", "") for one in gpu_record.read(file)["rows"]}
    assert rows == {
        "a": "",
        "b": "RuntimeError: CUDA error: an illegal memory access was encountered",
        "c": "",
        "d": "RuntimeError: out of memory",
    }


def test_work_begins_nothing_when_its_time_is_over(tmp_path) -> None:
    file = tmp_path / RESULTS
    slow = [task(str(number), lambda: time.sleep(0.3) or {}) for number in range(20)]
    assert gpu_work.work(slow, file, time.time() + 0.7, torch.device("cpu")) == 0
    assert 1 <= len(gpu_record.read(file)["rows"]) <= 3


# A program in the place of one that measures: what it does for each row is the row's name.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from benchmarks import gpu_record
file = Path(sys.argv[1])
for name in sys.argv[2:]:
    key = {"case": name, "in_features": 4, "out_features": 4, "tokens": 1, "dtype": "bfloat16"}
    if gpu_record.is_among(key, gpu_record.begun(file)):
        continue
    gpu_record.add(file, gpu_record.BEGUN, {"kind": "row", "key": key})
    print("begun", name, flush=True)
    if name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hangs"):
        time.sleep(30)
    lost = name.startswith("sticky")
    result = {"error": "an illegal memory access"} if lost else {"title": name, "contenders": {}}
    gpu_record.add(file, "row", {"key": key, "result": result})
    if lost:
        sys.exit(3)
"""


def worker(name: str, file: Path, seconds: float, *rows: str) -> Stage:
    return Stage(name, (*PYTHON, WORKER, str(file), *rows), seconds, goes_on=True)


def results(file: Path) -> dict[str, str]:
    """What became of every row."""
    return {one["case"]: one.get("error", "measured") for one in gpu_record.read(file)["rows"]}


@pytest.fixture
def soon_over(monkeypatch) -> None:
    """Programs are ended at once."""
    monkeypatch.setattr(gpu_stages, "KILL_SECONDS", 0.5)
    monkeypatch.setattr(gpu_stages, "ENDING_SECONDS", 0.5)


def rehearse(stages: list[Stage], out: Path, monkeypatch, seconds: float = 100.0) -> int:
    """A session of these stages."""
    monkeypatch.setattr(gpu, "stages", lambda python, file: stages)
    monkeypatch.setattr(gpu, "facts", lambda dry: {"dry_run": dry})
    monkeypatch.setattr(gpu, "_build", lambda python: Stage("build", (*PYTHON, "print('built')"), 60.0))
    return gpu.session(out, seconds)


def test_a_session_whose_stages_are_killed_spoil_the_gpu_and_hang_keeps_what_was_measured(
    tmp_path, monkeypatch, capsys, soon_over
) -> None:
    file = (tmp_path / RESULTS).resolve()
    stages = [
        worker("first", file, 60.0, "a", "sticky", "b", "killed", "c"),
        worker("rows", file, 3.0, "d", "hangs", "e"),
        worker("more rows", file, 60.0, "d", "hangs", "e"),
    ]
    assert rehearse(stages, tmp_path, monkeypatch) == 1
    ended = "its process ended"
    assert results(file) == {
        **dict.fromkeys("abcde", "measured"),
        **{"sticky": "an illegal memory access", "killed": ended, "hangs": ended},
    }
    assert {one["name"]: one["status"] for one in gpu_record.read(file)["stages"]} == {
        "first": "ok",
        "rows": "cut short",
        "more rows": "ok",
    }
    said = capsys.readouterr().out
    assert "-- the end of rows:\nbegun d\nbegun hangs" in said  # what a killed stage said
    assert "NOT MEASURED killed, bfloat16, 4 × 1: its process ended" in said
    assert said.splitlines()[-1] == f"wrote {file}"


def test_a_session_that_runs_out_of_time_has_what_came_before_and_says_what_did_not(
    tmp_path, monkeypatch, capsys, soon_over
) -> None:
    file = (tmp_path / RESULTS).resolve()
    stages = [worker("first", file, 60.0, "a", "hangs"), worker("rows", file, 60.0, "b")]
    rehearse(stages, tmp_path, monkeypatch, seconds=3.0)
    assert results(file) == {"a": "measured", "hangs": "its process ended"}
    notes = {one["name"]: (one["status"], one["note"]) for one in gpu_record.read(file)["stages"]}
    assert notes["first"][0] == "cut short" and notes["first"][1].endswith("begun hangs")
    assert notes["rows"] == ("skipped", "no time left")
    assert f"{gpu_cases_count() - 2} of {gpu_cases_count()} rows were left out: no time" in capsys.readouterr().out


def gpu_cases_count() -> int:
    return sum(1 for _ in gpu_cases.jobs())


def test_a_session_that_is_killed_leaves_what_was_measured_on_the_disk(tmp_path) -> None:
    file = tmp_path / RESULTS
    code = f"""
from pathlib import Path
from benchmarks.gpu_stages import Stage, run_stage
run_stage(Stage("rows", {(*PYTHON, WORKER, str(file), "a", "hangs")!r}, 60.0), 60.0, Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([*PYTHON, code], cwd=ROOT, start_new_session=True) as session:
        deadline = time.monotonic() + 60
        while "hangs" not in results(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        session.kill()
    assert results(file) == {"a": "measured", "hangs": "its process ended"}
    (stage,) = gpu_record.read(file)["stages"]
    assert (stage["name"], stage["status"], stage["note"]) == ("rows", "cut short", "the session ended in it")


def test_the_library_is_built_where_the_one_that_came_along_does_not_serve(tmp_path, monkeypatch) -> None:
    file, log = (tmp_path / RESULTS).resolve(), tmp_path / LOG
    said = f"'built' in Path({str(log)!r}).read_text()"
    serves = f"from pathlib import Path; exit(0 if {said} else {gpu_work.NO_LIBRARY})"
    log.touch()
    monkeypatch.setattr(gpu, "begin", lambda out, dry, wanted_rows: begin(file))
    first = Stage("first", (*PYTHON, serves), 60.0, goes_on=True)
    assert rehearse([first], tmp_path, monkeypatch) == 0
    stages = gpu_record.read(file)["stages"]
    assert [(one["name"], one["status"]) for one in stages] == [("first", "ok"), ("build", "ok")]


def begin(file: Path) -> Path:
    gpu_record.add(file, "facts", {"dry_run": False})
    return file


def ended(tmp_path: Path, code: str, seconds: float = 60.0) -> dict:
    return run_stage(Stage("trial", (*PYTHON, code), seconds), seconds, tmp_path)


def test_a_stage_says_how_it_ended(tmp_path, capfd) -> None:
    found = ended(tmp_path, "print('12 passed')")
    assert (found["status"], found["exit"], found["note"]) == ("ok", 0, "12 passed")
    found = ended(tmp_path, "print('a failure'); exit(1)")
    assert (found["status"], found["exit"]) == ("FAILED", 1)
    assert "a failure" in capfd.readouterr().out
    assert (tmp_path / LOG).read_text().count("== trial") == 2
    late = "SKIPPED [7] tests/gpu/hooks.py:27: the time for these tests is over"
    found = ended(tmp_path, f"print('{late}'); print('== 5 passed, 9 skipped ==')")
    assert found["note"] == "5 passed, 9 skipped; 7 tests left out: no time"


def test_a_stage_that_takes_too_long_is_ended_with_its_children(tmp_path, soon_over) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert ended(tmp_path, f"print('begun', flush=True); {child}", 2.0)["status"] == "cut short"
    assert time.monotonic() - start < 30


def test_a_stage_without_its_program_its_device_or_time_is_skipped(tmp_path) -> None:
    found = run_stage(Stage("trial", ("no-such-program",), 60.0), 60.0, tmp_path)
    assert (found["status"], found["note"]) == ("skipped", "no-such-program is not installed")
    assert ended(tmp_path, "print('Device not supported'); exit(9)")["status"] == "skipped"
    assert ended(tmp_path, "print('never')", 1.0)["note"] == "no time left"


TESTS = {
    "conftest.py": "from tests.gpu.hooks import *",
    "test_trial.py": """
import time
from tests import gpu

def test_before(): pass

def test_spoils(monkeypatch):
    gpu.device_serves = lambda: False
    raise RuntimeError("an illegal memory access")

def test_between(): pass

def test_hangs(): time.sleep(60)

def test_after(): pass
""",
}


def test_a_test_that_spoils_the_gpu_or_hangs_takes_no_other_with_it(tmp_path) -> None:
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SURM_KERNELS_GPU_TEST_SECONDS": "3"}
    options = ("-v", "-rs", "--tb=line", "-n", "1", "-p", "no:cacheprovider", f"--rootdir={tmp_path}")
    command = (sys.executable, "-m", "pytest", str(tmp_path), *options)
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    for name in ("before", "between", "after"):
        assert f"PASSED test_trial.py::test_{name}" in said, said
    assert "RuntimeError: an illegal memory access" in said
    assert "crashed while running 'test_trial.py::test_hangs'" in said


def test_a_test_that_comes_too_late_is_skipped_and_counted(monkeypatch) -> None:
    monkeypatch.setattr(hooks, "UNTIL", time.time() + 60)
    hooks.pytest_runtest_setup(None)
    monkeypatch.setattr(hooks, "UNTIL", time.time() - 1)
    with pytest.raises(pytest.skip.Exception) as skipped:
        hooks.pytest_runtest_setup(None)
    assert gpu_stages.TOO_LATE.findall(f"SKIPPED [5] tests/gpu/hooks.py:24: {skipped.value}") == ["5"]


def test_the_whole_ends_within_eight_minutes_and_all_but_the_sanitizers_within_six(monkeypatch) -> None:
    stages = gpu.stages(sys.executable, Path(RESULTS))
    names = [stage.name for stage in stages]
    assert names[:3] == ["first", "alone", "rows"]
    useful = stages[: names.index("memcheck-cuda")]
    assert sum(stage.seconds for stage in useful) <= 360
    assert stages[0].seconds <= 30
    assert gpu.SESSION_SECONDS + 2 * gpu_stages.KILL_SECONDS < 480


def test_the_script_is_sound_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so_and_fails() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    ended = subprocess.run([str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "no GPU can be used from here" in ended.stderr
    assert f"{sys.executable}: torch {torch.__version__}" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_session_points_to_the_dry_run(tmp_path, capsys) -> None:
    assert gpu.main(["--out", str(tmp_path / "none")]) == 2
    assert "--dry-run needs none" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_parity_tests_and_the_sanitizers_calls_hold_on_the_cpu() -> None:
    environment = {**os.environ, "SURM_KERNELS_TEST_DEVICE": "cpu"}
    some = "grids_of_blocks or bank or strided or not_finite or siva_of"
    tests = [sys.executable, "-m", "pytest", "tests/gpu", "-k", some, "-p", "no:cacheprovider"]
    for command in (tests, [sys.executable, "-m", "tests.gpu.one_of_each"]):
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
