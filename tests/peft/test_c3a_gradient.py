"""The report of C3A's wrong input gradient: its script shows the fault in PEFT, and not in what accelerate() runs."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

pytest.importorskip("peft")

from peft.tuners.c3a import utils

from surm_kernels.peft import _c3a

PAGE = Path(__file__).parents[2] / "docs" / "c3a-gradient.md"
SIZES = (1, 2, 3, 4, 6, 8, 128)


def block(language: str) -> str:
    """The first block of the page in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names that the page's script defines, and what it printed."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block("python"), names)
    return names | {"printed": printed.getvalue()}


def test_the_page_has_what_its_script_prints(script: dict[str, Any]) -> None:
    assert script["printed"] == block("text")


@pytest.mark.parametrize("size", SIZES)
def test_pefts_input_gradient_is_wrong_from_blocks_of_three_on_and_all_else_right(
    script: dict[str, Any], size: int
) -> None:
    output, of_x, of_w = script["relative_errors"](size)
    assert max(output, of_w) < 1e-12
    assert of_x < 1e-12 if size <= 2 else of_x > 0.9


@pytest.mark.parametrize("size", SIZES)
def test_the_same_script_finds_our_gradient_right(
    script: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ours:
        @staticmethod
        def apply(x: Tensor, w: Tensor) -> Tensor:
            return _c3a.update(x, w, None) * x.shape[-1]

    assert max(errors_of(Ours, script, size, monkeypatch)) < 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_the_fix_of_the_page_is_right(script: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    removed, added = re.findall(r"^[-+] +(.*)$", block("diff"), re.MULTILINE)
    source = Path(utils.__file__).read_text()
    assert source.count(removed) == 1
    mended: dict[str, Any] = {}
    exec(source.replace(removed, added), mended)
    assert max(errors_of(mended["BlockCircularConvolution"], script, size, monkeypatch)) < 1e-12


def errors_of(product: Any, script: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the script finds for another function in the place of PEFT's."""
    monkeypatch.setitem(script["relative_errors"].__globals__, "BlockCircularConvolution", product)
    return script["relative_errors"](size)
