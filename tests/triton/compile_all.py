"""Compiles every Triton kernel for every target, without a GPU: `python -m tests.triton.compile_all`.

Every configuration unless `--first` asks for one a kernel. Prints a line a kernel with its faults, and fails if there
are any. It uses the Triton that it finds, so another release is tried from a second environment that borrows all else
from the first, by a path file whose folder comes after its own:

    python3 -m venv .venv-triton36
    .venv-triton36/bin/pip install triton==3.6.0
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \\
        $(.venv-triton36/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth
    .venv-triton36/bin/python -m tests.triton.compile_all

Both environments need the same version of Python, and TRITON_INTERPRET must not be set.
"""

import argparse
import importlib
import sys
from pathlib import Path

from tests.triton import harness

MODULES = ("test_diagonal", "test_kronecker", "test_bank", "test_structured")


def cases() -> list[harness.Case]:
    """Those of every test file that is there."""
    files = [name for name in MODULES if (Path(__file__).parent / f"{name}.py").exists()]
    return [case for name in files for case in importlib.import_module(f"tests.triton.{name}").AHEAD_OF_TIME]


def main() -> int:
    """Compiles, reports and says whether all is well."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for every target, without a GPU.")
    parser.add_argument("--first", action="store_true", help="one configuration a kernel")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--target", action="append", choices=list(harness.TARGETS), help="all unless given")
    parser.add_argument("--json", type=Path, help="file for the resources")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    arguments = parser.parse_args()

    results: dict[str, harness.Resources] = {}
    bad = 0
    for case in cases():
        if arguments.only not in case.name:
            continue
        found = harness.compile_case(case, arguments.target or list(harness.TARGETS), not arguments.first)
        results.update(found)
        for key, resources in found.items():
            _, target, *number = key.split(" / ")
            faults, too_large = harness.faults(target, resources), harness.too_large(target, resources)
            bad += faults != too_large or bool(faults and number in ([], ["0"]))
            if not arguments.quiet:
                takes = f"{resources.registers:4} registers {resources.shared:7} bytes shared"
                print(f"{key:70} {takes} {'; '.join(faults)[:2000]}", flush=True)
    if arguments.json is not None:
        harness.dump(results, arguments.json)
    if not arguments.quiet:
        print(f"{len(results)} compiled, {bad} with faults")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
