"""The setuptools commands: `build_ext` builds with ninja, `build_py` says once why there is nothing to build."""

from __future__ import annotations

import warnings
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

from build_support.extension import build_extension, reason_not_to_build, sources
from build_support.toolchain import BuildError


class BuildExtension(build_ext):
    """Hands the library to ninja; setuptools only chooses the place."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext` to where setuptools wants it."""
        try:
            print(build_extension(Path(self.get_ext_fullpath(ext.name))))
        except BuildError as error:
            raise CompileError(str(error)) from None


class BuildPackage(build_py):
    """Warns when the package is built without its compiled library."""

    def run(self) -> None:
        """Collect the Python files as usual."""
        reason = reason_not_to_build()
        if reason is not None:
            warnings.warn(f"surm_kernels goes without its compiled kernels: {reason}", stacklevel=1)
        super().run()


def extensions() -> list[Extension]:
    """The library as setuptools knows it (for the wheel's tag and the source distribution), or nothing."""
    try:
        reason = reason_not_to_build()
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
    if reason is not None:
        return []
    files = sources("csrc/**/*")
    compiled = [name for name in files if name.endswith((".cpp", ".cu"))]
    headers = [name for name in files if name.endswith((".h", ".cuh"))]
    return [Extension("surm_kernels._C", compiled, depends=headers, py_limited_api=True)]
