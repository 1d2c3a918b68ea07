"""`python -m build_support.hub_kernel`: the package as Hugging Face's `kernels` loads it, with the CPU's kernels.

A kernel repository has a folder build/VARIANT with the package's files and metadata.json. `kernels` imports it under
the id it finds there, beside an installed surm_kernels if there is one. So imports within it are relative, its
operators are in a namespace of that name, and the command line is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from build_support import extension
from build_support.ninja import ROOT, run_ninja
from build_support.toolchain import BuildError

PACKAGE = ROOT / "surm_kernels"
NAMES = "_namespace.py"
BUILD_FOLDER = "build/hub"
VARIANT = "torch-stable-abi211-cpu-x86_64-linux"
LEFT_OUT = ("command", "__main__.py", "__pycache__")
API_VERSION = 1  # of the repository, a whole number that grows when users have to change their code


def make(folder: Path) -> Path:
    """Makes the repository in `folder`, which is replaced, and returns the folder of its variant."""
    shutil.rmtree(folder, ignore_errors=True)
    variant = folder / "build" / VARIANT
    name = f"surm_kernels_cpu_{digest()}"
    for source in package_files():
        target = variant / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".py":
            text = with_relative_imports(source.read_text(), depth=len(source.relative_to(PACKAGE).parts))
            target.write_text(renamed(text, name) if source == PACKAGE / NAMES else text)
        else:
            shutil.copy(source, target)
    shutil.copy(ROOT / "LICENSE", variant)
    build_library(variant)
    (variant / "metadata.json").write_text(json.dumps(metadata(name), indent=2) + "\n")
    return variant


def package_files() -> Iterator[Path]:
    """The files of the package that the repository has, but for the library."""
    for path in sorted(PACKAGE.rglob("*")):
        parts = path.relative_to(PACKAGE).parts
        if path.is_file() and path.suffix != ".so" and not set(parts) & set(LEFT_OUT):
            yield path


def digest() -> str:
    """Eight digits that tell one state of the sources from another."""
    sources = hashlib.sha256()
    for path in (*package_files(), *(ROOT / name for name in extension.sources("csrc/**/*.*"))):
        sources.update(path.read_bytes())
    return sources.hexdigest()[:8]


def with_relative_imports(text: str, depth: int) -> str:
    """A module's text with `from surm_kernels…` made relative, `depth` folders below the package's parent."""
    return re.sub(r"^(\s*from )surm_kernels\b\.?(?=\S* import)", rf"\g<1>{'.' * depth}", text, flags=re.MULTILINE)


def renamed(text: str, name: str) -> str:
    """The text of _namespace.py with another namespace."""
    return re.sub(r'^NAMESPACE = ".*"', f'NAMESPACE = "{name}"', text, flags=re.MULTILINE)


def metadata(name: str) -> dict[str, object]:
    """What `kernels` wants to know."""
    return {
        "name": "surm-kernels",
        "id": name,
        "version": API_VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }


def build_library(variant: Path) -> None:
    """The library for the namespace of a copy: kernels know of none, so the glue alone is compiled anew."""
    target = extension.this_target(cuda=None)
    theirs = dict(zip(extension.namespace_flags(), extension.namespace_flags(variant), strict=True))
    glue, objects = [], []
    for step in (*extension.plain_steps(target), *extension.kernel_steps(target)):
        if any(flag in theirs for flag in step.flags):
            flags = tuple(theirs.get(flag, flag) for flag in step.flags)
            step = dataclasses.replace(step, output=f"{BUILD_FOLDER}/{Path(step.output).name}", flags=flags)
            glue.append(step)
        elif not (ROOT / step.output).exists():
            raise BuildError(f"there is no {step.output}: build the library first (python -m build_support)")
        objects.append(step.output)
    link = extension.link_step(target, tuple(objects))
    link = dataclasses.replace(link, output=str(variant.resolve() / extension.LIBRARY))
    run_ninja([*glue, link], ROOT / BUILD_FOLDER)


def main() -> int:
    """Does what the command line asks; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m build_support.hub_kernel", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "hub-kernel", metavar="FOLDER")
    try:
        print(make(parser.parse_args().out))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
