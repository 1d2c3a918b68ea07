"""HyDRA: the generator and the map of the pool, the layout of each kind, zero starts, the pool's gradient, copies."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from surm_kernels.nn import HydraLinear
from surm_kernels.structures import Hydra
from surm_kernels.structures.pool import Constants, PoolMap
from surm_kernels.structures.random_integers import RandomIntegers
from tests import oracle

LINEAR = ("circulant", "toeplitz", "hankel")
RANKS = {"low_rank": 2, "toeplitz_like": 2}
KINDS = (*LINEAR, "vandermonde", "low_rank", "toeplitz_like")
SIZES = ((12, 12), (8, 12), (12, 4), (4, 4))  # (in_features, out_features)

# Golden values: they may never change.
PERMUTATION_OF_SEED_0 = [4, 1, 6, 8, 0, 5, 2, 3, 11, 9, 10, 7]
PERMUTATION_OF_SEED_MINUS_1 = [3, 2, 4, 11, 7, 9, 5, 10, 0, 1, 6, 8]
NORMALS_OF_SEED_0 = [
    1.1917012929916382,
    -0.1724853366613388,
    -1.9360013008117676,
    1.8939168453216553,
    -1.2461934089660645,
    -0.44730961322784424,
]
PLACES_OF_SEED_0 = [4, 2, 5, 3, 0, 1, 1, 4, 2, 5, 3, 0, 2, 4, 0, 3]


def hydra(kind: str, sizes: tuple[int, int] = (12, 12), **options) -> Hydra:
    return Hydra(*sizes, structure=kind, rank=RANKS.get(kind), **options)


def drawn_pool(structure: Hydra, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.3 * torch.randn(structure.parameter_shapes()["pool"], dtype=dtype)


def pool_that_fills(structure: Hydra, slots: Tensor) -> Tensor:
    """The pool of a bijective map for these slots."""
    places = structure._map.slots(torch.arange(structure.pool_size, dtype=torch.float64)).long()
    pool = torch.empty(structure.pool_size, dtype=torch.float64)
    pool[places] = slots.flatten()
    return pool


# The generator


def test_words_are_those_of_splitmix64() -> None:
    random = RandomIntegers(1234567)
    assert [random.word() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_permutations_have_their_golden_values() -> None:
    assert RandomIntegers(0).permutation(12) == PERMUTATION_OF_SEED_0
    assert RandomIntegers(-1).permutation(12) == PERMUTATION_OF_SEED_MINUS_1
    assert RandomIntegers(2**64).permutation(12) == PERMUTATION_OF_SEED_0


def test_every_permutation_is_equally_likely() -> None:
    random = RandomIntegers(5)
    counts = Counter(tuple(random.permutation(4)) for _ in range(24_000))
    assert len(counts) == 24
    assert all(abs(count - 1000) < 150 for count in counts.values())  # 5 standard deviations


def test_normal_values_have_their_golden_values() -> None:
    random = RandomIntegers(0)
    values = torch.tensor([random.normal() for _ in range(6)], dtype=torch.float32)
    assert torch.equal(values, torch.tensor(NORMALS_OF_SEED_0, dtype=torch.float32))


def test_normal_values_are_normal() -> None:
    random = RandomIntegers(3)
    values = torch.tensor([random.normal() for _ in range(20_000)], dtype=torch.float64)
    assert abs(values.mean().item()) < 5 / 20_000**0.5
    assert values.std().item() == pytest.approx(1, abs=0.03)
    assert values.pow(4).mean().item() == pytest.approx(3, abs=0.3)
    assert abs((values[1:] * values[:-1]).mean().item()) < 5 / 20_000**0.5


# The map


@pytest.mark.parametrize("pool", [1, 2, 5, 7, 11, 23, 24])
def test_values_of_the_pool_are_used_equally_often_up_to_one(pool: int) -> None:
    slots = PoolMap.drawn(pool, 24, RandomIntegers(pool)).slots(torch.arange(pool, dtype=torch.float64))
    counts = Counter(slots.tolist())
    assert len(slots) == 24
    assert len(counts) == pool
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_pool_as_large_as_the_slots_is_used_once_each() -> None:
    for kind in KINDS:
        structure = hydra(kind)
        assert structure.parameter_shapes() == {"pool": (structure.slots,)}
        places = structure._map.slots(torch.arange(structure.slots, dtype=torch.float64))
        assert sorted(places.tolist()) == list(range(structure.slots))


def test_the_map_has_its_golden_values_and_follows_its_seed() -> None:
    def places(seed: int) -> list[int]:
        structure = Hydra(8, 8, splits=2, structure="circulant", pool_size=6, seed=seed)
        return structure._map.slots(torch.arange(6, dtype=torch.float64)).long().tolist()

    assert places(0) == PLACES_OF_SEED_0
    assert places(0) != places(1)


def test_slots_are_counted_as_the_paper_counts_them() -> None:
    assert Hydra(768, 768, structure="circulant").count() == 16 * 192
    assert Hydra(768, 768, structure="toeplitz").count() == 16 * (192 + 192)
    assert Hydra(768, 3072, structure="hankel").count() == 16 * (768 + 192)
    assert Hydra(768, 3072, structure="vandermonde").count() == 16 * 768
    assert Hydra(768, 3072, splits=1, structure="low_rank", rank=4).count() == 4 * (768 + 3072)
    assert Hydra(768, 768, structure="toeplitz_like", rank=2).count() == 16 * 2 * 2 * 192
    assert Hydra(768, 768, structure="toeplitz", pool_size=1000, fixed_fraction=0.3).count() == 700


def test_copies_of_constants_are_kept_by_device_but_none_that_a_trace_made() -> None:
    constants = Constants(torch.arange(3))
    meta = torch.device("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(constants.on(meta)[0], FakeTensor)
    (copied,) = constants.on(meta)
    assert type(copied) is Tensor
    assert constants.on(meta)[0] is copied


# The layout


def block_matrix(kind: str, slots: Tensor, rows: int, columns: int) -> Tensor:
    """One block by the definition of its kind, entry by entry."""
    square = max(rows, columns)
    if kind == "circulant":
        return oracle.f_circulant(slots, 1)[:rows, :columns]
    if kind in ("toeplitz", "hankel"):
        column, row = slots[:rows], slots[rows:]
        block = torch.empty(rows, columns, dtype=torch.float64)
        for i in range(rows):
            for j in range(columns):
                if kind == "toeplitz":
                    block[i, j] = column[i - j] if i >= j else row[j - i]
                else:
                    block[i, j] = column[i + j] if i + j < rows else row[i + j - rows + 1]
        return block
    if kind == "vandermonde":
        return oracle.vandermonde(slots, columns)
    if kind == "low_rank":
        left, right = slots[: 2 * rows].view(2, rows), slots[2 * rows :].view(2, columns)
        return left.T @ right
    G, H = slots.view(2, 2, square)
    return oracle.toeplitz_like(G, H)[:rows, :columns]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_slots_are_read_block_by_block_in_the_order_of_the_kind(kind: str, sizes: tuple[int, int]) -> None:
    structure = hydra(kind, sizes)
    columns, rows = (size // 4 for size in sizes)

    def by_hand(pool: Tensor) -> Tensor:
        slots = structure._map.slots(pool).view(4, 4, -1)
        blocks = [[block_matrix(kind, block, rows, columns) for block in row] for row in slots]
        return torch.cat([torch.cat(row, 1) for row in blocks])

    pool, start = drawn_pool(structure), drawn_pool(structure)
    structure.initialise([start], "paper")
    wanted = by_hand(pool) if kind in LINEAR else by_hand(pool) - by_hand(start)
    # The norm before the start is taken off: what is left may be all but nothing.
    oracle.assert_close(structure.dense(pool), wanted, size=by_hand(pool).norm().item())


def test_a_circulant_matrix_is_a_grid_of_toeplitz_blocks() -> None:
    """HyDRA, figure 2."""
    c = torch.randn(12, dtype=torch.float64)
    circulant = oracle.f_circulant(c, 1)
    structure = Hydra(12, 12, splits=4, structure="toeplitz")
    blocks = circulant.view(4, 3, 4, 3).transpose(1, 2)
    slots = torch.cat([blocks[..., :, 0], blocks[..., 0, :]], -1)
    pool = pool_that_fills(structure, slots)
    assert torch.equal(structure.dense(pool), circulant)
    x = torch.randn(7, 12, dtype=torch.float64)
    oracle.assert_close(structure.linear(x, pool), x @ circulant.T)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_values_are_the_end_of_the_pool_and_small(kind: str, share: float) -> None:
    structure, whole = hydra(kind, pool_size=20, fixed_fraction=share), hydra(kind, pool_size=20)
    fixed = round(share * 20)
    assert structure.parameter_shapes() == {"pool": (20 - fixed,)}
    pool = drawn_pool(structure)
    (values,) = structure._drawn.on(torch.device("cpu"))
    values = values[len(values) - fixed :]
    oracle.assert_close(structure.dense(pool), whole.dense(torch.cat([pool, values.double()])))
    assert (values != 0).all()
    assert values.abs().max() < (0.7 if kind == "vandermonde" else 0.1)


# The start


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_starts_from_exactly_zero_unless_a_linear_kind_has_fixed_values(
    kind: str, share: float, dtype: torch.dtype
) -> None:
    structure = hydra(kind, (24, 16), fixed_fraction=share)
    pool = drawn_pool(structure, dtype)
    structure.initialise([pool], "paper")
    pool.requires_grad_()
    x, base = torch.randn(5, 24, dtype=dtype), torch.randn(5, 16, dtype=dtype)
    y = structure.linear(x, pool, base=base, scale=0.7)
    y.sum().backward()
    assert (pool.grad != 0).any()
    is_zero = kind not in LINEAR or share == 0
    assert torch.equal(y, base) == is_zero
    assert (structure.dense(pool) == 0).all() == is_zero


@pytest.mark.parametrize("kind", ["low_rank", "toeplitz_like"])
def test_a_small_move_from_the_start_keeps_its_digits(kind: str) -> None:
    structure = hydra(kind, (24, 16))
    pool = drawn_pool(structure, torch.float32)
    structure.initialise([pool], "paper")
    pool += 1e-4 * 0.02 * torch.randn_like(pool)
    oracle.assert_close(structure.dense(pool), structure.dense(pool.double()))
    x = torch.randn(9, 24)
    oracle.assert_close(structure.linear(x, pool), x.double() @ structure.dense(pool.double()).T)


# The gradient of the pool


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_value_gets_the_sum_of_the_gradients_of_its_slots(kind: str) -> None:
    structure = hydra(kind, (4, 6), splits=2, pool_size=7, fixed_fraction=0.2)
    pool = drawn_pool(structure).requires_grad_()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(structure.linear, (x, pool), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(structure.linear, (x, pool))


def test_sums_of_16_bit_gradients_are_made_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        pool = torch.zeros(1, dtype=dtype, requires_grad=True)
        slots = PoolMap.drawn(1, 2049, RandomIntegers(0)).slots(pool)
        slots.sum().backward()
        assert pool.grad.item() == torch.tensor(2049.0).to(dtype).item()


def test_gradients_are_the_same_bits_for_any_number_of_threads(threads) -> None:
    structure = Hydra(256, 256, structure="toeplitz", pool_size=300)
    x, g = torch.randn(64, 256), torch.randn(64, 256)
    gradients = []
    for count in (1, 2, 4):
        threads(count)
        pool = torch.zeros(300, requires_grad=True)
        structure.linear(x, pool).backward(g)
        gradients.append(pool.grad)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_pools_is_one_pool_at_a_time(kind: str) -> None:
    structure = hydra(kind, (8, 12), pool_size=9, fixed_fraction=0.3)
    pools = torch.stack([drawn_pool(structure) for _ in range(3)])
    x, base = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 12, dtype=torch.float64)
    products = torch.vmap(lambda pool: structure.linear(x, pool, base=base))(pools)
    oracle.assert_close(products, torch.stack([structure.linear(x, pool, base=base) for pool in pools]))

    def loss(pool: Tensor) -> Tensor:
        return structure.linear(x, pool).square().sum()

    gradients = torch.vmap(torch.func.grad(loss))(pools)
    oracle.assert_close(gradients, torch.stack([torch.func.grad(loss)(pool) for pool in pools]))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_layers_give_the_same_products_and_gradients(kind: str) -> None:
    torch._dynamo.reset()
    layer = HydraLinear(12, 8, structure=kind, pool_size=9, fixed_fraction=0.3, rank=RANKS.get(kind))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, g = torch.randn(5, 12), torch.randn(5, 8)
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        y = function(x)
        y.backward(g)
        results.append((y.detach(), layer.pool.grad.clone(), layer.bias.grad.clone()))
    for got, wanted in zip(*reversed(results), strict=True):
        oracle.assert_close(got, wanted.double())


# Layers, copies and pickles


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_comes_back_from_its_arguments_and_its_state_alone(kind: str) -> None:
    options = {"structure": kind, "pool_size": 9, "fixed_fraction": 0.4, "rank": RANKS.get(kind), "seed": 11}
    layer = HydraLinear(8, 12, **options)
    state = layer.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {"pool": (5,), "bias": (12,)}
    other = HydraLinear(8, 12, **options)
    other.load_state_dict(state)
    x = torch.randn(4, 8)
    assert torch.equal(other(x), layer(x))
    options["seed"] = 12
    stranger = HydraLinear(8, 12, **options)
    stranger.load_state_dict(state)
    assert not torch.equal(stranger(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_hold_the_arguments_and_no_tensor(kind: str) -> None:
    structure = hydra(kind, (96, 64), fixed_fraction=0.2, seed=3)
    pool = drawn_pool(structure)
    pickled = pickle.dumps(structure)
    assert len(pickled) < 300
    for other in (copy.deepcopy(structure), pickle.loads(pickled)):
        assert repr(other) == repr(structure)
        assert torch.equal(other.dense(pool), structure.dense(pool))


def test_repr_shows_what_makes_the_structure() -> None:
    assert repr(Hydra(8, 12, structure="low_rank", rank=2, pool_size=9, seed=5)) == (
        "Hydra(in_features=8, out_features=12, splits=4, structure='low_rank', pool_size=9, fixed_fraction=0.0, "
        "rank=2, seed=5)"
    )


REFUSALS = {
    "blocks do not fit": (
        lambda: Hydra(12, 10),
        ValueError,
        "splits must divide in_features and out_features, got 4 for 12 and 10",
    ),
    "kind is unknown": (
        lambda: Hydra(12, 12, structure="cauchy"),
        ValueError,
        "structure must be one of circulant, toeplitz, hankel, vandermonde, low_rank, toeplitz_like, got 'cauchy'",
    ),
    "pool is too large": (
        lambda: Hydra(12, 12, pool_size=97),
        ValueError,
        "pool_size must be at most the number of slots, 96, got 97",
    ),
    "pool is empty": (lambda: Hydra(12, 12, pool_size=0), ValueError, "pool_size must be at least 1, got 0"),
    "share is too large": (
        lambda: Hydra(12, 12, fixed_fraction=0.95),
        ValueError,
        "fixed_fraction must be from 0 to 0.9, got 0.95",
    ),
    "share is negative": (
        lambda: Hydra(12, 12, fixed_fraction=-0.1),
        ValueError,
        "fixed_fraction must be from 0 to 0.9, got -0.1",
    ),
    "share is no number": (
        lambda: Hydra(12, 12, fixed_fraction="half"),
        TypeError,
        "fixed_fraction must be a real number, got str",
    ),
    "nothing is left to train": (
        lambda: Hydra(12, 12, pool_size=2, fixed_fraction=0.9),
        ValueError,
        "fixed_fraction must leave a value to train, got 0.9 of a pool of 2",
    ),
    "rank is missing": (lambda: Hydra(12, 12, structure="low_rank"), TypeError, "rank must be an int, got NoneType"),
    "rank is meaningless": (
        lambda: Hydra(12, 12, structure="hankel", rank=2),
        ValueError,
        "rank must be None for structure hankel, got 2",
    ),
    "seed is no int": (lambda: Hydra(12, 12, seed=0.5), TypeError, "seed must be an int, got float"),
    "x is too wide": (
        lambda: Hydra(8, 4).linear(torch.zeros(2, 12), torch.zeros(48)),
        ValueError,
        "x must have shape (..., 8) to go with pool of shape (48,), got (2, 12)",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_by_name_value_and_wish(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error) as refusal:
        call()
    assert str(refusal.value) == message
