"""Everything static is in pyproject.toml; this adds the compiled library where a compiler is found."""

import sys
from pathlib import Path

from setuptools import setup

# An isolated build does not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support.commands import BuildExtension, BuildPackage, extensions

modules = extensions()
setup(
    ext_modules=modules,
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage},
    # Only a wheel that carries the library is tied to the limited Python ABI; without it any Python will do.
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if modules else {},
)
