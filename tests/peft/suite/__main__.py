"""`python -m tests.peft.suite`: PEFT's own tests with our methods, under each release that the package is for.

The source distributions go to build/peft-suite. Each has the tests and the package, which comes before the one that is
installed; all else is that of the environment. Arguments are pytest's; PEFT_VERSIONS names other releases.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "build" / "peft-suite"
VERSIONS = os.environ.get("PEFT_VERSIONS", "0.21.0 0.21.1 0.21.2").split()
#: Tests that need no model of the hub and take their methods from lists.
TESTS = "test_custom_models.py"
#: The package that they become, since ours are called `tests`.
PACKAGE = "peft_tests"


def fetch(version: str) -> Path | None:
    """The folder of a release's source distribution, its tests as a package; None where it could not be had."""
    folder, archive = FOLDER / f"peft-{version}", FOLDER / f"peft-{version}.tar.gz"
    download = ("pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", FOLDER, f"peft=={version}")
    if not archive.exists() and subprocess.run([sys.executable, "-m", *download]).returncode:
        return None
    if not (folder / PACKAGE).exists():
        with tarfile.open(archive) as files:
            files.extractall(FOLDER, filter="data")
        (folder / "tests" / "__init__.py").touch()
        (folder / "tests").rename(folder / PACKAGE)
    return folder


def run(folder: Path, arguments: list[str]) -> bool:
    """Whether all tests of a release did what is expected of them."""
    options = ["-q", "-c", os.devnull, "--rootdir", folder, "-p", "tests.peft.suite.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--disable-warnings", *arguments, folder / PACKAGE / TESTS]
    path = os.pathsep.join(map(str, (folder / "src", ROOT)))
    return not subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}).returncode


def main() -> int:
    """Runs the tests of every release and says what became of them; the exit status."""
    outcomes = {}
    for version in VERSIONS:
        print(f"== PEFT {version}", flush=True)
        folder = fetch(version)
        if folder is None:
            outcomes[version] = "not tried: pip could not download its source distribution"
        else:
            outcomes[version] = "ok" if run(folder, sys.argv[1:]) else "FAILED"
    for version, outcome in outcomes.items():
        print(f"PEFT {version}: {outcome}")
    return int(set(outcomes.values()) != {"ok"})


if __name__ == "__main__":
    sys.exit(main())
