"""What the documentation shows of data and counts: its pictures, and its tables between two marks of a page.

python -m benchmarks.documentation      makes them anew, from docs/data and by counting
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import scale
from surm_kernels.command.bench.case import OURS
from surm_kernels.command.report import charts, sections
from surm_kernels.command.report.measured import FROZEN, Measured
from surm_kernels.structures import (
    CirculantProduct,
    Hydra,
    Kronecker,
    LowRank,
    Siva,
    Structure,
    ToeplitzLike,
    ToeplitzProduct,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
DATA = sorted((DOCS / "data").glob("*.json"))
BENCH = DOCS / "data" / "bench-epyc.json"

#: Files in docs/images, and the charts of the report that they are.
PICTURES = {
    "gain.svg": "gain",
    "tokens.svg": "bench-tokens-adapted-surm-float32-2-threads",
    "scaling.svg": "bench-scaling-circulant-training-float32-2-threads",
    "roofline.svg": "bench-roofline-circulant-forward-float32-2-threads",
    "memory.svg": "bench-memory",
}

#: Updates to choose among: the structure for n features, the case of bench that times it, what is said of it.
CHOICES = {
    "SURM circulant": (lambda n: CirculantProduct(n, n), "adapted-surm", "one product for all rows"),
    "SURM Toeplitz": (lambda n: ToeplitzProduct(n, n), "adapted-surm-toeplitz", "sorted by adapter"),
    "SURM Kronecker": (lambda n: Kronecker(n, n), "adapted-kronecker", "sorted by adapter"),
    "SURM LDR r = 2": (lambda n: ToeplitzLike(n, n, rank=2), "adapted-toeplitz-like", "sorted by adapter"),
    "HyDRA, a pool of 2 n": (lambda n: Hydra(n, n, pool_size=2 * n), "adapted-hydra", "sorted by adapter"),
    "SiVA, k = n / 2": (lambda n: Siva(n, n, k=n // 2), "adapted-siva-half", "one product for all rows"),
}
LORA = "PEFT LoRA r=8"
SIZES = (768, 4096)
TOKENS = 2048


def pictures() -> dict[str, str]:
    """The SVG of every picture, by its file."""
    found = {chart.name: chart for section in sections.read(DATA) for chart in section.charts}
    return {file: charts.svg(found[name]) for file, name in PICTURES.items()}


def choosing_table() -> str:
    """Numbers, time and serving of each update, and LoRA's of the same run."""
    measured = [Measured.of(entry) for entry in json.loads(BENCH.read_text(encoding="utf-8"))["measurements"]]
    headings = ["update", *(f"numbers at n = {n:,}" for n in SIZES), "a step", "many adapters in one batch"]

    def rows() -> Iterator[list[str]]:
        for name, (make, case, serving) in CHOICES.items():
            yield [name, *_counts(make), _step(measured, case, OURS), serving]
        yield [
            "PEFT's LoRA r = 8",
            *_counts(lambda n: LowRank(n, n, rank=8)),
            _step(measured, "adapted-surm", LORA),
            "PEFT's own",
        ]

    return scale.markdown(headings, rows())


def _counts(make: Callable[[int], Structure]) -> list[str]:
    return [f"{make(n).count():,}" for n in SIZES]


def _step(measured: Sequence[Measured], case: str, contender: str) -> str:
    """The median of a contender's step over the frozen layer's."""
    (one,) = (
        one
        for one in measured
        if (one.case, one.dtype, one.point.in_features, one.point.tokens) == (case, "float32", SIZES[0], TOKENS)
    )
    return f"{one.ratio(contender, FROZEN).median:.2f}×"


def page(text: str, tables: Mapping[str, str]) -> str:
    """A page with each of the tables between its marks."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page needs the lines {begin} and {end} once each")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def pages() -> dict[str, str]:
    """The pages with tables as they should be, by their file."""
    wanted = {"scale.md": scale.tables(), "choosing.md": {"choosing": choosing_table()}}
    return {file: page((DOCS / file).read_text(encoding="utf-8"), tables) for file, tables in wanted.items()}


def main() -> None:
    """Writes both."""
    argparse.ArgumentParser(description="Pictures and tables of docs/, from docs/data and by counting.").parse_args()
    for file, text in {**pages(), **{f"images/{name}": svg for name, svg in pictures().items()}}.items():
        (DOCS / file).write_text(text, encoding="utf-8")
        print(f"wrote docs/{file}")


if __name__ == "__main__":
    main()
