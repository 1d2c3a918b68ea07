"""`surm-kernels report`: a page that needs nothing else, pictures in both schemes, and no text over another."""

import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from build_support.ninja import ROOT
from surm_kernels import cost_constants
from surm_kernels.command.bench import report
from surm_kernels.command.bench.document import session_of
from surm_kernels.command.main import main
from surm_kernels.command.report import charts, sections

DATA = sorted((ROOT / "docs" / "data").glob("*.json"))
TOUCHING = 0.5  # pixels by which boxes of text may meet


def of_study(example: str, perplexity: float | None = None) -> dict:
    """A study of three methods at two numbers of examples."""
    score = {"mean": None, "deviation": None, "perplexity": perplexity}
    titles = ("linear probe", "SURM circulant", "LoRA r = 8")
    summary = [
        {
            "title": title,
            "examples": examples,
            "adapter_parameters": numbers,
            **(score if perplexity else {"mean": 0.7 + 0.01 * numbers**0.1, "deviation": 0.02, "perplexity": None}),
        }
        for examples in (100, 1000)
        for title, numbers in zip(titles, (0, 9216, 73728), strict=True)
    ]
    machine = {"processor": "Abacus 3000", "cores": 2}
    setting = {"epochs": 1}
    return {
        "example": example, "setting": setting, "machine": machine, "versions": {}, "summary": summary, "runs": []
    }  # fmt: skip


def of_gpu() -> str:
    """A session of a GPU: a case at four sizes, one that ended its process, and a line that was cut off."""
    names = {"surm_kernels": 2.0, "torch.fft": 9.0, "device copy": 1.0, "torch.matmul": 30.0}

    def row(n: int, result: dict | None = None) -> dict:
        contenders = {name: {"seconds": [n * times * 1e-7, n * times * 1.1e-7]} for name, times in names.items()}
        key = {"case": "circulant-forward", "in_features": n, "out_features": n, "tokens": 2**20 // n}
        result = result or {"title": "circulant, forward", "refused": False, "contenders": contenders}
        return {"row": {"key": {**key, "dtype": "bfloat16"}, "result": result}}

    facts = {"dry_run": True, "date": "2026-11-30", "command": "gpu.sh", "device": {"name": "Abacus X"}}
    lines = [
        {"facts": {**facts, "versions": {"torch": "2.13"}}},
        {"begun": {"kind": "row", "key": {}}},
        *map(row, (256, 1024, 4096, 16384)),
        row(8192, {"error": "no room"}),
        {"note": {"text": "one row was left out"}},
    ]
    return "\n".join([*map(json.dumps, lines), '{"row": {"key'])


def of_check() -> dict:
    kernel = {"structure": "circulant", "kernel": "product", "dtype": "float32", "limit": 2e-6}
    kernels = [{**kernel, "error": 3e-7, "failed": False}, {**kernel, "error": None, "failed": True}]
    return {"date": "2026-11-30", "device": "Abacus", "served by": "us", "versions": {}, "kernels": kernels}


def of_rows(example: str, row: dict) -> dict:
    """What examples/step_time.py or examples/pinwheel.py writes, with one row."""
    machine = {"processor": "Abacus 3000", "cores": 2}
    return {"example": example, "setting": {"title": example}, "machine": machine, "versions": {}, "rows": [row]}


STEPS = of_rows(
    "step_time", {"title": "LoRA r = 8", "seconds": 0.18, "multiple": [1.05, 1.07, 1.1], "megabytes": 105.0}
)
ALIGNMENT = of_rows(
    "pinwheel",
    {"update": "Kronecker", "parameters": 128, "updates": [0.1, 0.2], "weights": [0.2, 0.2], "outputs": [0.9, 0.8]},
)
DOCUMENTS = (of_study("reviews"), of_study("language", 31.5), of_check(), STEPS, ALIGNMENT)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """A file of every kind: those that are published, the package's constants, and small ones."""
    folder = tmp_path_factory.mktemp("report")
    made = {f"{index}.json": json.dumps(document) for index, document in enumerate(DOCUMENTS)} | {"gpu.jsonl": of_gpu()}
    for name, text in made.items():
        (folder / name).write_text(text)
    return [*DATA, cost_constants.SHIPPED, *(folder / name for name in made)]


@pytest.fixture(scope="module")
def found(files) -> list[sections.Section]:
    return sections.read(files)


class Page(HTMLParser):
    """What a page refers to, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        self.images += [dict(attributes)] if tag == "img" else []


def test_the_page_needs_no_other_file_and_no_script(files, tmp_path: Path, capsys) -> None:
    small = [file for file in files if file.stat().st_size < 10_000]
    assert main(["report", *map(str, small), "--output", str(tmp_path / "report")]) == 0
    assert "index.html" in capsys.readouterr().out
    text = (tmp_path / "report" / "index.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(reference.startswith(("#", "data:image/svg+xml;base64,")) for reference in page.references)
    drawn = sum(len(section.charts) for section in sections.read(small))
    assert len(page.images) == drawn > 5
    assert all(image["alt"] for image in page.images)
    for suffix, start in ((".svg", b"<svg"), (".png", b"\x89PNG")):
        pictures = list((tmp_path / "report").glob(f"*{suffix}"))
        assert len(pictures) == drawn
        assert all(picture.read_bytes().startswith(start) for picture in pictures)
    assert "circulant, product, float32 failed" in text and "Note: one row was left out" in text


def test_every_kind_of_file_becomes_charts_of_its_own_names(found) -> None:
    assert {section.title.partition(":")[0] for section in found} >= {
        "What one gains", "Speed and memory", "Demo", "Study", "GPU", "Parity on Abacus", "Constants of adapted layers",
        "Comparison",
    }  # fmt: skip
    names = [chart.name for section in found for chart in section.charts]
    assert len(set(names)) == len(names)
    kinds = ("gain", "bench-scaling", "bench-tokens", "bench-roofline", "bench-ratios", "bench-memory", "gpu-roofline",
             "demo-accuracy", "study-reviews-1000", "study-language-examples", "tune", "check",
             "step-time", "step-memory", "pinwheel")  # fmt: skip
    assert all(any(name.startswith(kind) for name in names) for kind in kinds)


def test_a_picture_follows_the_readers_scheme(found) -> None:
    svg = charts.svg(found[0].charts[0])
    style, body = svg.split("</style>", 1)
    assert "prefers-color-scheme:dark" in style
    assert all(f"--{name}:{shade}" in style for name, pair in charts.COLOURS.items() for shade in pair)
    assert not re.findall(r"(?<!, )#[0-9a-f]{6}", body)
    assert "<text" not in body


def texts(chart: charts.Chart) -> tuple[list[tuple[str, Bbox]], Bbox]:
    """Where a chart's texts are, and the whole of it, in pixels."""
    with matplotlib.rc_context(charts.STYLE):
        figure = charts.figure(chart)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        hidden = undrawn_labels(figure)
        visible = [one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
        drawn = [one for one in visible if one not in hidden]
        return [(one.get_text(), one.get_window_extent(canvas.get_renderer())) for one in drawn], figure.bbox


def undrawn_labels(figure: Figure) -> list[Text]:
    """The labels of ticks beyond the range of their axis."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    ticks = [(tick, *sorted(axis.get_view_interval())) for axis in axes for tick in axis.get_major_ticks()]
    return [
        label for tick, low, high in ticks if not low <= tick.get_loc() <= high for label in (tick.label1, tick.label2)
    ]


def test_no_text_lies_over_another_or_beyond_the_picture(found) -> None:
    for chart in (chart for section in found for chart in section.charts):
        placed, whole = texts(chart)
        assert placed
        for text, box in placed:
            inside = box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1
            assert inside, f"{chart.name}: {text!r} leaves the picture"
        for (one, box), (other, other_box) in combinations(placed, 2):
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert min(width, height) <= TOUCHING, f"{chart.name}: {one!r} lies over {other!r}"


def test_all_that_is_published_can_be_reported() -> None:
    results = sorted((ROOT / "examples" / "results").glob("*.json"))
    assert len(sections.read(results)) == len(results) > 0
    assert all(section.charts for section in sections.read(results))


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "{}", "[]", '{"runs": [], "job": "none"}', '{"runs": NaN, "summary": []}'),
        '[{"families": 3, "columns": 4}]',
    ],
)
def test_what_is_no_file_of_ours_is_refused(text: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "b.json"
    file.write_text(text)
    assert main(["report", str(file), "--output", str(tmp_path / "out")]) == 2
    assert f"surm-kernels report: {file} holds nothing to report" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_documents_stay_within_the_folder_and_the_text(tmp_path: Path) -> None:
    document = of_study("../<b>evil</b>")
    document["summary"][0]["title"] = "<script>$a_1"
    (tmp_path / "study.json").write_text(json.dumps(document))
    assert main(["report", str(tmp_path / "study.json"), "--output", str(tmp_path / "out")]) == 0
    assert {file.parent for file in tmp_path.rglob("*.svg")} == {tmp_path / "out"}
    assert not {"script", "b"} & set(Page((tmp_path / "out" / "index.html").read_text()).tags)


def test_a_demo_without_runs_or_with_memory_unknown(tmp_path: Path) -> None:
    document = json.loads((ROOT / "docs" / "data" / "demo.json").read_text())
    for run in document["runs"]:
        run["training_memory_megabytes"] = None
    for runs, names in (([], []), (document["runs"], ["demo-accuracy", "demo-time"])):
        (tmp_path / "demo.json").write_text(json.dumps(document | {"runs": runs}))
        (section,) = sections.read([tmp_path / "demo.json"])
        assert [chart.name for chart in section.charts] == names


def test_many_methods_are_shown_by_family_and_each_in_a_row(tmp_path: Path) -> None:
    document = of_study("many")
    entry = document["summary"][1]
    titles = [f"{family} {number}" for number in range(9) for family in ("SURM", "HyDRA", "method")]
    document["summary"] = [entry | {"title": title} for title in titles]
    (tmp_path / "study.json").write_text(json.dumps(document))
    (section,) = sections.read([tmp_path / "study.json"])
    families, methods = ({text for text, _ in texts(chart)[0]} for chart in section.charts)
    assert {"SURM", "HyDRA", "others"} <= families and not set(titles) & families
    assert {f"{title}, 9,216 numbers" for title in titles} <= methods


def test_the_published_benchmarks_are_those_of_the_data() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    sessions = [session_of(json.loads(file.read_text())) for file in DATA if file.name.startswith("bench-")]
    assert sessions
    assert report.page(sessions, page) == page
