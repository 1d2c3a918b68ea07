"""What makes and tries wheels, without making one: interpreters, the tag that is wanted, what is said at the end."""

import sys
from pathlib import Path

import pytest

from build_support import try_wheel, wheel
from build_support.toolchain import BuildError

HERE = "{}.{}".format(*sys.version_info)


def test_named_interpreters_alone_are_taken(tmp_path: Path) -> None:
    assert try_wheel.interpreters({"PYTHONS": f"{sys.executable} {sys.executable}"}, tmp_path) == {HERE: sys.executable}
    with pytest.raises(BuildError, match="PYTHONS: there is no python-of-nobody"):
        try_wheel.interpreters({"PYTHONS": "python-of-nobody"}, tmp_path)


def test_pyenv_has_interpreters_before_the_path(tmp_path: Path) -> None:
    program = tmp_path / f".pyenv/versions/{HERE}.0/bin/python"
    program.parent.mkdir(parents=True)
    program.symlink_to(sys.executable)
    assert try_wheel.interpreters({"PATH": str(Path(sys.executable).parent)}, tmp_path)[HERE] == str(program)


@pytest.mark.parametrize(("tag", "fine"), [("manylinux_2_34", True), ("manylinux_2_39", False), ("linux", False)])
def test_a_wheel_for_newer_systems_is_refused(tag: str, fine: bool, tmp_path: Path, monkeypatch) -> None:
    name = f"surm_kernels-0.1.0-cp310-abi3-{tag}_x86_64.whl"

    def audit(*words: str) -> None:
        Path(words[words.index("--wheel-dir") + 1], name).touch()

    monkeypatch.setattr(wheel, "_run", audit)
    monkeypatch.setattr(wheel, "DIST", tmp_path)
    if fine:
        assert wheel.repair(tmp_path / "made.whl") == tmp_path / name
    else:
        with pytest.raises(BuildError, match=f"{name} is not for glibc 2.34"):
            wheel.repair(tmp_path / "made.whl")


@pytest.mark.parametrize(("failure", "code"), [("", 0), ("surm-kernels check failed", 1)])
def test_what_failed_and_what_was_not_tried_is_said(
    failure: str, code: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(try_wheel, "DIST", tmp_path)
    assert try_wheel.main() == 2
    for name in ("surm_kernels-0.1.0.tar.gz", "surm_kernels-0.1.0.whl"):
        (tmp_path / name).touch()
    tried: list[tuple[str, str]] = []

    def try_pair(python: str, torch: str, file: Path) -> str:
        tried.append((python, torch))
        return failure

    monkeypatch.setattr(try_wheel, "interpreters", lambda: {"3.11": "here"})
    monkeypatch.setattr(try_wheel, "try_pair", try_pair)
    monkeypatch.setattr(try_wheel, "try_sdist", lambda file: "ok")
    assert try_wheel.main() == code
    out = capsys.readouterr().out
    assert tried == [("here", "2.13"), ("here", try_wheel.NEWEST)]
    assert out.count("not tried: there is no such Python") == 3
    assert out.count("FAILED: surm-kernels check failed") == 2 * code
