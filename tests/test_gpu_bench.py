"""The GPU session without a GPU: its rows by a dry run, its stages with other programs, its tables, its script."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_report
from build_support.ninja import ROOT
from surm_kernels.command.bench.case import OURS, TORCH_FFT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON = (sys.executable, "-c")


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> tuple[int, dict, Path]:
    """The exit status, the document and the file of a dry run."""
    out = tmp_path_factory.mktemp("dry")
    status = gpu.main(["--dry-run", "--out", str(out)])
    file = out / gpu.RESULTS
    return status, json.loads(file.read_text()), file


def row(case: str, n: int, **seconds: list[float]) -> dict:
    """A row of a document with the times of some contenders; names in this test are shorter."""
    names = {"ours": OURS, "copy": gpu_cases.COPY, "fft": TORCH_FFT, "matmul": gpu_cases.MATMUL}
    contenders = {names[name]: {"seconds": times, "operations": 1e9} for name, times in seconds.items()}
    sizes = {"in_features": n, "out_features": n, "tokens": 8}
    return {"case": case, "title": case, **sizes, "dtype": "bfloat16", "refused": False, "contenders": contenders}


def test_a_dry_run_walks_every_row_and_says_what_it_is(dry) -> None:
    status, document, _ = dry
    assert status == 0
    assert document["dry_run"] is True
    assert [(one["case"], one["dtype"]) for one in document["rows"]] == [
        (job.of.case.name, job.key["dtype"]) for job in gpu_cases.jobs()
    ]
    for one in document["rows"]:
        assert not one.get("error"), one["error"]
        assert one["dtype"] == "bfloat16" or not one["refused"]  # few numbers may round unluckily in 16 bits
        assert one["contenders"][OURS]["error"] is not None
        assert one["refused"] or all(contender["seconds"] for contender in one["contenders"].values())
        assert {OURS, gpu_cases.COPY} < set(one["contenders"])


def test_rows_span_the_sizes_types_and_uses_that_are_wanted() -> None:
    jobs = list(gpu_cases.jobs())
    assert len({str(job.key) for job in jobs}) == len(jobs)
    for use in ("forward", "training"):
        for dtype in (torch.float32, torch.bfloat16):
            found = [job for job in jobs if job.of.case.name == f"circulant-{use}" and job.dtype == dtype]
            assert {256, 768, 3072, 8192, 11008, 14336, 16384} <= {job.point.in_features for job in found}
            elements = [job.point.in_features * job.point.tokens for job in found]
            assert min(elements) > 0.99 * gpu_cases.ELEMENTS and max(elements) <= gpu_cases.ELEMENTS


def test_a_row_that_fails_is_recorded_and_the_next_is_measured(monkeypatch) -> None:
    def broken(*arguments):
        raise torch.OutOfMemoryError("no room\nfor this")

    job, notes = gpu_cases.shrunk(next(gpu_cases.jobs())), set[str]()
    monkeypatch.setattr(gpu_cases, "row", broken)
    found = gpu.measured(job, torch.device("cpu"), notes)
    assert found["error"] == "OutOfMemoryError: no room"
    assert {name: found[name] for name in gpu_cases.KEY} == job.key


def test_a_result_that_is_wrong_is_refused_and_named() -> None:
    found = {**row("circulant-forward", 256), "refused": True}
    table = gpu_report.short_table({"rows": [found]})
    assert "NOT MEASURED circulant-forward, bfloat16, 256 × 8: our result is wrong" in table


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
    rows.append(row("circulant-forward", 16384, ours=[9.0], copy=[1.0]))  # beyond what is promised
    assert "wanted ≤ 2, median 2.00, worst 2.00, reached at 2 of 2 sizes" in gpu_report.aim_lines(rows)[0]


def test_one_slow_size_is_told() -> None:
    rows = [row("circulant-training", n, ours=[1.0], fft=[times]) for n, times in ((256, 6.0), (768, 4.0))]
    line = gpu_report.aim_lines(rows)[1]
    assert "wanted ≥ 5, median 5.00, worst 4.00, reached at 1 of 2 sizes" in line


def test_the_rate_is_that_of_operations_over_the_matrix_products() -> None:
    found = row("siva-pullback", 768, ours=[2.0], matmul=[8.0])
    found["contenders"][OURS]["operations"] = 0.2e9
    assert gpu_report.share_of_matmul(found) == pytest.approx(0.8)
    assert "median 0.80" in gpu_report.aim_lines([found])[2]


def test_what_was_not_measured_is_no_aim_reached() -> None:
    assert all(line.endswith("not measured") for line in gpu_report.aim_lines([]))


def test_the_report_has_every_case_and_goes_between_the_marks_of_a_page(dry, tmp_path, capsys) -> None:
    _, document, file = dry
    assert gpu.main(["--report", str(file)]) == 0
    text = capsys.readouterr().out
    assert all(f"### {one['title'][0].upper()}{one['title'][1:]}, {one['dtype']}" in text for one in document["rows"])
    assert "DRY RUN" in text

    real, page = tmp_path / "real.json", tmp_path / "page.md"
    real.write_text(json.dumps({**document, "dry_run": False}))
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


def stage(tmp_path: Path, code: str, seconds: float = 60.0) -> dict:
    return gpu.run_stage(gpu.Stage("trial", (*PYTHON, code), seconds), seconds, tmp_path)


def test_a_stage_says_how_it_ended(tmp_path, capfd) -> None:
    found = stage(tmp_path, "print('12 passed')")
    assert (found["status"], found["exit"], found["note"]) == ("ok", 0, "12 passed")
    found = stage(tmp_path, "print('a failure'); exit(1)")
    assert (found["status"], found["exit"]) == ("FAILED", 1)
    assert "a failure" in capfd.readouterr().out
    assert (tmp_path / gpu.LOG).read_text().count("== trial") == 2


def test_a_stage_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "KILL_SECONDS", 1.0)
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert stage(tmp_path, f"print('begun', flush=True); {child}", 3.0)["status"] == "cut short"
    assert time.monotonic() - start < 30


def test_a_stage_without_its_program_its_device_or_time_is_skipped(tmp_path) -> None:
    found = gpu.run_stage(gpu.Stage("trial", ("no-such-program",), 60.0), 60.0, tmp_path)
    assert (found["status"], found["note"]) == ("skipped", "no-such-program is not installed")
    assert stage(tmp_path, "print('Device not supported'); exit(9)")["status"] == "skipped"
    assert stage(tmp_path, "print('never')", 1.0)["note"] == "no time left"


def test_one_failing_stage_does_not_stop_the_rest_and_shows_in_the_exit_status(tmp_path, monkeypatch, capsys) -> None:
    groups = [[gpu.Stage("first", (*PYTHON, "exit(1)"), 60.0)], [gpu.Stage("second", (*PYTHON, "print(7)"), 60.0)]]
    monkeypatch.setattr(gpu, "stages", lambda python: groups)
    monkeypatch.setattr(gpu, "facts", lambda dry: {"stages": [], "rows": [], "notes": [], "dry_run": dry})
    ran = {"name": "measure", "status": "ok", "exit": 0, "seconds": 1.0, "note": "0 rows"}
    monkeypatch.setattr(gpu, "_measuring_stage", lambda *arguments: ran)
    assert gpu.session(tmp_path, 400.0) == 1
    document = json.loads((tmp_path / gpu.RESULTS).read_text())
    assert [one["status"] for one in document["stages"]] == ["FAILED", "ok", "ok"]
    table = capsys.readouterr().out
    assert "second" in table and table.splitlines()[-1].startswith("wrote ")


def test_measuring_goes_on_in_a_new_process_where_the_device_was_lost(tmp_path, monkeypatch) -> None:
    exits = iter([gpu.DEVICE_LOST, gpu.DEVICE_LOST, 0])
    monkeypatch.setattr(gpu, "run_stage", lambda *arguments: {"status": "ok", "exit": next(exits)})
    file = tmp_path / gpu.RESULTS
    file.write_text(json.dumps({"rows": [1, 2]}))
    assert gpu._measuring_stage(file, time.monotonic() + 300, tmp_path)["note"] == "2 rows"
    assert next(exits, "all used") == "all used"


def test_the_whole_ends_within_eight_minutes() -> None:
    assert gpu.SESSION_SECONDS + 2 * gpu.KILL_SECONDS + gpu.SAVING_SECONDS < 480
    assert gpu.MEASURING_SECONDS < gpu.SESSION_SECONDS


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
