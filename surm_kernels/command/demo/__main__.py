"""`python -m surm_kernels.command.demo`: the demo without the command line around it."""

from __future__ import annotations

import argparse
import sys

from surm_kernels.command.demo import add_arguments, run


def main() -> int:
    """Parses the arguments and runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m surm_kernels.command.demo", description=run.__doc__)
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
