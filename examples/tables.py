"""Tables of studies in Markdown, from their files: `python -m examples.tables FILE …` prints them.

After the table of a classification comes how the effective rank goes with the accuracy, over all its runs.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEADINGS = ("method", "numbers", "learning rate", "accuracy", "above nothing adapted", "effective rank", "‖ΔW‖ / ‖W‖")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is on the left, all others on the right."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, marks, *rows))


def study_table(document: Mapping[str, Any], examples: int) -> str:
    """A row for each method that was tried with so many examples."""
    entries = [entry for entry in document["summary"] if entry["examples"] == examples]
    probe = next((entry for entry in entries if not entry["adapter_parameters"]), None)
    return markdown(HEADINGS, [_cells(entry, probe) for entry in entries])


def _cells(entry: Mapping[str, Any], probe: Mapping[str, Any] | None) -> list[str]:
    ranks, norm = entry["effective_rank"], entry["update_norm"]
    return [
        entry["title"],
        f"{entry['adapter_parameters']:,}",
        f"{entry['learning_rate']:g}" + _edge(entry) if entry["learning_rate"] else "",
        _spread(entry),
        _above(entry, probe) if probe is not entry else "",
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
        return "diverged" if entry["perplexity"] is None else f"{entry['perplexity']:.2f}"
    deviation = "" if entry["deviation"] is None else f" ± {100 * entry['deviation']:.1f}"
    return f"{100 * entry['mean']:.1f}{deviation}"


def _above(entry: Mapping[str, Any], probe: Mapping[str, Any] | None) -> str:
    """Differences of the accuracies in points, seed by seed, where both have the seed: their mean and deviation."""
    if probe is None or entry["mean"] is None:
        return ""
    others = dict(zip(probe["seeds"], probe["accuracies"], strict=True))
    gains = [
        100 * (accuracy - others[seed])
        for seed, accuracy in zip(entry["seeds"], entry["accuracies"], strict=True)
        if seed in others and accuracy is not None
    ]
    if not gains:
        return ""
    deviation = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
    return f"{statistics.fmean(gains):+.1f}{deviation}"


def rank_line(document: Mapping[str, Any]) -> str | None:
    """How the change of the effective rank goes with accuracy, over runs at chosen rates with the usual examples."""
    rates = {
        entry["method"]: entry["learning_rate"]
        for entry in document["summary"]
        if entry["examples"] == document["setting"]["examples"]
    }
    pairs = [
        (run["effective_rank"][1] - run["effective_rank"][0], run["test_accuracy"])
        for run in document["runs"]
        if run["effective_rank"]
        and run["test_accuracy"] is not None
        and run["examples"] == document["setting"]["examples"]
        and run["learning_rate"] == rates[run["method"]]
    ]
    if len(pairs) < 3:
        return None
    changes, accuracies = zip(*pairs, strict=True)
    pearson = statistics.correlation(changes, accuracies)
    spearman = statistics.correlation(_ranks(changes), _ranks(accuracies))
    return (
        f"Change of the effective rank and accuracy over {len(pairs)} runs: Pearson {pearson:+.2f}, "
        f"Spearman {spearman:+.2f}."
    )


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in ascending order, equals sharing the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def main(files: Sequence[str]) -> None:
    """Prints the tables of all files."""
    for name in files:
        document = json.loads(Path(name).read_text(encoding="utf-8"))
        for examples in sorted({entry["examples"] for entry in document["summary"]}):
            print(f"\n{document['setting']['title']}, {examples} examples\n\n{study_table(document, examples)}")
        line = rank_line(document)
        if line:
            print(f"\n{line}")


if __name__ == "__main__":
    main(sys.argv[1:])
