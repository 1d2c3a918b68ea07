"""What serves at import: the compiled library, or the reference after one warning; and the environment variables."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surm_kernels
from surm_kernels import _environment, _extension, gpu_rule
from surm_kernels._namespace import CUDA_NAMESPACE, NAMESPACE

PACKAGE = Path(surm_kernels.__file__).parent

REPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    import surm_kernels
    from surm_kernels import _extension
x, c = torch.randn(3, 8), torch.randn(8)
y = surm_kernels.functional.circulant_linear(x, c)
assert torch.allclose(y, surm_kernels.reference.circulant_linear(x, c), atol=1e-5)
ours = [w for w in caught if "surm_kernels" in str(w.message)]
print("available:", _extension.available, "warnings:", len(ours))
for warning in ours:
    print(warning.category.__name__, warning.message)
"""


def run(directory: Path, program: str = REPORT, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in a Python of its own that finds the package in a directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SURM_KERNELS_")}
    environment |= {"PYTHONPATH": str(directory), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=directory, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with the package but no compiled library."""
    shutil.copytree(PACKAGE, tmp_path / "surm_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_without_a_library_the_reference_serves_after_one_warning(copy: Path) -> None:
    result = run(copy)
    assert result.returncode == 0, result.stderr
    assert "available: False warnings: 1" in result.stdout
    assert "RuntimeWarning surm_kernels runs on its slow PyTorch reference: no compiled library" in result.stdout


def test_a_broken_library_is_named_in_the_warning(copy: Path) -> None:
    (copy / "surm_kernels" / "_C.abi3.so").write_bytes(b"no library")
    result = run(copy)
    assert result.returncode == 0, result.stderr
    assert "available: False warnings: 1" in result.stdout
    assert "_C.abi3.so does not load" in result.stdout


def test_backend_reference_is_silent_and_loads_nothing(copy: Path) -> None:
    (copy / "surm_kernels" / "_C.abi3.so").write_bytes(b"no library")
    result = run(copy, SURM_KERNELS_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert "available: False warnings: 0" in result.stdout


def test_backend_extension_insists_on_the_library(copy: Path) -> None:
    result = run(copy, SURM_KERNELS_BACKEND="extension")
    assert result.returncode != 0
    assert re.search(r"ImportError: SURM_KERNELS_BACKEND=extension, but no compiled library .*_C\*\.so", result.stderr)


@pytest.mark.parametrize("name", ["SURM_KERNELS_BACKEND", "SURM_KERNELS_ISA", "SURM_KERNELS_GPU_PRECISION"])
def test_bad_values_stop_the_import_with_variable_value_and_choices(copy: Path, name: str) -> None:
    result = run(copy, **{name: "fastest"})
    allowed = next(variable.allowed for variable in _environment.VARIABLES if variable.name == name)
    assert result.returncode != 0
    wanted = f"ValueError: environment variable {name} must be one of {', '.join(allowed)}, got 'fastest'"
    assert wanted in result.stderr


def test_defaults_of_the_environment_table_are_allowed_and_an_empty_value_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in _environment.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
        assert _environment.read(variable.name) == variable.default
        monkeypatch.setenv(variable.name, "")
        assert _environment.read(variable.name) == variable.default
        assert variable.meaning


def test_free_text_is_read_as_it_is_and_choices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert _environment.read("TORCH_CUDA_ARCH_LIST") == "8.0;9.0"
    monkeypatch.setenv("SURM_KERNELS_CUDA", "yes")
    with pytest.raises(ValueError, match="SURM_KERNELS_CUDA must be one of auto, 0, 1, got 'yes'"):
        _environment.read("SURM_KERNELS_CUDA")


def operators(namespace: str) -> set[str]:
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return {name for owner, _, name in names if owner == namespace}


def with_kernel(namespace: str, device: str) -> set[str]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name for name in operators(namespace) if has_kernel(f"{namespace}::{name}", device)}


@pytest.mark.skipif(not _extension.available, reason="there are no compiled kernels")
def test_kernels_are_those_of_operators_that_python_defines() -> None:
    dangling = torch._C._dispatch_find_dangling_impls()
    assert not [text for text in dangling if f"name: {NAMESPACE}" in text]
    assert operators(CUDA_NAMESPACE) == set(gpu_rule.CUDA_OPERATORS)
    kronecker = {f"kronecker{part}" for part in ("", "_pullback_left", "_pullback_right", "_backward")}
    diagonal = {f"diagonal{part}" for part in ("", "_pullback", "_backward")}
    others = {"factored_grid", "factored_grid_gradients", "powers", "empty_rows"}
    compiled = {*gpu_rule.CUDA_OPERATORS, *kronecker, *diagonal, *others}
    assert with_kernel(NAMESPACE, "CPU") == compiled
    compiled_for_cuda = set(gpu_rule.CUDA_OPERATORS) if _extension.cuda_architectures else set()
    assert with_kernel(CUDA_NAMESPACE, "CUDA") == compiled_for_cuda


@pytest.mark.parametrize("device", ["CPU", "CUDA", "XPU", "MPS", "Meta"])
def test_every_device_has_a_kernel_or_the_reference_for_every_operator(device: str) -> None:
    assert len(operators(NAMESPACE)) > len(gpu_rule.CUDA_OPERATORS)
    for name in operators(NAMESPACE):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", device)


def test_state_says_what_serves() -> None:
    assert _extension.available == (_extension.reason is None)
    assert bool(_extension.instruction_set) == _extension.available
    assert _extension.instruction_set in ("", "baseline", "avx2", "avx512")


@pytest.mark.skipif(not _extension.available, reason="chooses among compiled kernels")
@pytest.mark.parametrize("wanted", ["baseline", "auto"])
def test_instruction_set_can_be_chosen(wanted: str) -> None:
    program = REPORT + "print('set:', _extension.instruction_set)"
    result = run(PACKAGE.parent, program, SURM_KERNELS_ISA=wanted, SURM_KERNELS_BACKEND="extension")
    assert result.returncode == 0, result.stderr
    assert "available: True warnings: 0" in result.stdout
    chosen = result.stdout.rsplit("set: ", 1)[1].strip()
    assert chosen == "baseline" or wanted == "auto"


def test_documentation_lists_every_environment_variable_with_its_default():
    page = (PACKAGE.parent / "docs" / "environment.md").read_text()
    for variable in _environment.VARIABLES:
        assert f"| `{variable.name}` |" in page
        assert f"`{variable.default}`" in page
