"""`python -m build_support`: build the extension in place, as a development install uses it.

`python -m build_support --runs avx2` only asks whether this machine has and runs kernels of that instruction set of
their own: exit status 0 or 1.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from build_support.extension import IN_PLACE, build_extension, reason_not_to_build
from build_support.toolchain import BuildError, runs_here


def main() -> int:
    """Do what the command line asks; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m build_support", description="Build the extension in place.")
    parser.add_argument("--runs", metavar="SET", help="only say whether kernels of this instruction set run here")
    asked = parser.parse_args().runs
    if asked is not None:
        return 0 if runs_here(asked, platform.machine(), Path("/proc/cpuinfo").read_text()) else 1
    return build_in_place()


def build_in_place() -> int:
    """Build what changed, or remove a library that is no longer wanted; the exit status."""
    try:
        reason = reason_not_to_build()
        if reason is None:
            print(build_extension(IN_PLACE))
        else:
            IN_PLACE.unlink(missing_ok=True)
            print(f"warning: surm_kernels goes without its compiled kernels: {reason}", file=sys.stderr)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
