"""The package as Hugging Face's `kernels` loads it: under another name, beside the one that is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import extension, hub_kernel
from surm_kernels import _extension

#: As kernels.importer has it, for where that package is not installed.
BY_HAND = """
import importlib.util, json, pathlib, sys
def get_local_kernel(repository):
    (variant,) = (repository / "build").iterdir()
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
BESIDE = """
import pathlib, sys
import torch, surm_kernels
kernel = get_local_kernel(pathlib.Path(sys.argv[1]))
extension, names = (sys.modules[f"{kernel.__name__}.{name}"] for name in ("_extension", "_namespace"))
assert extension.available and extension.library_path().is_relative_to(sys.argv[1])
assert names.NAMESPACE == kernel.__name__ != "surm_kernels"
x, c = torch.randn(3, 96), torch.randn(96)
assert torch.equal(surm_kernels.functional.circulant_linear(x, c), kernel.functional.circulant_linear(x, c))
for namespace in ("surm_kernels", kernel.__name__):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::grid", "CPU")
layer = kernel.nn.AdaptedLinear(torch.nn.Linear(12, 12), kernel.structures.Siva(12, 12, 4), strategy="merged")
layer(torch.randn(2, 12)).sum().backward()
assert not [name for name in sys.modules if name.startswith("surm_kernels.command")]
print("both serve")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel repository whose glue is compiled quickly."""
    if (
        not (hub_kernel.ROOT / extension.BUILD_FOLDER / "cpu/instruction_set.cpp.o").exists()
        or not _extension.available
    ):
        pytest.skip("the library was built elsewhere, without objects")
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXXFLAGS", "-O0")
        patch.setattr(hub_kernel, "BUILD_FOLDER", str(folder / "objects"))
        hub_kernel.make(folder / "kernel")
    return folder / "kernel"


@pytest.mark.parametrize("way", ["by hand", "kernels"])
def test_it_loads_beside_the_package(repository: Path, way: str) -> None:
    if way == "kernels" and importlib.util.find_spec("kernels") is None:
        pytest.skip("the package kernels is not installed")
    load = BY_HAND if way == "by hand" else "from kernels import get_local_kernel"
    done = subprocess.run(
        [sys.executable, "-c", load + BESIDE, str(repository)], cwd=hub_kernel.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both serve\n"


def test_the_repository_has_a_licence_and_says_what_it_is(repository: Path) -> None:
    variant = repository / "build" / hub_kernel.VARIANT
    assert (variant / "LICENSE").exists()
    told = json.loads((variant / "metadata.json").read_text())
    assert told == hub_kernel.metadata(f"surm_kernels_cpu_{hub_kernel.digest()}")


@pytest.mark.parametrize(
    ("line", "depth", "relative"),
    [
        ("from surm_kernels import _extension", 1, "from . import _extension"),
        ("from surm_kernels import _extension", 2, "from .. import _extension"),
        ("    from surm_kernels.ops.grid import grid", 2, "    from ..ops.grid import grid"),
        ("from surm_kernels.ops import grid", 3, "from ...ops import grid"),
        ("from surm_kernels_other import x", 1, "from surm_kernels_other import x"),
        ("# from surm_kernels import x", 1, "# from surm_kernels import x"),
    ],
)
def test_imports_are_made_relative(line: str, depth: int, relative: str) -> None:
    assert hub_kernel.with_relative_imports(line, depth) == relative
