"""What `import surm_kernels` and the command bring along: torch, and nothing else that takes long or may be broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch._dynamo", "triton", "transformers", "peft", "matplotlib", "rich")

FORWARD_AND_BACKWARD = """
import torch, surm_kernels as s
x = torch.randn(5, 12, requires_grad=True)
for name in ('Circulant', 'CirculantProduct', 'ToeplitzProduct', 'Hydra', 'CauchyLike', 'LowRank'):
    update = getattr(s.structures, name)(12, 12, **{'rank': 2} if name in ('CauchyLike', 'LowRank') else {})
    for strategy in ("direct", "merged"):
        s.nn.AdaptedLinear(torch.nn.Linear(12, 12), update, strategy=strategy)(x).sum().backward()
s.nn.AdaptedLinear.siva(torch.nn.Linear(12, 12), k=4)(x).sum().backward()
s.nn.ToeplitzLinear.from_linear(torch.nn.Linear(12, 12))(x).sum().backward()
for product, size in ((s.functional.vandermonde_linear, 3), (s.functional.circulant_linear, 12)):
    parameter = torch.rand(size, requires_grad=True)
    y = product(x, parameter)
    torch.autograd.grad(y.sum(), parameter, create_graph=True)
"""


def run(program: str, *folders: Path) -> str:
    """What a program prints in a Python of its own that finds modules in these folders first."""
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "program",
    [
        "import surm_kernels",
        FORWARD_AND_BACKWARD,
        "from surm_kernels.command.main import main; main(['info'])",
        *(f"import surm_kernels.command.{name}" for name in ("check", "bench", "tune", "demo")),
    ],
)
def test_nothing_heavy_is_imported(program: str) -> None:
    imported = f"import sys; print('imported:', *(name for name in {HEAVY} if name in sys.modules))"
    assert run(f"{program}\n{imported}").splitlines()[-1] == "imported:"


def test_a_triton_that_raises_at_import_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise OSError('a driver of another age')\n")
    out = run(f"{FORWARD_AND_BACKWARD}\nfrom surm_kernels import triton; print(triton.why_not())", tmp_path)
    assert out == "Triton cannot be imported: a driver of another age\n"


def test_nothing_imports_the_commands() -> None:
    assert run("import sys, surm_kernels; print('surm_kernels.command' in sys.modules)") == "False\n"
