"""SiVA's bases of a model's weights: what is shared, what files keep, and that it is always what siva.bases gives."""

import errno
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("safetensors", reason="decompositions are kept in safetensors files, which come with peft")

from surm_kernels import _cache, _decompositions, siva
from surm_kernels._decompositions import bases_of, decomposing
from surm_kernels.command import info

SIZE = 20  # with which these tests write files
ELSEWHERE = """
import sys, torch
from surm_kernels import _decompositions, siva
decompose, made = siva.decompose, []
siva.decompose = lambda *arguments, **options: made.append(1) or decompose(*arguments, **options)
weight = torch.randn(260, 270, generator=torch.Generator().manual_seed(4))
U, V = _decompositions.bases_of(weight, k=7)
print(len(made), siva.fingerprint(U, V).tolist())
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_decompositions, "LEAST_WORK", SIZE**3)
    _decompositions._counts.clear()
    _decompositions._warned.clear()
    return tmp_path / "cache" / "decompositions"


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The precision of each decomposition that is computed."""
    found, decompose = [], siva.decompose

    def counting(weight: Tensor, *, precision: str = "float64") -> siva.Decomposition:
        found.append(precision)
        return decompose(weight, precision=precision)

    monkeypatch.setattr(siva, "decompose", counting)
    return found


def weight_of(rows: int = SIZE, columns: int = SIZE + 10, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Bit for bit, in type and in layout."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert one.is_contiguous()
        assert torch.equal(one, other)


def elsewhere() -> subprocess.Popen:
    command, root = [sys.executable, "-c", ELSEWHERE], Path(__file__).parent.parent
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=variables, stdout=pipe, stderr=pipe, text=True)


def said_by(process: subprocess.Popen) -> tuple[int, list[float]]:
    """How many decompositions another process computed, and the fingerprint of its bases."""
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and not error, error
    count, _, numbers = out.partition(" ")
    return int(count), json.loads(numbers)


# What comes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"perc": 0.7, "rule": "sum"},
        {"k": 5, "precision": "float32"},
        {"k": SIZE, "basis": "top"},
        {"perc": 0.99, "basis": "random", "seed": 3},
        {"k": 5, "basis": "random", "seed": -1},
    ],
    ids=str,
)
def test_bases_are_those_of_siva_computed_or_read(options: dict, dtype: torch.dtype, made: list[str]) -> None:
    weight = weight_of(dtype=dtype)
    wanted = siva.bases(weight, **options)
    made.clear()
    decomposed = int(options.get("basis") != "random" or "k" not in options)
    assert_same(bases_of(weight, **options), wanted)
    assert len(made) == decomposed
    gc.collect()
    _decompositions._counts.clear()
    assert_same(bases_of(weight.clone(), **options), wanted)
    assert len(made) == decomposed


def test_a_weight_may_be_a_transposed_view_or_a_parameter() -> None:
    weight = weight_of()
    held = bases_of(weight, k=3)
    again = bases_of(torch.nn.Parameter(weight.T.contiguous()).T, k=3)
    assert [t is other for t, other in zip(held, again, strict=True)] == [True, True]


def test_bases_got_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        U, V = bases_of(weight_of(), k=3)
    s = torch.zeros(3, requires_grad=True)
    ((U * s) @ V.T).sum().backward()
    assert s.grad is not None
    assert not U.requires_grad


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": SIZE + 1}, ValueError, f"k must be at most {SIZE}"),
        ({"perc": 0.0}, ValueError, "perc must be above 0"),
        ({"perc": "most"}, TypeError, "perc must be a real number"),
        ({"perc": [0.9]}, TypeError, "perc must be a real number"),
        ({"rule": "half"}, ValueError, "rule must be one of"),
        ({"basis": "middle"}, ValueError, "basis must be one of"),
        ({"precision": "float16"}, ValueError, "precision must be one of"),
        ({"basis": "random", "seed": 0.5}, TypeError, "seed must be an int"),
    ],
    ids=str,
)
def test_options_are_refused_as_siva_refuses_them(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bases_of(weight_of(), **options)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int8), None])
def test_what_is_no_matrix_of_numbers_is_refused(weight) -> None:
    with pytest.raises((TypeError, ValueError), match="weight must"):
        bases_of(weight)


def test_a_tensor_without_values_of_its_own_is_refused() -> None:
    class Wrapped(Tensor):
        pass

    with pytest.raises(TypeError, match="weight must be a tensor that holds its own values, got Wrapped"):
        bases_of(weight_of().as_subclass(Wrapped))


def test_a_weight_that_is_not_finite_is_refused_and_leaves_no_file(folder: Path) -> None:
    weight = weight_of()
    weight[3, 4] = torch.inf
    with pytest.raises(ValueError, match="weight must be finite, got 1 values that are not"):
        bases_of(weight)
    assert not folder.exists()


def test_on_the_meta_device_bases_have_shapes_alone_and_k_must_be_given(folder: Path) -> None:
    weight = weight_of().to("meta")
    U, V = bases_of(weight, k=4)
    assert (U.shape, V.shape, U.device.type, V.dtype) == ((SIZE, 4), (SIZE + 10, 4), "meta", torch.float32)
    assert bases_of(weight, k=4, basis="random")[0].is_meta
    with pytest.raises(ValueError, match="k must be given where the weight has no values to count, got None on meta"):
        bases_of(weight)
    assert not folder.exists()


# What is shared


def test_one_decomposition_serves_all_adapters_on_a_weight(made: list[str]) -> None:
    weight = weight_of()
    adapters = [bases_of(weight), bases_of(weight, k=7), bases_of(weight, perc=0.5), bases_of(weight, basis="top")]
    assert made == ["float64"]
    assert len({U.shape[1] for U, _ in adapters}) == 3


@pytest.mark.parametrize("size", [12, SIZE], ids=["without a file", "with a file"])
def test_equal_weights_have_the_same_tensors_as_long_as_somebody_holds_them(size: int, made: list[str]) -> None:
    weight = weight_of(size)
    held = bases_of(weight)
    again = bases_of(weight.clone())
    counted = bases_of(weight, k=held[0].shape[1], seed=1)  # of the random basis alone
    assert all(t is other is third for t, other, third in zip(held, again, counted, strict=True))
    assert len(made) == 1
    del held, again, counted
    gc.collect()
    assert not _decompositions._left and not _decompositions._right


def test_one_of_the_two_that_is_left_is_no_pair() -> None:
    weight = weight_of()
    U, _ = bases_of(weight, k=3)
    gc.collect()
    assert_same(bases_of(weight, k=3), siva.bases(weight, k=3))
    assert torch.equal(U, siva.bases(weight, k=3)[0])


def test_what_differs_is_not_shared(made: list[str]) -> None:
    weight = weight_of()
    other = weight.clone()
    other[0, 0] += 1
    different = [
        bases_of(weight, k=3),
        bases_of(weight, k=3, basis="top"),
        bases_of(weight, k=3, basis="random"),
        bases_of(weight, k=3, basis="random", seed=1),
        bases_of(weight, k=3, precision="float32"),
        bases_of(weight.double(), k=3),
        bases_of(weight.T.contiguous(), k=3),
        bases_of(weight.view(SIZE + 10, SIZE), k=3),
        bases_of(other, k=3),
    ]
    assert len({id(U) for U, _ in different}) == len(different)
    assert len(made) == 6


def slowly(*arguments, decompose=siva.decompose, **options) -> siva.Decomposition:
    time.sleep(0.15)
    return decompose(*arguments, **options)


def test_threads_that_want_one_weight_decompose_it_once(monkeypatch, made: list[str]) -> None:
    monkeypatch.setattr(siva, "decompose", functools.partial(slowly, decompose=siva.decompose))
    weight, start, found = weight_of(12, 12), threading.Barrier(4), []

    def run() -> None:
        start.wait()
        found.append(bases_of(weight, k=9))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(U) for U, _ in found}) == len(made) == 1


# Files


def test_a_file_takes_the_bytes_of_both_bases_in_the_type_of_the_weight(folder: Path) -> None:
    bases_of(weight_of(dtype=torch.bfloat16))
    (file,) = folder.iterdir()
    numbers = 2 * SIZE * (2 * SIZE + 10) + 8 * SIZE
    assert numbers < file.stat().st_size < numbers + 1000
    assert _cache.occupied(folder) == file.stat().st_size


def test_small_weights_have_no_files(folder: Path) -> None:
    bases_of(weight_of(SIZE - 1, SIZE))
    assert not folder.exists()


def test_two_processes_at_once_and_one_later_have_the_same_bases(folder: Path, made: list[str]) -> None:
    first = [elsewhere(), elsewhere()]
    (count, fingerprint), other = map(said_by, first)
    assert 1 in (count, other[0])
    assert other[1] == fingerprint
    U, V = bases_of(weight_of(260, 270, seed=4), k=7)
    assert made == []
    assert siva.fingerprint(U, V).tolist() == fingerprint
    assert len(list(folder.iterdir())) == 1


def spoil_end(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "spoil",
    [lambda content: b"", lambda content: content[:-100], lambda content: bytes(len(content)), spoil_end],
    ids=["empty", "cut off", "zeros", "one bit"],
)
def test_a_damaged_file_is_replaced(spoil, folder: Path, made: list[str]) -> None:
    weight = weight_of()
    wanted = siva.bases(weight)
    bases_of(weight)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    made.clear()
    gc.collect()
    assert_same(bases_of(weight), wanted)
    assert len(made) == 1
    assert [file.read_bytes() for file in folder.iterdir()] == [whole]


def test_files_of_something_else_are_replaced(folder: Path, made: list[str]) -> None:
    from safetensors.torch import save_file

    weight = weight_of()
    bases_of(weight)
    (file,) = folder.iterdir()
    save_file({"U": torch.zeros(2)}, file)
    gc.collect()
    assert_same(bases_of(weight), siva.bases(weight))
    assert file.stat().st_size > 1000


@pytest.fixture
def room_for_two(monkeypatch) -> None:
    monkeypatch.setenv("SURM_KERNELS_CACHE_GIB", str(2.5 * 4 * SIZE * (2 * SIZE + 10) / 2**30))


def age(file: Path, days: float) -> None:
    then = file.stat().st_mtime - days * 24 * 60 * 60
    os.utime(file, (then, then))


def test_the_least_recently_used_file_makes_room(folder: Path, room_for_two, made: list[str]) -> None:
    files = []
    for seed in range(2):
        bases_of(weight_of(seed=seed))
        files += set(folder.iterdir()) - set(files)
    age(files[0], 3)
    age(files[1], 2)
    gc.collect()
    bases_of(weight_of(seed=0))  # is read, and so no longer the oldest
    assert len(made) == 2
    bases_of(weight_of(seed=2))
    left = set(folder.iterdir())
    assert files[0] in left and files[1] not in left and len(left) == 2
    assert _cache.occupied(folder) <= _cache.bound()


def test_what_is_in_use_makes_no_room(folder: Path, room_for_two, made: list[str]) -> None:
    for _ in range(2):
        for seed in range(4):
            bases_of(weight_of(seed=seed), k=3)
            gc.collect()
    assert len(list(folder.iterdir())) == 2
    assert len(made) == 4 + 2


def test_what_a_process_left_unfinished_goes_as_well(folder: Path, room_for_two) -> None:
    folder.mkdir(parents=True)
    unfinished = folder / "someone.safetensors.123"
    unfinished.write_bytes(bytes(2 * 4 * SIZE * (2 * SIZE + 10)))
    age(unfinished, 2)
    bases_of(weight_of())
    assert unfinished not in set(folder.iterdir())
    assert len(list(folder.iterdir())) == 1


def test_a_bound_of_zero_turns_files_off(folder: Path, monkeypatch, made: list[str]) -> None:
    bases_of(weight_of())
    gc.collect()
    monkeypatch.setenv("SURM_KERNELS_CACHE_GIB", "0")
    bases_of(weight_of(), k=3)
    bases_of(weight_of(seed=1))
    assert len(made) == 3
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan"])
def test_a_bound_that_is_none_is_refused(value: str, monkeypatch) -> None:
    monkeypatch.setenv("SURM_KERNELS_CACHE_GIB", value)
    with pytest.raises(ValueError, match=f"SURM_KERNELS_CACHE_GIB must be a number from 0 on, got '{value}'"):
        bases_of(weight_of())


def block(folder: Path, monkeypatch) -> None:
    folder.parent.write_text("a file in its place")


def fill(folder: Path, monkeypatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", self)

    monkeypatch.setattr(Path, "replace", fail)


@pytest.mark.parametrize("spoil", [block, fill])
def test_a_folder_that_cannot_be_written_is_done_without_after_one_warning(spoil, folder: Path, monkeypatch) -> None:
    spoil(folder, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            assert_same(bases_of(weight_of(seed=seed), k=3), siva.bases(weight_of(seed=seed), k=3))
    assert [w.category for w in caught] == [RuntimeWarning]
    assert str(caught[0].message).startswith(f"surm_kernels cannot keep SiVA's decompositions in {folder}")
    assert not folder.is_dir() or not list(folder.iterdir())


def test_a_folder_that_can_only_be_read_serves(folder: Path, monkeypatch, made: list[str]) -> None:
    bases_of(weight_of())
    gc.collect()

    def refuse(*arguments: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(os, "utime", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bases_of(weight_of(), k=3)
    assert len(made) == 1


def test_info_says_how_much_there_is(folder: Path, capsys) -> None:
    folder.mkdir(parents=True)
    (folder / "sparse").touch()
    os.truncate(folder / "sparse", 3 * 2**29)
    info.run(None)
    assert f"1.50 GiB in {folder}" in " ".join(capsys.readouterr().out.split())


# The bar


def test_a_bar_shows_itself_where_it_takes_longer_than_a_second(monkeypatch, capsys) -> None:
    monkeypatch.setattr(siva, "decompose", slowly)
    for delay, shown in ((_decompositions.DELAY, False), (0.1, True)):
        monkeypatch.setattr(_decompositions, "DELAY", delay)
        with decomposing(3):
            for seed in range(3):
                bases_of(weight_of(8, 9, seed))
        bases_of(weight_of(8, 9))
        assert ("2/3" in capsys.readouterr().err) is shown
