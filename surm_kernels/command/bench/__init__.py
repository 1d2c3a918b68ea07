"""`surm-kernels bench`: speed and memory as ratios to what users have today, each in one run with its parity check.

The registry of cases and claims is `cases`, the rivals are `methods`, the harness is `measure`; `session` runs them.
"""

import argparse
from pathlib import Path

from surm_kernels.command.usage import add_threads

DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of bench to `parser`."""
    parser.add_argument("--quick", action="store_true", help="fewer sizes, rivals and repeats: a look, not a result")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases, or parts of their names (default: all)")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    add_threads(parser, "one run each")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: all)",
    )
    parser.add_argument(
        "--from-json",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure nothing, show what --json wrote earlier",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and all samples")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the tables as a page of the documentation; sections of other machines in the page stay",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures what the arguments ask for; 1 if one of our results was wrong, so that a ratio was refused."""
    from surm_kernels.command.bench import session

    return session.run(arguments)
