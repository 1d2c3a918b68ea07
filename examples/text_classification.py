"""MiniLM learns to tell fresh from rotten movie reviews, by every method of the table.

The adapters are on query and value of the upper three of its six layers of 384. The reviews are those of
`surm-kernels demo`, split by film: 1,000 to train on, once, 500 other ones of the same films to choose learning rates
by, 1,000 of other films to test on, all drawn by the seed.

`python -m examples.text_classification [--experiments NAME …] [--methods NAME …] [--seeds N …] [--tiny]` adds to
examples/results/text_classification.json and draws its picture.
"""

from __future__ import annotations

import argparse
import copy
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from examples import plots, program
from examples.halves import HalfClassifier, HiddenExamples, UpperHalf, sentences_halfway
from examples.methods import METHODS, TABLE
from examples.study import Measures, Results, Task, add_arguments, carry_out, header
from examples.training import Evaluate, train
from surm_kernels.command.demo.data import EncodedExamples, Snippet, read_snippets, split_by_film
from surm_kernels.command.demo.models import CLASSES, load_encoder
from surm_kernels.command.demo.requirements import (
    check_requirements,
    model_folder,
    prepare_environment,
    reviews_file,
)
from surm_kernels.command.demo.training import (
    HEAD_LEARNING_RATE,
    LogitsOf,
    Tokenizer,
    cross_entropy,
    encode,
    head_only,
    whole_model,
)

EXAMPLE = "text_classification"
BATCH_SIZE, TEST_BATCH_SIZE = 16, 50
VALIDATION, TEST = 500, 1000
USUAL = 1000
#: 2, 5, 20 and 50 % of the 10,349 reviews of training films, the usual number a tenth; fewer are seen several times.
SHARES = (207, 517, 2070, 5175)
LOW_RESOURCE = ("probe", "lora_r8", "circulant", "circulant_repo", "hydra_toeplitz_768", "siva_950_bottom")

EXPERIMENTS: dict[str, Sequence[tuple[str, int]]] = {
    "table": [(method, USUAL) for method in TABLE],
    "counts": [(method, USUAL) for method in ("lora_r2", "lora_r4", "ldr_r1", "ldr_r2")],
    "splits": [(method, USUAL) for method in METHODS if method.startswith("hydra_splits")],
    "fixed": [(method, USUAL) for method in METHODS if method.startswith("hydra_fixed")],
    "starts": [("circulant_repo", USUAL), ("circulant_random", USUAL)],
    "adapters": [("adapter_circulant", USUAL), ("adapter_bottleneck", USUAL)],
    "low_resource": [(method, examples) for examples in SHARES for method in LOW_RESOURCE],
}


@dataclass(frozen=True)
class Material:
    """What is trained, and on what; `usual`, `validation` and `test` are numbers of examples."""

    snippets: list[Snippet]
    tokenizer: Tokenizer
    encoder: Any
    hidden_size: int
    usual: int
    validation: int
    test: int


def real_material() -> Material:
    """MiniLM and the reviews, from their packages."""
    from transformers import AutoTokenizer

    check_requirements(["lora"])
    prepare_environment()
    encoder, hidden_size = load_encoder(model_folder())
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    return Material(read_snippets(reviews_file()), tokenizer, encoder, hidden_size, USUAL, VALIDATION, TEST)


class Words:
    """A tokenizer of a few words."""

    pad_token_id = 0
    known = ("", "good", "bad", "film", "plot", "actor")

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.known.index(word) for word in line.split()][:max_length] for line in text]}


def tiny_material() -> Material:
    """A random encoder of 16 features, and reviews of up to six words."""
    from transformers import BertConfig, BertModel

    generator = random.Random(0)
    snippets = [
        Snippet(" ".join([word, *generator.choices(Words.known[3:], k=generator.randint(0, 5))]), label, str(film))
        for film in range(240)
        for label, word in ((0, "bad"), (1, "good"))
    ]
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=8, hidden_size=384, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return Material(snippets, Words(), BertModel(shape, add_pooling_layer=False), 384, 32, 16, 16)


class Study:
    """Makes the runs."""

    def __init__(self, material: Material) -> None:
        self.material = material
        self.upper = UpperHalf(material.encoder.encoder.layer).eval()

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def parts(self, examples: int, seed: int) -> tuple[HiddenExamples, HiddenExamples, HiddenExamples]:
        """Training, validation and test examples."""
        material = self.material
        seen, test = split_by_film(material.snippets, examples + material.validation, material.test, seed)
        parts = seen[:examples], seen[examples:], test
        first, second, third = (sentences_halfway(material.encoder, encode(part, material.tokenizer)) for part in parts)
        return first, second, third

    def __call__(self, method: str, examples: int, learning_rate: float, seed: int) -> Measures:
        training, validation, test = self.parts(examples, seed)
        torch.manual_seed(seed)
        head = nn.Linear(self.material.hidden_size, CLASSES)
        model = HalfClassifier(METHODS[method].adapt(copy.deepcopy(self.upper)), head)
        logits_of = whole_model if model.adapter_parameters() else head_only
        generator = random.Random(seed)
        epochs = max(1, round(self.material.usual / examples))
        batches = [batch for _ in range(epochs) for batch in training.shuffled_batches(BATCH_SIZE, generator)]
        return train(
            model.encoder,
            head,
            (HEAD_LEARNING_RATE, learning_rate),
            cross_entropy(logits_of(model, training), training.labels),
            batches,
            evaluation(logits_of(model, validation), validation),
            evaluation(logits_of(model, test), test),
        )


def evaluation(logits_of: LogitsOf, examples: EncodedExamples) -> Evaluate:
    """The mean cross-entropy and the accuracy over all examples."""

    def evaluate() -> tuple[float, float | None]:
        loss, correct = 0.0, 0
        for indices in examples.sorted_batches(TEST_BATCH_SIZE):
            logits, labels = logits_of(indices), examples.labels[indices]
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == labels).sum())
        return loss / len(examples), correct / len(examples)

    return evaluate


def setting(material: Material) -> dict[str, Any]:
    """What all runs have in common."""
    return {
        "title": "MiniLM on movie reviews, fresh or rotten, split by film",
        "examples": material.usual,
        "validation_examples": material.validation,
        "test_examples": material.test,
        "epochs": "1; with fewer examples as many as see the usual number about once",
        "batch_size": BATCH_SIZE,
        "head_learning_rate": HEAD_LEARNING_RATE,
        "adapted": "query and value of the upper three of six layers",
    }


def main(words: Sequence[str] | None = None) -> None:
    """Makes the runs that are wanted, and the picture."""
    parser = argparse.ArgumentParser(description="MiniLM on movie reviews by all methods.")
    add_arguments(parser)
    parser.add_argument(
        "--experiments", nargs="+", choices=list(EXPERIMENTS), default=["table"], metavar="NAME",
        help=f"of {', '.join(EXPERIMENTS)}; default: table",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    wanted = _wanted(parser, arguments)
    torch.set_num_threads(arguments.threads)
    material = tiny_material() if arguments.tiny else real_material()
    folder = program.results_folder(arguments.results, arguments.tiny)
    results = Results(folder / f"{EXAMPLE}.json", header(EXAMPLE, setting(material)))
    scale = material.usual / USUAL
    tasks = [Task(method, max(16, round(examples * scale)), material.usual) for method, examples in wanted]
    carry_out(results, tasks, arguments.seeds, Study(material))
    print("wrote", results.file, *plots.draw(results.file))


def _wanted(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """The methods, and numbers of examples, of the experiments that are named; a method that is in none is refused."""
    pairs = [pair for name in arguments.experiments for pair in EXPERIMENTS[name]]
    asked = arguments.methods or [method for method, _ in pairs]
    for method in asked:
        if method not in dict(pairs):
            places = [name for name, others in EXPERIMENTS.items() if method in dict(others)]
            parser.error(f"argument --methods: {method} takes --experiments {' or '.join(places)}")
    return [pair for pair in pairs if pair[0] in asked]


if __name__ == "__main__":
    program.run(main)
