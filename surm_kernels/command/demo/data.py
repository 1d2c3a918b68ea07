"""Movie-review snippets, fresh or rotten: reading, splitting by film, batching by length.

The split is by film (md5 of the film's name, modulo 5, 0 is test), so that no film is seen in training and in test.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

LABELS = {"rotten": 0, "fresh": 1}
TEST_FOLD, FOLDS = 0, 5
COLUMNS = {"category", "text", "movie_name"}


@dataclass(frozen=True)
class Snippet:
    """One review: its text, its label (1 is fresh) and the film it is about."""

    text: str
    label: int
    film: str


def read_snippets(file: Path) -> list[Snippet]:
    """All reviews of a bz2-compressed CSV table; rows of other categories (plot summaries) are left out."""
    rows = csv.DictReader(io.StringIO(bz2.decompress(file.read_bytes()).decode("utf-8")))
    absent = COLUMNS - set(rows.fieldnames or ())
    if absent:
        raise ValueError(f"{file}: columns {sorted(absent)} are missing, found {rows.fieldnames}")
    return [
        Snippet(row["text"], LABELS[row["category"]], row["movie_name"]) for row in rows if row["category"] in LABELS
    ]


def is_test_film(film: str) -> bool:
    """Whether a film belongs to the test split; depends on its name alone."""
    return int(hashlib.md5(film.encode("utf-8"), usedforsecurity=False).hexdigest(), 16) % FOLDS == TEST_FOLD


def split_by_film(
    snippets: Sequence[Snippet], train_examples: int, test_examples: int, seed: int
) -> tuple[list[Snippet], list[Snippet]]:
    """A random sample of the training films' snippets and one of the test films'."""
    generator = random.Random(seed)
    parts = []
    for name, count, wants_test in (("train-examples", train_examples, False), ("test-examples", test_examples, True)):
        pool = [snippet for snippet in snippets if is_test_film(snippet.film) == wants_test]
        if not 1 <= count <= len(pool):
            raise ValueError(f"{name} is {count}, the data has 1 to {len(pool)}")
        parts.append(generator.sample(pool, count))
    return parts[0], parts[1]


@dataclass(frozen=True)
class Batch:
    """Padded token ids and their mask, both (examples, tokens), and the labels (examples,)."""

    tokens: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class EncodedExamples:
    """Token ids of every example, not yet padded, and the labels."""

    tokens: list[list[int]]
    labels: torch.Tensor
    padding: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The examples at `indices`, padded to the longest of them."""
        rows = [self.tokens[index] for index in indices]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [self.padding] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return Batch(tokens, mask, self.labels[list(indices)])

    def sorted_batches(self, batch_size: int) -> list[list[int]]:
        """Every example once, longest first, so that little is padded."""
        order = sorted(range(len(self)), key=lambda index: -len(self.tokens[index]))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def shuffled_batches(self, batch_size: int, generator: random.Random, pool: int = 8) -> list[list[int]]:
        """Every example once in random order; examples are sorted by length only within pools of `pool` batches."""
        order = generator.sample(range(len(self)), len(self))
        batches = []
        for first in range(0, len(order), batch_size * pool):
            group = sorted(order[first : first + batch_size * pool], key=lambda index: len(self.tokens[index]))
            batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
        generator.shuffle(batches)
        return batches
