"""Machine code of NVIDIA's GPUs: how many instructions a loop takes, and how many bytes it moves."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

WIDTHS = {".64": 8, ".128": 16, ".U16": 2, ".S16": 2, ".U8": 1}  # of a load or store that does not have 4 bytes


def cuobjdump() -> str:
    """The disassembler, from the path or from Triton; skips the test where there is none."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = pytest.importorskip("triton", reason="there is no cuobjdump")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("there is no cuobjdump")
    return str(tool)


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    text: str

    @property
    def operation(self) -> str:
        return self.text.split()[0]

    @property
    def target(self) -> int | None:
        """Where it may jump. BRA.DIV is for a warp whose threads are apart, which these never are."""
        found = re.match(r"BRA(?!\.DIV)\S* .*?0x([0-9a-f]+)", self.text)
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """Whether the next instruction does not follow."""
        return not self.predicate and re.match(r"(EXIT|RET|BRA(?!\.DIV)\S* 0x)", self.text) is not None

    @property
    def bytes(self) -> int:
        """What a thread moves through L1 and shared memory."""
        if self.operation.startswith("LDSM"):
            return 4 * int(self.operation[-1]) if self.operation.endswith((".2", ".4")) else 4
        if not re.match(r"(LD|ST)[GS]\b", self.operation):
            return 0
        return next((size for suffix, size in WIDTHS.items() if suffix in self.operation), 4)


@dataclass(frozen=True)
class Loop:
    """All instructions of a loop, and of the loops in it."""

    code: tuple[Instruction, ...]
    inner: tuple[tuple[Instruction, ...], ...]

    def total(self, value, rounds: float) -> float:
        """The sum of value(instruction) over one round, where each loop in it takes so many."""
        return sum(map(value, self.code)) + (rounds - 1) * sum(value(one) for loop in self.inner for one in loop)


def functions(library: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The code of every kernel in an object file, by its name with the arguments of the template."""
    command = [cuobjdump(), "-sass", "-arch", architecture, str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["c++filt"], input=listing, capture_output=True, text=True, check=True).stdout
    found = {}
    for part in names.split("Function : ")[1:]:
        name = re.sub(r"\w+::", "", part.splitlines()[0].removeprefix("void ").partition("(")[0])
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*(.*?)\s*;", part, re.MULTILINE)
        found[name] = [Instruction(int(address, 16), predicate, text) for address, predicate, text in lines]
    return found


def main_loop(code: list[Instruction], operation: str) -> Loop:
    """The largest loop with such an operation, and those in it."""
    found = [body for body in _loops(code) if any(code[i].operation.startswith(operation) for i in body)]
    largest = max(found, key=len)
    inner = [body for body in found if body < largest]
    return Loop(_instructions(code, largest), tuple(_instructions(code, body) for body in inner))


def _instructions(code: list[Instruction], body: set[int]) -> tuple[Instruction, ...]:
    return tuple(code[i] for i in sorted(body))


def _loops(code: list[Instruction]) -> list[set[int]]:
    """The instructions of every natural loop: what leads back to its first one, through which alone it is entered."""
    index = {one.address: i for i, one in enumerate(code)}
    after: list[list[int]] = []
    for i, one in enumerate(code):
        after.append([index[one.target]] if one.target is not None else [])
        if not one.ends and i + 1 < len(code):
            after[i].append(i + 1)
    before: list[list[int]] = [[] for _ in code]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)
    entered = _reached(after, 0, len(code))
    bodies: dict[int, set[int]] = {}
    for last, following in enumerate(after):
        for first in following:
            if first < last and last in entered and last not in _reached(after, 0, first):
                bodies.setdefault(first, {first}).update(_reached(before, last, first) & entered)
    return list(bodies.values())


def _reached(edges: list[list[int]], start: int, wall: int) -> set[int]:
    """What can be reached from the start without passing the wall."""
    seen: set[int] = set()
    waiting = [start] if start != wall else []
    while waiting:
        i = waiting.pop()
        if i not in seen:
            seen.add(i)
            waiting += [j for j in edges[i] if j != wall]
    return seen
