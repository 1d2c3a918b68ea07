"""The cost model: choices that follow from the constants, for every structure, and files that hold or are ignored."""

import dataclasses
import functools
import itertools
import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surm_kernels import _cache, _processor, calibration, cost_constants, cost_model, structures
from surm_kernels._timing import Effort, samples
from surm_kernels.cost_constants import Costs, Place, Table
from surm_kernels.cost_model import break_even, break_even_at, prefers_merged
from surm_kernels.structures import BlockCirculant, Circulant, Hydra, Kronecker, LowRank, Structure

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
TOKENS = (0, 1, 2, 15, 16, 17, 100, 1000, 10_000, 1_000_000)

#: Direct: 1 ms + 3 ns a unit and token; merged: 2 ns a unit of merge work + 0.5 ms + 1 ns a unit and token.
MADE = Costs(0.5e-3, 1e-9, 1.0e-3, 3e-9, 0.5e-3, 1e-9, 2e-9)


class Own(Structure):
    """A user's structure, a multiple of the matrix of ones."""

    initialisations = ("layer",)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"a": (1,)}

    def _initialise(self, parameters, method, generator) -> None:
        parameters[0].fill_(1.0)

    def linear(self, x: Tensor, *parameters: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = scale * parameters[0] * x.sum(-1, keepdim=True).expand(*x.shape[:-1], self.out_features)
        return y if base is None else base + y

    def dense(self, *parameters: Tensor) -> Tensor:
        return parameters[0].expand(self.out_features, self.in_features)


class OwnCirculant(Circulant):
    """A user's structure that is one of ours."""


def table(place: Place, **families: dict[int, Costs]) -> Table:
    """A table with the same constants for both types."""
    return Table(place, {name: dict.fromkeys(cost_constants.MEASURED_TYPES, at) for name, at in families.items()})


def times(costs: Costs, factor: float) -> Costs:
    return Costs(*(factor * number for number in costs))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path: Path):
    """No constants but those in the package and those that a test writes."""
    monkeypatch.setenv("SURM_KERNELS_CACHE", str(tmp_path / "cache"))
    cost_model.forget()
    yield
    cost_model.forget()


@pytest.fixture
def here() -> Place:
    return Place.here(torch.get_num_threads())


class TestChoice:
    def test_the_break_even_is_what_merging_costs_at_first_over_what_it_saves_on_a_token(self) -> None:
        structure = Own(100, 30)  # 3000 units of either work
        assert structure.token_work() == structure.merge_work() == 3000
        # Merged 6 us + 0.5 ms; direct 1.5 ms: merging is cheaper from the start.
        assert break_even_at(MADE, structure) == 0
        # Without calls: 6 us over 3000 * (1 + 3 - 1) ns a token.
        free = MADE._replace(linear_call=0.0, gradients_call=0.0, pullback_call=0.0)
        assert break_even_at(free, structure) == pytest.approx(6e-6 / 9e-6)
        # Without a gradient of x, the pullbacks are the same: 6 us over 3000 ns a token.
        assert break_even_at(free, structure, input_gradient=False) == pytest.approx(2.0)

    def test_a_gradient_of_x_found_to_cost_less_than_nothing_costs_nothing(self) -> None:
        odd = MADE._replace(linear_call=0.0, gradients_call=0.1e-3, gradients=0.5e-9)
        assert break_even_at(odd, Own(100, 30)) == break_even_at(odd, Own(100, 30), input_gradient=False) > 0

    def test_a_product_that_costs_nothing_is_never_merged(self, monkeypatch) -> None:
        free = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-9)
        assert break_even_at(free, Own(100, 30)) == math.inf

    @pytest.mark.parametrize(("input_gradient", "tokens"), [(True, 6000 / 360), (False, 6000 / 160)])
    def test_on_a_gpu_the_break_even_is_a_weight_read_and_written_over_what_direct_moves_a_token(
        self, input_gradient: bool, tokens: float
    ) -> None:
        structure = Own(100, 30)
        for number in (math.floor(tokens), math.ceil(tokens)):
            wanted = {"input_gradient": input_gradient, "device_type": "cuda"}
            found = prefers_merged(structure, number, torch.float32, parameter_gradients=True, **wanted)
            assert found == (number >= tokens)
            assert prefers_merged(structure, number, torch.float32, parameter_gradients=False, **wanted)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", calibration.FAMILIES)
    def test_more_tokens_never_turn_merged_into_direct(self, name: str, dtype: torch.dtype) -> None:
        for size, input_gradient in itertools.product((12, 192, 768, 1024, 4096), (True, False)):
            structure = calibration.FAMILIES[name](size)
            found = [
                prefers_merged(structure, tokens, dtype, parameter_gradients=True, input_gradient=input_gradient)
                for tokens in TOKENS
            ]
            assert found == sorted(found)

    @pytest.mark.parametrize("threads", [1, 2, 3, 64])
    @pytest.mark.parametrize("structure", [Circulant(768, 768), Kronecker(768, 3072), Own(3, 5)], ids=str)
    def test_a_weight_merged_once_for_all_calls_is_always_preferred(self, structure: Structure, threads: int) -> None:
        for tokens, dtype, input_gradient in itertools.product((1, 10_000), DTYPES, (True, False)):
            assert prefers_merged(
                structure,
                tokens,
                dtype,
                parameter_gradients=False,
                input_gradient=input_gradient,
                threads=threads,
            )

    def test_few_tokens_are_direct_and_many_are_merged(self) -> None:
        for structure in (Circulant(3072, 3072), structures.Toeplitz(3072, 3072), LowRank(3072, 3072, 8)):
            wanted = {"parameter_gradients": True, "input_gradient": True}
            assert not prefers_merged(structure, 1, torch.float32, **wanted)
            assert prefers_merged(structure, 1_000_000, torch.float32, **wanted)

    def test_the_same_question_has_the_same_answer(self) -> None:
        answers = {break_even(Circulant(768, 768), torch.float32) for _ in range(3)}
        cost_model.forget()
        assert answers == {break_even(Circulant(768, 768), torch.float32)}


class TestConstants:
    def test_every_public_structure_has_constants_of_its_own_or_is_known_to_take_those_of_structure(self) -> None:
        unmeasured = {"CirculantDiagonal", "Monarch", "Sum"}
        public = [getattr(structures, name) for name in structures.__all__ if name not in unmeasured]
        for table in cost_constants._shipped():
            assert not unmeasured & {family.split()[0] for family in table.families}
            for structure in public:
                assert any(family.split()[0] == structure.__name__ for family in table.families), structure

    def test_families_are_the_nearest_measured_class(self, here: Place) -> None:
        made = table(
            here,
            Structure={100: times(MADE, 1.0)},
            Circulant={100: times(MADE, 2.0)},
            **{"Hydra toeplitz": {100: times(MADE, 3.0)}, "Hydra": {100: times(MADE, 4.0)}},
        )
        expected = {
            Own(100, 100): 1.0,
            Kronecker(100, 100): 1.0,
            Circulant(100, 100): 2.0,
            OwnCirculant(100, 100): 2.0,
            BlockCirculant(100, 100, 10): 2.0,
            Hydra(100, 100, structure="toeplitz"): 3.0,
            Hydra(100, 100, structure="hankel"): 4.0,
        }
        for structure, factor in expected.items():
            assert made.costs(structure, torch.float32) == times(MADE, factor)

    def test_between_sizes_constants_are_linear_in_the_logarithm_and_beyond_them_the_outermost(self, here) -> None:
        made = table(here, Structure={100: MADE, 10_000: times(MADE, 3.0)})
        for in_features, out_features, factor in [
            (100, 100, 1.0),
            (10_000, 10_000, 3.0),
            (1000, 1000, 2.0),
            (4000, 250, 2.0),  # its geometric mean is 1000
            (1, 7, 1.0),
            (20_000, 10_000, 3.0),
        ]:
            assert made.costs(Own(in_features, out_features), torch.float32) == pytest.approx(times(MADE, factor))

    @pytest.mark.parametrize(
        ("dtype", "served"), [(torch.float64, "float32"), (torch.float16, "bfloat16"), (torch.bfloat16, "bfloat16")]
    )
    def test_types_that_are_not_measured_are_served_by_one_of_their_kind(self, dtype, served: str) -> None:
        assert break_even(Circulant(768, 768), dtype) == break_even(Circulant(768, 768), getattr(torch, served))

    @pytest.mark.parametrize(
        ("here", "nearest"),
        [
            (("AMD EPYC", 1, "avx512", "avx512_bf16"), 3),
            (("AMD EPYC", 100, "avx512", "avx512_bf16"), 4),
            (("AMD Ryzen", 2, "avx512", "avx512_bf16"), 3),  # of the same maker
            (("Intel Xeon", 1, "avx512", "avx512"), 0),
            (("Intel Core", 1, "avx2", "avx2"), 2),  # the kernels count first
            (("AMD EPYC", 1, "avx2", "avx512_bf16"), 2),
            (("Intel Xeon", 3, "avx512", "amx_bf16"), 5),  # then matrix products
            (("Intel Xeon", 4, "avx512_bf16", "avx512"), 1),  # one step from avx512
            (("Intel Xeon", 4, "another", "avx512"), 1),
        ],
    )
    def test_the_nearest_of_the_package_is_by_kernels_then_products_then_processor_then_threads(
        self, here: tuple, nearest: int, monkeypatch
    ) -> None:
        places = [
            ("Intel Xeon", 1, "avx512", "avx512"),
            ("Intel Xeon", 2, "avx512", "avx512"),
            ("Intel Xeon", 1, "avx2", "avx2"),
            ("AMD EPYC", 1, "avx512", "avx512_bf16"),
            ("AMD EPYC", 8, "avx512", "avx512_bf16"),
            ("Intel Xeon", 1, "avx512", "amx_bf16"),
        ]
        tables = [table(Place(*place, "0"), Structure={100: MADE}) for place in places]
        monkeypatch.setattr(cost_constants, "_shipped", functools.cache(lambda: tables))
        assert cost_constants.nearest_shipped(Place(*here, "1")) is tables[nearest]


class TestFiles:
    @pytest.fixture
    def file(self, here: Place) -> Path:
        return cost_constants.user_file(here)

    @pytest.fixture
    def own(self, here: Place) -> Table:
        return table(here, Structure={100: MADE, 200: times(MADE, 2.0)})

    def test_what_is_written_is_read_again_and_in_use(self, own: Table, file: Path) -> None:
        cost_constants.write(own, file)
        assert Table.from_json(json.loads(file.read_text())) == own
        assert cost_constants.table_in_use(own.place.threads) == own
        assert break_even(Own(150, 150), torch.float32) == break_even_at(
            own.costs(Own(150, 150), torch.float32), Own(150, 150)
        )

    def test_constants_for_other_threads_are_not_in_use(self, own: Table, file: Path) -> None:
        cost_constants.write(own, file)
        assert cost_constants.table_in_use(own.place.threads + 1) in cost_constants._shipped()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "3",
            "null",
            "{}",
            '{"families": {}}',
        ],
    )
    def test_an_unreadable_file_is_ignored_with_one_warning(self, text: str, file: Path, here: Place) -> None:
        file.parent.mkdir()
        file.write_text(text)
        with pytest.warns(RuntimeWarning, match=r"surm_kernels ignores .*surm-kernels tune") as warned:
            found = cost_constants.table_in_use(here.threads)
            break_even(Circulant(768, 768), torch.float32)
        assert len(warned) == 1
        assert found in cost_constants._shipped()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("processor", "Abacus 3000"),
            ("threads", 12345),
            ("instruction_set", "none"),
            ("products", "none"),
            ("version", "0.0.0"),
        ],
    )
    def test_a_file_from_elsewhere_is_ignored(self, field: str, value, own: Table, file: Path) -> None:
        cost_constants.write(dataclasses.replace(own, place=dataclasses.replace(own.place, **{field: value})), file)
        with pytest.warns(RuntimeWarning, match="its constants are of Place"):
            assert cost_constants.table_in_use(own.place.threads) != own

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda columns: columns.pop(),
            lambda columns: columns.__setitem__(0, -1.0),
            lambda columns: columns.__setitem__(0, math.nan),
            lambda columns: columns.__setitem__(0, "fast"),
        ],
        ids=["short", "negative", "not a number", "text"],
    )
    def test_constants_that_cannot_be_are_ignored(self, spoil, own: Table, file: Path) -> None:
        cost_constants.write(own, file)
        document = json.loads(file.read_text())
        spoil(document["families"]["Structure"]["float32"]["100"])
        file.write_text(json.dumps(document))
        with pytest.warns(RuntimeWarning, match="surm_kernels ignores"):
            assert cost_constants.table_in_use(own.place.threads) != own

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda families: families.pop("Structure"),
            lambda families: families["Structure"].pop("bfloat16"),
            lambda families: families["Structure"].update(float32={}),
            lambda families: families["Structure"].update(float32={"0": list(MADE)}),
        ],
        ids=["no family for the rest", "no bfloat16", "no size", "size 0"],
    )
    def test_a_table_that_leaves_something_out_is_ignored(self, spoil, own: Table, file: Path) -> None:
        cost_constants.write(own, file)
        document = json.loads(file.read_text())
        spoil(document["families"])
        file.write_text(json.dumps(document))
        with pytest.warns(RuntimeWarning, match="surm_kernels ignores"):
            assert cost_constants.table_in_use(own.place.threads) != own

    def test_without_a_file_there_is_no_warning(self, here: Place) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cost_constants.table_in_use(here.threads) in cost_constants._shipped()

    def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(self, own: Table, file: Path, monkeypatch) -> None:
        cost_constants.write(own, file)
        before = file.read_text()

        def fail(self, target):
            raise OSError("the disk is full")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="full"):
            cost_constants.write(table(own.place, Structure={1: MADE}), file)
        assert file.read_text() == before
        assert list(file.parent.iterdir()) == [file]

    def test_while_it_is_written_the_file_is_the_old_one(self, own: Table, file: Path, monkeypatch) -> None:
        cost_constants.write(own, file)
        before, seen = file.read_text(), []
        replace = Path.replace

        def look(self, target):
            seen.append((file.read_text(), self.read_text()))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", look)
        cost_constants.write(table(own.place, Structure={1: MADE}), file)
        assert seen == [(before, file.read_text())]
        assert before != file.read_text()

    def test_the_folder_is_the_users_choice_or_the_systems_custom(self, monkeypatch, here: Place) -> None:
        assert cost_constants.user_file(here).parent == Path(os.environ["SURM_KERNELS_CACHE"])
        monkeypatch.setenv("SURM_KERNELS_CACHE", "")
        monkeypatch.setattr(_cache.sys, "platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
        assert cost_constants.user_file(here).parent == Path("/some/cache/surm_kernels")
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", "/home/user")
        assert cost_constants.user_file(here).parent == Path("/home/user/.cache/surm_kernels")
        monkeypatch.setattr(_cache.sys, "platform", "darwin")
        assert cost_constants.user_file(here).parent == Path("/home/user/Library/Caches/surm_kernels")
        monkeypatch.setattr(_cache.sys, "platform", "win32")
        monkeypatch.setenv("LOCALAPPDATA", "/local")
        assert cost_constants.user_file(here).parent == Path("/local/surm_kernels")

    def test_places_have_files_of_their_own(self, here: Place) -> None:
        places = [
            here,
            dataclasses.replace(here, threads=here.threads + 1),
            dataclasses.replace(here, instruction_set="avx2000"),
            dataclasses.replace(here, products="avx2000"),
            dataclasses.replace(here, version="9.9"),
            dataclasses.replace(here, processor="A/B: (R) 3000"),
        ]
        files = {cost_constants.user_file(place) for place in places}
        assert len(files) == len(places)
        assert all(file.parent == cost_constants.user_file(here).parent for file in files)


class TestCalibration:
    def test_the_fit_of_a_line_is_that_line(self) -> None:
        tokens = (16, 128, 1024)
        assert calibration.fit(tokens, [2e-5 + 3e-8 * t for t in tokens]) == pytest.approx((2e-5, 3e-8))

    def test_neither_a_call_nor_a_token_takes_less_than_nothing(self) -> None:
        call, a_token = calibration.fit((16, 128, 1024), [1e-9, 1e-5, 3e-4])
        assert call == 0
        assert a_token > 0
        call, a_token = calibration.fit((16, 128, 1024), [3e-5, 2e-5, 1e-5])
        assert call > 0
        assert a_token == 0

    @pytest.mark.parametrize("dtype", cost_constants.MEASURED_TYPES)
    @pytest.mark.parametrize("name", calibration.FAMILIES)
    def test_every_family_can_be_measured(self, name: str, dtype: str) -> None:
        effort = Effort(most=1, fewest=1, seconds=0.0, sample_seconds=0.0)
        structure = calibration.FAMILIES[name](24)
        found = calibration.costs(structure, getattr(torch, dtype), effort)
        assert all(math.isfinite(number) and number >= 0 for number in found)
        assert found.merge > 0
        assert max(found.linear_call, found.linear) > 0
        assert next(one for one in cost_constants.family_names(structure) if one in calibration.FAMILIES) == name

    def test_a_call_that_is_short_is_repeated_and_all_are_timed_in_turns(self) -> None:
        log: list[tuple[str, int]] = []

        def clock(call, calls: int) -> float:
            log.append((call, calls))
            return {"a": 1e-4, "b": 2e-2}[call]

        effort = Effort(most=2, fewest=2, seconds=0.0, long=calibration.LONG, sample_seconds=3e-4)
        assert samples(["a", "b"], effort, clock) == [[1e-4] * 2, [2e-2] * 2]
        assert log == [("a", 1), ("a", 1), ("b", 1), ("a", 3), ("b", 1), ("b", 1), ("a", 3)]


def test_the_processor_has_a_name(monkeypatch, tmp_path: Path) -> None:
    assert _processor.name()
    monkeypatch.setattr(_processor, "PROCESSORS", tmp_path / "nothing")
    assert _processor.name()
    assert _processor.flags() == set()
    assert _processor.products() == "baseline"


@pytest.mark.parametrize(
    ("flags", "products"),
    [
        ("sse2", "baseline"),
        ("avx2 fma", "avx2"),
        ("avx2 fma avx512f", "avx512"),
        ("avx2 fma avx512f avx512_bf16", "avx512_bf16"),
        ("avx2 fma avx512f avx512_bf16 amx_tile amx_int8", "avx512_bf16"),
        ("avx2 fma avx512f avx512_bf16 amx_tile amx_int8 amx_bf16", "amx_bf16"),
    ],
)
def test_matrix_products_run_on_the_fastest_there_is(flags: str, products: str, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: Abacus 3000\nflags\t\t: {flags}\n")
    monkeypatch.setattr(_processor, "PROCESSORS", tmp_path / "cpuinfo")
    assert _processor.products() == products
    assert Place.here(1).products == products
