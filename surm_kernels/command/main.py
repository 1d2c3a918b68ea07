"""The command `surm-kernels`: chooses the subcommand, and turns what goes wrong into a line and an exit code.

Exit codes: 0 all is well, 1 a check failed, 2 bad use or a missing package, 130 interrupted.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from surm_kernels import __version__
from surm_kernels.command.usage import UsageError

#: Every subcommand is a module of that name beside this one, with `add_arguments(parser)` and `run(arguments)`.
COMMANDS = {
    "info": "show versions, instruction set, CUDA, threads and environment variables",
    "check": "compare every kernel on this machine with the dense float64 matrix",
    "bench": "measure speed and memory against torch.fft, PEFT, LoRA and dense products",
    "tune": "measure on this machine by what an adapted layer chooses its strategy",
    "demo": "fine-tune a real sentence encoder four ways and compare the results",
    "report": "show in pictures what bench, tune, check, demo, gpu.sh or examples wrote as JSON",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; bad arguments exit with 2, as argparse does."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        module = _module(command) if command in COMMANDS else None
        parser = _parser(command, module)
        arguments = parser.parse_args(words)
        if module is None:
            parser.print_help(sys.stderr)
            return 2
        return int(module.run(arguments))
    except UsageError as error:
        return _complain(command, str(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "surm_kernels"):
            raise
        return _complain(command, f"the package {package} is missing: pip install {package}", 2)
    except KeyboardInterrupt:
        return _complain(command, "interrupted", 130)


def _module(command: str) -> Any:
    """Only the subcommand asked for is imported, so that --help and errors come at once."""
    return importlib.import_module(f"surm_kernels.command.{command}")


def _parser(command: str, module: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surm-kernels", description="Fast structured-matrix layers: what is installed, is it right, is it fast?"
    )
    parser.add_argument("--version", action="version", version=f"surm_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == command:
            module.add_arguments(subparser)
    return parser


def _complain(command: str, message: str, code: int) -> int:
    print(f"surm-kernels {command}: {message}", file=sys.stderr)
    return code
