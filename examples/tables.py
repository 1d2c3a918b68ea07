"""Tables of studies in Markdown, from their files: `python -m examples.tables [--against METHOD] FILE …` prints them.

Gains are differences seed by seed, from the probe unless another method is named: points of accuracy, per cent of
perplexity. After a study's tables come results over the number of examples, and how the change of the effective rank
goes with the gain over the probe, over all its runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples import pinwheel, program, step_time
from examples.methods import METHODS

HEADINGS = (
    "method", "numbers", "learning rate", "seeds", "result", "above {}", "effective rank", "‖ΔW‖ / ‖W‖",
)  # fmt: skip

#: Files that are no studies, and how a row of theirs is shown.
OTHERS = {"pinwheel": (pinwheel.HEADINGS, pinwheel.cells), "step_time": (step_time.HEADINGS, step_time.cells)}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is on the left, all others on the right."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, marks, *rows))


def study_table(document: Mapping[str, Any], examples: int, against: str = "probe") -> str:
    """A row for each method that was tried with so many examples."""
    entries = [entry for entry in document["summary"] if entry["examples"] == examples]
    titles = {entry["method"]: entry["title"] for entry in entries}
    if "probe" in document["setting"]:  # what is not adapted has no head to train either
        titles["probe"] = document["setting"]["probe"]
    other = next((entry for entry in entries if entry["method"] == against), None)
    headings = [heading.format(titles.get(against, against)) for heading in HEADINGS]
    return markdown(headings, [[titles[entry["method"]], *_cells(entry, other)] for entry in entries])


def _cells(entry: Mapping[str, Any], other: Mapping[str, Any] | None) -> list[str]:
    ranks, norm = entry["effective_rank"], entry["update_norm"]
    return [
        f"{entry['adapter_parameters']:,}",
        f"{entry['learning_rate']:g}" + _edge(entry) if entry["learning_rate"] else "",
        f"{len(entry['seeds'])}",
        _spread(entry),
        _above(entry, other) if other is not entry else "",
        f"{ranks[1] - ranks[0]:+.2f}" if ranks else "",
        f"{norm:.3f}" if norm is not None else "",
    ]


def _edge(entry: Mapping[str, Any]) -> str:
    """A mark where the best of the learning rates is the least or greatest that was tried."""
    tried = list(map(float, entry["tried"]))
    return " *" if len(tried) > 1 and entry["learning_rate"] in (min(tried), max(tried)) else ""


def _spread(entry: Mapping[str, Any]) -> str:
    """Accuracy, or the perplexities of a language model: mean and sample deviation over the seeds."""
    if entry["mean"] is None:
        perplexities = [math.exp(loss) for loss in entry["losses"] if loss is not None]
        spread = f" ± {statistics.stdev(perplexities):.1f}" if len(perplexities) > 1 else ""
        return f"{entry['perplexity']:.1f}{spread}" if perplexities else "diverged"
    deviation = "" if entry["deviation"] is None else f" ± {100 * entry['deviation']:.1f}"
    return f"{100 * entry['mean']:.1f}{deviation}"


def _above(entry: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """The mean and deviation of the gains over another method, over the seeds that both have."""
    found = [] if other is None else list(gains(entry, other).values())
    if not found:
        return ""
    deviation = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.1f}{deviation}" + (" %" if entry["mean"] is None else "")


def gains(entry: Mapping[str, Any], other: Mapping[str, Any]) -> dict[int, float]:
    """By seed, how many points of accuracy above another method, or how many per cent of its perplexity."""
    measure = "losses" if entry["mean"] is None else "accuracies"
    others = dict(zip(other["seeds"], other[measure], strict=True))
    pairs = {
        seed: (value, others[seed])
        for seed, value in zip(entry["seeds"], entry[measure], strict=True)
        if value is not None and others.get(seed) is not None
    }
    if measure == "losses":
        return {seed: 100 * math.expm1(own - theirs) for seed, (own, theirs) in pairs.items()}
    return {seed: 100 * (own - theirs) for seed, (own, theirs) in pairs.items()}


def by_examples(document: Mapping[str, Any]) -> str | None:
    """A row for each method that was tried with several numbers of examples, a column for each of these."""
    entries = {(entry["method"], entry["examples"]): entry for entry in document["summary"]}
    tried = {method: sorted(count for other, count in entries if other == method) for method, _ in entries}
    counts = sorted({count for each in tried.values() if len(each) > 1 for count in each})
    if not counts:
        return None
    rows = []
    for method, of_method in tried.items():
        if len(of_method) > 1:
            first = entries[method, of_method[0]]
            cells = [_spread(entries[method, count]) if count in of_method else "" for count in counts]
            rows.append([first["title"], f"{first['adapter_parameters']:,}", *cells])
    return markdown(["method", "numbers", *(f"{count:,} examples" for count in counts)], rows)


def rank_line(document: Mapping[str, Any]) -> str | None:
    """How the change of the effective rank goes with the gain over the probe, by runs with the usual examples."""
    usual = document["setting"]["examples"]
    entries = {entry["method"]: entry for entry in document["summary"] if entry["examples"] == usual}
    if "probe" not in entries:
        return None
    changes, above = [], []
    for run in document["runs"]:
        entry = entries.get(run["method"])
        if not entry or (run["examples"], run["learning_rate"]) != (usual, entry["learning_rate"]):
            continue
        gain = gains(entry, entries["probe"]).get(run["seed"])
        if run["effective_rank"] and gain is not None:
            changes.append(run["effective_rank"][1] - run["effective_rank"][0])
            above.append(gain)
    if len(changes) < 3:
        return None
    pearson = statistics.correlation(changes, above)
    spearman = statistics.correlation(_ranks(changes), _ranks(above))
    what = "perplexity above" if entries["probe"]["mean"] is None else "gain over"
    return (
        f"Change of the effective rank and {what} the probe, {len(changes)} runs: Pearson {pearson:+.2f}, "
        f"Spearman {spearman:+.2f}."
    )


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in ascending order, equals sharing the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def main(words: Sequence[str] | None = None) -> None:
    """Prints the tables of all files."""
    parser = argparse.ArgumentParser(description="Tables of studies in Markdown.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--against", choices=list(METHODS), default="probe", metavar="METHOD", help="default: probe")
    arguments = parser.parse_args(words)
    for file in arguments.files:
        document = program.read(file)
        title = document["setting"]["title"]
        if document["example"] in OTHERS:
            headings, cells = OTHERS[document["example"]]
            print(f"\n{title}\n\n{markdown(headings, list(map(cells, document['rows'])))}")
            continue
        for examples in sorted({entry["examples"] for entry in document["summary"]}):
            print(f"\n{title}, {examples} examples\n\n{study_table(document, examples, arguments.against)}")
        for text in (by_examples(document), rank_line(document)):
            if text:
                print(f"\n{text}")


if __name__ == "__main__":
    program.run(main)
