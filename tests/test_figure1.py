"""SURM's Figure 1: every fit is the nearest of its family, and the script leaves its files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import figure1
from tests import oracle

WRITTEN = {"figure1.json", "figure1.png"}


def members() -> dict[str, Tensor]:
    """A random matrix of every family."""
    vector = torch.randn(figure1.SIZE, dtype=torch.float64)
    factor = vector.reshape(figure1.LEFT)
    lags = (torch.arange(figure1.SIZE)[:, None] - torch.arange(figure1.SIZE)).abs()
    return {
        "low rank": torch.outer(vector, vector),
        "Kronecker": torch.kron(factor, factor.T.contiguous()),
        "circulant": oracle.f_circulant(vector, 1.0),
        "symmetric Toeplitz": vector[lags],
    }


@pytest.mark.parametrize("family", figure1.FAMILIES)
def test_a_member_of_a_family_is_its_own_fit(family: str) -> None:
    member = members()[family]
    assert figure1.relative_error(figure1.FAMILIES[family](member), member) < 1e-12


@pytest.mark.parametrize("family", figure1.FAMILIES)
def test_no_other_member_near_or_far_is_a_better_fit(family: str) -> None:
    matrix = figure1.normal_factor(torch.Generator().manual_seed(0))
    matrix += torch.randn(matrix.shape, dtype=torch.float64)  # nor need the matrix be symmetric
    nearest = figure1.FAMILIES[family](matrix)
    best = figure1.relative_error(nearest, matrix)
    for _ in range(20):
        other = members()[family]
        length = (other * matrix).sum().clamp(min=0) / other.square().sum()  # of the best multiple
        assert figure1.relative_error(length * other, matrix) > best
        assert figure1.relative_error(figure1.FAMILIES[family](nearest + 0.01 * other), matrix) > best


@pytest.mark.parametrize("family", ["low rank", "Kronecker"])
def test_descent_from_many_starts_finds_no_better_fit(family: str) -> None:
    matrix = torch.nn.functional.normalize(figure1.normal_factor(torch.Generator().manual_seed(0)), dim=1)
    best = figure1.relative_error(figure1.FAMILIES[family](matrix), matrix)
    starts = torch.randn(30, figure1.SIZE, dtype=torch.float64).requires_grad_()

    def distances() -> Tensor:
        factors = starts.unflatten(1, figure1.LEFT)
        product = "nj,nk->njk" if family == "low rank" else "nij,nlk->nikjl"
        members = torch.einsum(product, *((starts, starts) if family == "low rank" else (factors, factors)))
        return (members.reshape(-1, *matrix.shape) - matrix).square().sum((1, 2))

    optimizer = torch.optim.LBFGS([starts], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = distances().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = distances().min().sqrt().item() / matrix.norm().item()
    assert best == pytest.approx(found, rel=1e-4)
    assert best <= found + 1e-12


@pytest.mark.parametrize("family", ["low rank", "Kronecker"])
def test_nothing_fits_a_matrix_without_a_positive_part_better_than_zero(family: str) -> None:
    matrix = -torch.eye(figure1.SIZE, dtype=torch.float64)
    if family == "Kronecker":
        matrix = -members()[family]
    assert figure1.FAMILIES[family](matrix).norm() <= 1e-12 * matrix.norm()


@pytest.mark.parametrize("drawing", figure1.DRAWINGS)
def test_every_kind_of_matrix_is_symmetric_and_positive_semidefinite(drawing: str) -> None:
    matrix = figure1.DRAWINGS[drawing](torch.Generator().manual_seed(0))
    assert matrix.shape == (figure1.SIZE, figure1.SIZE)
    assert oracle.error(matrix, matrix.T) <= 1e-14  # a matrix product may round the two halves differently
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * matrix.norm()


def test_a_tiny_run_writes_the_plot_and_every_error(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "new" / "folder"
    figure1.main(["--trials", "2", "--out", str(folder)])
    assert {file.name for file in folder.iterdir()} == WRITTEN
    assert (folder / "figure1.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((folder / "figure1.json").read_text())
    assert {(one["drawing"], one["family"]) for one in document["results"]} == {
        (drawing, family) for drawing in figure1.DRAWINGS for family in figure1.FAMILIES
    }
    for one in document["results"]:
        assert len(one["errors"]) == document["trials"] == 2
        assert min(one["errors"]) <= one["mean"] <= max(one["errors"])
        assert all(0 <= error <= 1 + 1e-12 for error in one["errors"])  # 0 is a member of every family
    out = capsys.readouterr().out
    assert all(word in out for word in (*figure1.DRAWINGS, "low rank", "Kronecker", "circulant", "Toeplitz"))
    assert "figure1.json" in out


def test_the_same_seed_gives_the_same_errors(tmp_path: Path) -> None:
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        figure1.main(["--trials", "1", "--seed", "3", "--out", str(folder)])
        texts.append((folder / "figure1.json").read_text())
    assert texts[0] == texts[1]
