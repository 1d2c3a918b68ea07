"""`python -m build_support.try_wheel`: whether what is in dist/ serves the Pythons and torches that it is for.

For each pair an environment is made, without a compiler in reach, the wheel installed, `surm-kernels check` run, and
the environment deleted. Interpreters are those of $PYTHONS, paths with blanks between them, else those that pyenv or
the path has. Then the source distribution has to become a wheel. Every torch of the package index is a download of
530 MB and more, with GBs of CUDA; name an index of CPU builds in PIP_EXTRA_INDEX_URL where one is in reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from build_support.toolchain import BuildError
from build_support.wheel import DIST, build_wheel, sizes

NEWEST = "newest"
PAIRS = (("3.10", "2.11"), ("3.12", "2.12"), ("3.13", "2.13"), ("3.11", "2.13"), ("3.11", NEWEST))


def interpreters(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> dict[str, str]:
    """A Python for each version, such as "3.11", the first that is found."""
    found: dict[str, str] = {}
    for program in _candidates(environ, Path.home() if home is None else home):
        if shutil.which(program) is None:
            raise BuildError(f"PYTHONS: there is no {program}")
        ask = [program, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
        asked = subprocess.run(ask, capture_output=True, text=True, check=False)
        if asked.returncode == 0:  # pyenv puts programs on the path that stand for no Python at the moment
            found.setdefault(asked.stdout.strip(), program)
    return found


def _candidates(environ: Mapping[str, str], home: Path) -> Iterator[str]:
    if named := environ.get("PYTHONS", "").split():
        yield from named
        return
    yield from map(str, sorted(home.glob(".pyenv/versions/3.*/bin/python")))
    for version in dict.fromkeys(version for version, _ in PAIRS):
        if program := shutil.which(f"python{version}", path=environ.get("PATH")):
            yield program


def try_pair(python: str, torch: str, wheel: Path) -> str:
    """Installs and checks the wheel in an environment of its own; what went wrong, empty if nothing did."""
    requirement = "torch" if torch == NEWEST else f"torch=={torch}.*"
    with tempfile.TemporaryDirectory(dir=DIST.parent / "build", prefix="wheel-") as folder:
        programs = Path(folder) / "bin"
        subprocess.run([python, "-m", "venv", folder], check=True)
        install = (programs / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", "--only-binary", ":all:")
        for command in (
            (*install, requirement, wheel),
            (programs / "python", "-c", "import torch; print('torch', torch.__version__)"),
            (programs / "surm-kernels", "info"),
            (programs / "surm-kernels", "check"),
        ):
            variables = {name: value for name, value in os.environ.items() if not name.startswith("SURM_KERNELS_")}
            variables |= {"PATH": str(programs), "SURM_KERNELS_BACKEND": "extension", "PYTHONPATH": ""}
            done = subprocess.run(
                list(map(str, command)),
                cwd=folder,
                env=variables,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            print(done.stdout.rstrip(), flush=True)
            if done.returncode:
                return f"{Path(command[0]).name} {' '.join(map(str, command[1:3]))} failed"
    return ""


def try_all(wheel: Path) -> dict[str, str]:
    """What became of each pair."""
    found = interpreters()
    outcomes = {}
    for version, torch in PAIRS:
        title, start = f"Python {version}, torch {torch}", time.monotonic()
        if version not in found:
            outcomes[title] = "not tried: there is no such Python"
            continue
        print(f"== {title}", flush=True)
        failure = try_pair(found[version], torch, wheel)
        outcomes[title] = f"FAILED: {failure}" if failure else f"ok, {time.monotonic() - start:.0f} s"
    return outcomes


def try_sdist(sdist: Path) -> str:
    """Whether a source distribution becomes a wheel with a library, without the CUDA part, which takes long."""
    print(f"== {sdist.name}", flush=True)
    os.environ["SURM_KERNELS_CUDA"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        try:
            return f"ok, {sizes(build_wheel(sdist, Path(folder)))}"
        except (BuildError, KeyError) as error:
            return f"FAILED: {error}"


def main() -> int:
    """Tries everything and says what became of it; the exit status."""
    wheels, sdists = sorted(DIST.glob("*.whl")), sorted(DIST.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        print(f"error: one wheel and one source distribution are wanted in {DIST} (make wheel)", file=sys.stderr)
        return 2
    try:
        outcomes = try_all(wheels[0]) | {"source distribution": try_sdist(sdists[0])}
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"== {wheels[0].name}")
    for title, outcome in outcomes.items():
        print(f"{title:<28}{outcome}")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
