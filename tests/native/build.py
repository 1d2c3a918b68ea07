"""Builds a pybind11 module from C++ sources for a test, with ninja, in build/tests; only what changed is rebuilt."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from build_support.ninja import ROOT, Step, run_ninja
from build_support.toolchain import Missing, find_compiler

FLAGS = ("-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Icsrc")


def native_module(
    name: str, sources: Sequence[str], flags: Sequence[str] = (), link_flags: Sequence[str] = ()
) -> ModuleType:
    """The module that `PYBIND11_MODULE(name, …)` in one of the sources defines, built from all of them.

    Sources are relative to the repository and may include headers relative to csrc/; `flags` come last on each
    compiler command, `link_flags` on the linker's. Skips the test, or the whole file when called outside one, where
    modules cannot be built.
    """
    return _native_module(name, tuple(sources), tuple(flags), tuple(link_flags))


@functools.cache
def _native_module(
    name: str, sources: tuple[str, ...], flags: tuple[str, ...], link_flags: tuple[str, ...]
) -> ModuleType:
    folder = f"build/tests/{name}"
    steps = module_steps(name, sources, flags, folder, link_flags)
    run_ninja(steps, ROOT / folder)
    return _imported(name, ROOT / steps[-1].output)


def module_steps(
    name: str, sources: Sequence[str], flags: Sequence[str], folder: str, link_flags: Sequence[str] = ()
) -> list[Step]:
    """Compile each source, then link the module, which is the output of the last step."""
    compiler, includes = _compiler_or_skip(), _include_flags_or_skip()
    objects = [f"{folder}/{Path(source).name}.o" for source in sources]
    steps = [
        Step("compile", output, (source,), compiler, (*FLAGS, *includes, *flags))
        for source, output in zip(sources, objects, strict=True)
    ]
    library = f"{folder}/{name}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    return [*steps, Step("link", library, tuple(objects), compiler, ("-shared", *link_flags))]


def _compiler_or_skip() -> tuple[str, ...]:
    try:
        return find_compiler()
    except Missing as missing:
        pytest.skip(str(missing), allow_module_level=True)


def _include_flags_or_skip() -> list[str]:
    pybind11 = pytest.importorskip("pybind11")
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        pytest.skip("the Python headers are not installed", allow_module_level=True)
    return ["-isystem", pybind11.get_include(), "-isystem", python]


def _imported(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
