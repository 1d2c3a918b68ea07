"""What a 7B model would cost with each update, counted: numbers, bytes and operations, nothing measured.

    python -m benchmarks.scale      prints the tables of docs/scale.md

The model has the linear layers of Llama-2-7B. Times are floors, the bytes or the operations over what the device can
do at best; how far the kernels are above them is counted in docs/gpu-kernels.md.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from surm_kernels.cost_model import break_even_by_traffic
from surm_kernels.structures import (
    BlockCirculant,
    Circulant,
    CirculantProduct,
    Hydra,
    Kronecker,
    LowRank,
    Siva,
    Structure,
    ToeplitzLike,
    ToeplitzProduct,
)

LAYERS, HIDDEN, INNER = 32, 4096, 11008
WEIGHTS = {
    "q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN),
    "gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER),
}  # fmt: skip
ADAPTED = {"q, v": ("q", "v"), "q, k, v, o": ("q", "k", "v", "o"), "all linear layers": tuple(WEIGHTS)}

#: The update of a weight of (outputs, inputs). SiVA's count follows from the weight: half of its directions is much.
METHODS: dict[str, Callable[[int, int], Structure]] = {
    "LoRA r = 8": lambda m, n: LowRank(n, m, rank=8),
    "SURM circulant": lambda m, n: CirculantProduct(n, m),
    "SURM Toeplitz": lambda m, n: ToeplitzProduct(n, m),
    "SURM Kronecker": lambda m, n: Kronecker(n, m),
    "SURM LDR r = 4": lambda m, n: ToeplitzLike(n, m, rank=4),
    "block circulant b = 256": lambda m, n: BlockCirculant(n, m, 256),
    "HyDRA, pool of 4,096": lambda m, n: Hydra(n, m, pool_size=4096),
    "SiVA, k = 2,048": lambda m, n: Siva(n, m, k=2048),
}

WIDE, HALF = 4, 2  # bytes of a float32 and of a bfloat16
ADAMW = 4 * WIDE  # of a trained number: itself, its gradient and two moments
TOKENS = 8192  # in a step
DEVICE = "H200"
BANDWIDTH = 4.3e12  # bytes a second of a copy, read and written
OPERATIONS = 989e12  # a second at most, bfloat16 on tensor cores
MEMORY = 141e9
ADAPTERS = 10_000


def sizes(weights: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Outputs and inputs of every adapted weight of the model."""
    return (WEIGHTS[name] for _ in range(LAYERS) for name in weights)


@functools.cache
def update(method: str, weight: str) -> Structure:
    """The structure of a method's update of one of WEIGHTS."""
    return METHODS[method](*WEIGHTS[weight])


def trained(method: str, weights: Sequence[str]) -> int:
    """How many numbers a method trains in all."""
    return LAYERS * sum(update(method, name).count() for name in weights)


def constants_bytes(method: str, weights: Sequence[str]) -> int:
    """Bytes of what a method keeps beside them, in bfloat16: SiVA's U and V."""
    shapes = (
        update(method, name).parameter_shapes()[constant]
        for name in weights
        for constant in update(method, name).constants
    )
    return HALF * LAYERS * sum(map(math.prod, shapes))


def parameter_rows() -> Iterator[list[str]]:
    """Numbers by what is adapted, and for q and v the bytes of AdamW's state, of the file and of constants."""
    for method in METHODS:
        counts = [trained(method, weights) for weights in ADAPTED.values()]
        fixed = constants_bytes(method, ADAPTED["q, v"])
        yield [
            method, *(f"{count:,}" for count in counts), size(ADAMW * counts[0]), size(WIDE * counts[0]),
            size(fixed) if fixed else "–",
        ]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Floors of a training step of the adapted layers in bfloat16, with a circulant update, in seconds."""

    frozen: float
    merge: float
    pullback: float
    direct: float
    buffers: int

    @classmethod
    def of(cls, weights: Sequence[str], tokens: int) -> "Step":
        """The frozen products with the gradient of x; what merged adds, and what direct adds."""
        values = sum(m * n for m, n in sizes(weights))
        rows = sum(m + n for m, n in sizes(weights))
        moved = sum(4 * n + 3 * m for m, n in sizes(weights))  # product and both gradients, added to what is there
        return cls(
            4 * values * tokens / OPERATIONS,
            2 * HALF * values / BANDWIDTH,
            HALF * rows * tokens / BANDWIDTH,
            HALF * moved * tokens / BANDWIDTH,
            HALF * values,
        )


def step_rows() -> Iterator[list[str]]:
    """A row for each choice of weights."""
    for name, weights in ADAPTED.items():
        step = Step.of(weights, TOKENS)
        merged, direct = step.merge + step.pullback, step.direct
        yield [
            name, milliseconds(step.frozen), milliseconds(step.merge), milliseconds(step.pullback),
            f"{merged / step.frozen:.1%}", milliseconds(direct), f"{direct / step.frozen:.1%}", size(step.buffers),
        ]  # fmt: skip


def break_even_rows() -> Iterator[list[str]]:
    """From how many tokens on merging moves fewer bytes, by the cost model's count."""
    for name in ("q", "gate", "down"):
        m, n = WEIGHTS[name]
        yield [f"{n} → {m}", f"{break_even_by_traffic(Circulant(n, m)):,.0f}"]


def served_bytes(method: str) -> int:
    """Bytes of one adapter of q and v as a bank holds it in bfloat16: of SURM's circulant r1 ∘ r2 alone."""
    if method == "SURM circulant":
        return HALF * LAYERS * sum(Circulant(*reversed(WEIGHTS[name])).count() for name in ("q", "v"))
    return HALF * trained(method, ("q", "v"))


def served_rows() -> Iterator[list[str]]:
    """What adapters of q and v take on a device beside the model, and how many there is room for."""
    model = HALF * sum(m * n for m, n in sizes(tuple(WEIGHTS)))
    for method in ("LoRA r = 8", "SURM circulant", "SiVA, k = 2,048"):
        one, shared = served_bytes(method), constants_bytes(method, ("q", "v"))
        room = (MEMORY - model - shared) / 2 / one  # half of it for keys and values
        layer = one // LAYERS
        yield [
            method, size(one), size(ADAPTERS * layer), size(ADAPTERS * one), size(shared) if shared else "–",
            f"{room:,.0f}",
        ]  # fmt: skip


def reduced_rows() -> Iterator[list[str]]:
    """What DDP sums over processes in every step, gradients in float32."""
    for method in METHODS:
        yield [method, *(size(WIDE * trained(method, weights)) for weights in ADAPTED.values())]


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}" if count / one < 1000 else f"{count / one:,.0f} {unit}"
    return f"{count:.0f} B"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


TABLES: dict[str, tuple[list[str], Callable[[], Iterator[list[str]]]]] = {
    "parameters": (
        ["update", *ADAPTED, "AdamW's state, q and v", "the file, q and v", "constants, q and v"],
        parameter_rows,
    ),
    "step": (
        ["adapted", "frozen products", "merging", "pullback", "merged over frozen", "direct", "direct over frozen",
         "merged weights"],
        step_rows,
    ),
    "break-even": (["weight", "tokens"], break_even_rows),
    "served": (
        ["adapters of q and v", "one", f"{ADAPTERS:,}, of one layer", f"{ADAPTERS:,}, of all layers", "shared by all",
         f"room on an {DEVICE}"],
        served_rows,
    ),
    "reduced": (["update", *ADAPTED], reduced_rows),
}  # fmt: skip


def tables() -> dict[str, str]:
    """Every table in Markdown, by the name of its place in the page."""
    return {name: markdown(headings, rows()) for name, (headings, rows) in TABLES.items()}


def markdown(headings: Sequence[str], rows: Iterator[list[str]]) -> str:
    """A table whose first column is on the left."""
    head, *body = (f"| {' | '.join(line)} |" for line in (headings, *rows))
    return "\n".join([head, "|---|" + "---:|" * (len(headings) - 1), *body])


def main() -> None:
    """Prints all of them."""
    argparse.ArgumentParser(description="The tables of docs/scale.md, counted.").parse_args()
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
