"""The helper that builds C++ modules for tests."""

import pytest

from build_support.ninja import ROOT
from build_support.toolchain import BuildError, Missing
from tests.native import build

SOURCES = ["tests/native/add_bindings.cpp"]


def test_module_is_built_and_imported():
    assert build.native_module("add_bindings", SOURCES).add(1.5, 2.0) == 3.5


def test_second_call_returns_the_same_module():
    assert build.native_module("add_bindings", SOURCES) is build.native_module("add_bindings", tuple(SOURCES))


def test_second_build_leaves_the_library_alone():
    build.native_module("add_bindings", SOURCES)
    steps = build.module_steps("add_bindings", SOURCES, (), "build/tests/add_bindings")
    library = ROOT / steps[-1].output
    before = library.stat().st_mtime_ns
    build.run_ninja(steps, library.parent)
    assert library.stat().st_mtime_ns == before


def test_flags_come_last():
    compile_step = build.module_steps("add_bindings", SOURCES, ("-DANY=1",), "build/tests/add_bindings")[0]
    assert compile_step.flags[-1] == "-DANY=1"


def test_error_of_the_compiler_is_an_error(capfd):
    with pytest.raises(BuildError):
        build.native_module("broken", SOURCES, ("-include", "no_such_header.h"))
    assert "no_such_header.h" in capfd.readouterr().out


def test_no_compiler_skips(monkeypatch):
    def missing():
        raise Missing("no working C++17 compiler was found")

    monkeypatch.setattr(build, "find_compiler", missing)
    with pytest.raises(pytest.skip.Exception, match="no working"):
        build.module_steps("add_bindings", SOURCES, (), "build/tests/add_bindings")
