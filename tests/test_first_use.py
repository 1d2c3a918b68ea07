"""Measuring at first use: only where it is allowed and wanted, once, within its time, and never to a user's harm."""

import functools
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from surm_kernels import _processor, calibration, cost_constants, cost_model, first_use
from surm_kernels._timing import Effort
from surm_kernels.cost_constants import Costs, Place
from surm_kernels.nn import AdaptedLinear
from surm_kernels.structures import Circulant, Kronecker, LowRank, Structure

MADE = Costs(1e-6, 1e-12, 1e-6, 1e-12, 1e-6, 1e-12, 1e-12)
FOUND = {dtype: {100: MADE} for dtype in cost_constants.MEASURED_TYPES}


@pytest.fixture(autouse=True)
def unknown_processor(monkeypatch, tmp_path: Path) -> Iterator[None]:
    """A processor without constants that allows first use, and a cache of the test's own."""
    processors = tmp_path / "cpuinfo"
    processors.write_text("model name\t: Abacus 3000\nflags\t\t: amx_tile amx_bf16 avx512f\n")
    monkeypatch.setattr(_processor, "PROCESSORS", processors)
    monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SURM_KERNELS_TUNE", "first-use")
    start_anew(monkeypatch)
    yield
    cost_model.forget()


def start_anew(monkeypatch) -> None:
    """As in a process that has measured nothing yet."""
    monkeypatch.setattr(first_use, "_offered", set())
    monkeypatch.setattr(first_use, "_taken", 0.0)
    cost_model.forget()


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The families that are measured, in no time."""
    families: list[str] = []

    def measure(seconds: float, family: str, size: float) -> calibration.Families:
        families.append(family)
        return FOUND

    monkeypatch.setattr(calibration, "measure_within", measure)
    return families


def layer(structure: Structure, **options) -> AdaptedLinear:
    return AdaptedLinear(nn.Linear(structure.in_features, structure.out_features, **options), structure)


def file() -> Path:
    return cost_constants.first_use_file(Place.here(torch.get_num_threads()))


def costs(structure: Structure) -> Costs:
    return cost_constants.table_in_use(torch.get_num_threads()).costs(structure, torch.float32)


class TestOffer:
    def test_the_first_layer_of_a_family_has_it_measured_and_the_rest_are_those_of_the_package(self, measured) -> None:
        before = costs(Kronecker(100, 100))
        for _ in range(2):
            layer(Circulant(100, 100))
        assert measured == ["Circulant"]
        assert costs(Circulant(100, 100)) == MADE
        assert costs(Kronecker(100, 100)) == before
        layer(Kronecker(100, 100))
        assert measured == ["Circulant", "Kronecker"]
        assert costs(Kronecker(100, 100)) == costs(Circulant(100, 100)) == MADE
        assert [one.name for one in file().parent.iterdir()] == [file().name]

    def test_a_later_process_takes_what_was_found_whether_or_not_it_may_measure(self, measured, monkeypatch) -> None:
        layer(Circulant(100, 100))
        for allowed in ("first-use", "never"):
            monkeypatch.setenv("SURM_KERNELS_TUNE", allowed)
            start_anew(monkeypatch)
            layer(Circulant(100, 100))
            assert costs(Circulant(100, 100)) == MADE
        assert measured == ["Circulant"]

    @pytest.mark.parametrize("allowed", ["", "never"])
    def test_nothing_is_measured_unless_it_is_allowed(self, allowed: str, measured, monkeypatch) -> None:
        monkeypatch.setenv("SURM_KERNELS_TUNE", allowed)
        layer(Circulant(100, 100))
        assert measured == []

    def test_nothing_is_measured_where_the_package_knows_the_processor_with_other_threads(
        self, measured, monkeypatch
    ) -> None:
        place = Place.here(torch.get_num_threads() + 5)
        known = cost_constants.Table(place, {"Structure": FOUND})
        monkeypatch.setattr(cost_constants, "_shipped", functools.cache(lambda: (known,)))
        layer(Circulant(100, 100))
        assert measured == []

    def test_nothing_is_measured_where_the_user_has_tuned(self, measured) -> None:
        place = Place.here(torch.get_num_threads())
        cost_constants.write(cost_constants.Table(place, {"Structure": FOUND}), cost_constants.user_file(place))
        layer(Circulant(100, 100))
        assert measured == []

    def test_nothing_is_measured_for_layers_without_values_nor_inside_torch_compile(self, measured) -> None:
        layer(Circulant(100, 100), device="meta")
        with torch.device("meta"):
            layer(Circulant(100, 100))
        with FakeTensorMode():
            layer(Circulant(100, 100))

        parameters = [torch.randn(100)]

        def offering(x):
            first_use.offer(Circulant(100, 100), parameters)
            return x + 1

        torch.compile(offering, backend="eager")(torch.zeros(3))
        assert measured == []

    def test_a_failure_is_a_warning(self, monkeypatch) -> None:
        def fail(*arguments):
            raise RuntimeError("out of order")

        monkeypatch.setattr(calibration, "measure_within", fail)
        with pytest.warns(RuntimeWarning, match="could not measure at first use: out of order"):
            layer(Circulant(100, 100))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(Circulant(100, 100))
        assert not any(file().parent.iterdir())

    @pytest.mark.parametrize(
        ("name", "value"), [("SURM_KERNELS_TUNE", "perhaps"), ("SURM_KERNELS_CACHE", "/proc/nowhere")]
    )
    def test_what_the_user_has_set_wrongly_is_a_warning(self, name: str, value: str, measured, monkeypatch) -> None:
        monkeypatch.setenv(name, value)
        with pytest.warns(RuntimeWarning, match="could not measure at first use"):
            layer(Circulant(100, 100))

    def test_what_does_not_end_in_time_is_left_to_the_next_process(self, monkeypatch) -> None:
        monkeypatch.setattr(
            calibration, "measure_within", lambda *arguments: {dtype: {} for dtype in cost_constants.MEASURED_TYPES}
        )
        before = costs(Circulant(100, 100))
        layer(Circulant(100, 100))
        assert costs(Circulant(100, 100)) == before
        assert not file().exists()

    def test_the_time_of_a_process_is_bounded_over_all_families(self, monkeypatch) -> None:
        allowances, now = [], [0.0]

        def measure(seconds: float, family: str, size: float) -> calibration.Families:
            allowances.append(seconds)
            now[0] += 1.0
            return FOUND

        monkeypatch.setattr(first_use.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(calibration, "measure_within", measure)
        for structure in (Circulant(100, 100), Kronecker(100, 100), LowRank(100, 100, 8)):
            layer(structure)
        assert allowances == [first_use.SECONDS, first_use.SECONDS - 1.0]  # for the third there is nothing left

    def test_random_numbers_and_modes_of_the_user_are_left_alone(self, monkeypatch) -> None:
        monkeypatch.setattr(calibration, "SIZES", (12,))
        monkeypatch.setattr(calibration, "TOKENS", (2, 8))
        state = torch.get_rng_state()
        for around in (torch.inference_mode(), torch.autocast("cpu"), torch.no_grad()):
            with around:
                first_use.offer(Circulant(12, 12), [torch.empty(12)])
            assert torch.equal(torch.get_rng_state(), state)
            assert list(cost_constants.read(file(), Place.here(torch.get_num_threads()), whole=False).families) == [
                "Circulant"
            ]
            file().unlink()
            start_anew(monkeypatch)


def _process(counts) -> None:
    """A process that makes its first layer, and what constants it ends with."""

    def measure(seconds: float, family: str, size: float) -> calibration.Families:
        time.sleep(0.2)
        counts.append(family)
        return FOUND

    calibration.measure_within = measure
    layer(Circulant(100, 100))
    counts.append(costs(Circulant(100, 100)) == MADE)


class TestProcesses:
    def test_one_measures_and_the_others_wait_for_it(self, monkeypatch) -> None:
        monkeypatch.setattr(first_use, "SECONDS", 20.0)
        context = multiprocessing.get_context("fork")
        with multiprocessing.Manager() as manager:
            counts = manager.list()
            processes = [context.Process(target=_process, args=(counts,)) for _ in range(3)]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            assert sorted(map(str, counts)) == ["Circulant", "True", "True", "True"]
        assert [one.name for one in file().parent.iterdir()] == [file().name]

    def test_who_waits_too_long_does_without(self, measured, monkeypatch) -> None:
        monkeypatch.setattr(first_use, "SECONDS", 0.05)
        file().parent.mkdir()
        lock = file().with_suffix(".lock")
        lock.touch()
        layer(Circulant(100, 100))
        assert measured == []
        assert lock.exists()

    def test_the_lock_of_a_process_that_died_is_taken_over(self, measured, monkeypatch) -> None:
        monkeypatch.setattr(first_use, "LOCK_SECONDS", -1.0)
        file().parent.mkdir()
        file().with_suffix(".lock").touch()
        layer(Circulant(100, 100))
        assert measured == ["Circulant"]
        assert not file().with_suffix(".lock").exists()


class TestWithin:
    """`calibration.measure_within` by a clock that every look moves on."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch) -> None:
        monkeypatch.setattr(calibration, "SIZES", (12, 24, 48))
        monkeypatch.setattr(calibration, "TOKENS", (2, 4, 8))
        # As many looks at the clock whatever the time of this machine.
        monkeypatch.setattr(calibration, "HURRIED", Effort(most=2, fewest=2, seconds=0.0))

    @staticmethod
    def clock(step: float):
        now = [0.0]

        def look() -> float:
            now[0] += step
            return now[0]

        return look, now

    def test_all_sizes_where_there_is_time(self) -> None:
        found = calibration.measure_within(1e9, "Circulant", 24, self.clock(1.0)[0])
        assert {dtype: list(at) for dtype, at in found.items()} == {"float32": [12, 24, 48], "bfloat16": [12, 24, 48]}

    def test_the_nearest_size_first_and_none_for_one_type_alone(self) -> None:
        most = self.clock(1.0)
        calibration.measure_within(1e9, "Circulant", 24, most[0])
        kept = set()
        for share in (0.05, 0.2, 0.5, 0.9):
            look, now = self.clock(1.0)
            seconds = share * most[1][0]
            found = calibration.measure_within(seconds, "Circulant", 24, look)
            assert now[0] <= seconds + 2
            assert list(found["float32"]) == list(found["bfloat16"])
            kept.add(tuple(found["float32"]))
        assert () in kept
        assert all(not sizes or 24 in sizes for sizes in kept)
        assert len(kept) > 2

    def test_without_time_nothing(self) -> None:
        assert calibration.measure_within(0.0, "Circulant", 24) == {"float32": {}, "bfloat16": {}}
