"""The weight of a base layer that SiVA decomposes: whole, floating, outputs by inputs; or a refusal."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft", reason="PEFT is not installed")

from accelerate import cpu_offload, disk_offload
from transformers.pytorch_utils import Conv1D

from surm_kernels import siva
from surm_kernels.peft import _base_weight
from surm_kernels.peft._base_weight import gathered_weight
from tests import oracle


def test_a_linear_layer_gives_its_own_weight() -> None:
    layer = nn.Linear(6, 4, dtype=torch.bfloat16)
    weight = gathered_weight(layer)
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert torch.equal(weight, layer.weight)
    assert not weight.requires_grad


def test_conv1d_gives_outputs_by_inputs() -> None:
    layer, x = Conv1D(4, 6), torch.randn(3, 6)
    weight = gathered_weight(layer)
    assert weight.shape == (4, 6)
    oracle.assert_close(nn.functional.linear(x, weight, layer.bias), layer(x))


def test_a_parametrised_layer_gives_the_weight_it_computes_with() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    assert torch.equal(gathered_weight(layer), layer.weight)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Conv1D(4, 6)], ids=["Linear", "Conv1D"])
def test_what_is_on_the_meta_device_stays_there(make) -> None:
    with torch.device("meta"):
        weight = gathered_weight(make().to(torch.float16))
    assert (weight.shape, weight.dtype, weight.device.type) == ((4, 6), torch.float16, "meta")


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_offloaded_weight_is_loaded_and_let_go(place: str, tmp_path) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    wanted = model[0].weight.detach().clone()
    if place == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert model[0].weight.is_meta
    assert torch.equal(gathered_weight(model[0]), wanted)
    assert model[0].weight.is_meta


# Shards


@pytest.fixture
def group(tmp_path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Conv1D(4, 6)], ids=["Linear", "Conv1D"])
def test_a_weight_that_fsdp2_shards_is_gathered(make, group) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    layer = make()
    wanted = gathered_weight(layer).clone()
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    assert isinstance(layer.weight, DTensor)
    weight = gathered_weight(layer)
    assert type(weight) is Tensor
    assert torch.equal(weight, wanted)
    assert type(siva.bases(weight, k=2)[0]) is Tensor
    meta = gathered_weight(layer.to("meta"))
    assert (type(meta), meta.shape, meta.is_meta) == (Tensor, (4, 6), True)


def test_a_weight_that_zero3_shards_is_gathered_without_being_changed(monkeypatch) -> None:
    """DeepSpeed is played by a context that fills an empty parameter and empties it again."""
    layer = nn.Linear(6, 4)
    whole, seen = layer.weight.detach().clone(), []
    layer.weight.ds_id, layer.weight.data = 0, torch.empty(0)

    @contextmanager
    def gathering(parameter: nn.Parameter, modifier_rank: int | None) -> Iterator[None]:
        seen.append(modifier_rank)
        parameter.data = whole.clone()
        yield
        parameter.data.fill_(torch.nan)
        parameter.data = torch.empty(0)

    monkeypatch.setattr(_base_weight, "gather_params_ctx", gathering)
    assert torch.equal(gathered_weight(layer), whole)
    assert seen == [None]
    assert layer.weight.numel() == 0


# Codes


class Packed(nn.Module):
    """A layer without a weight, as GPTQ's are."""

    qweight = torch.zeros(3, 4, dtype=torch.int32)


class Codes(nn.Linear):
    """A layer whose codes have the shape of its weight, as bitsandbytes' 8 bits do."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(6, 4)
        self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=False)


class Quantised(Tensor):
    """A tensor that calls itself floating and is none, as torchao's do."""


def subclassed() -> nn.Module:
    layer = nn.Linear(6, 4)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            Packed,
            "the weight of Packed must be a matrix of floating numbers, or one that PEFT can dequantise, got none",
        ),
        (lambda: Codes(torch.int8), "the weight of Codes must be .*, got Parameter of torch.int8"),
        (lambda: Codes(torch.float8_e4m3fn), "the weight of Codes must be .*, got Parameter of torch.float8_e4m3fn"),
        (subclassed, "the weight of Linear must be .*, got .* of torch.float32"),
        (lambda: nn.LazyLinear(4), "the weight of LazyLinear must be .*, got UninitializedParameter of torch.float32"),
        (lambda: nn.LayerNorm(4), "the weight of LayerNorm must be .*, got Parameter of torch.float32"),
        (lambda: nn.Conv2d(3, 4, 2), "the weight of Conv2d must be .*, got Parameter of torch.float32"),
        (nn.ReLU, "the weight of ReLU must be .*, got none"),
    ],
    ids=["Packed", "int8", "float8", "subclass", "lazy", "LayerNorm", "Conv2d", "ReLU"],
)
def test_what_is_no_matrix_of_numbers_is_refused(make, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gathered_weight(make())


@pytest.mark.parametrize(
    ("name", "options", "precision"),
    [("Linear8bitLt", {"has_fp16_weights": False}, 0.01), ("Linear4bit", {"quant_type": "nf4"}, 0.15)],
)
def test_bitsandbytes_codes_are_dequantised_before_and_after_a_call(name: str, options: dict, precision: float) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    plain = nn.Linear(64, 96)
    layer = getattr(bitsandbytes.nn, name)(64, 96, **options)
    layer.load_state_dict(plain.state_dict())
    with pytest.raises(TypeError, match=f"the weight of {name} must be"):  # it takes codes when it moves
        gathered_weight(layer)
    layer = layer.to("cpu")
    codes = layer.weight.data.clone()
    weights = [gathered_weight(layer)]
    layer(torch.randn(2, 64))
    weights.append(gathered_weight(layer))
    assert weights[0].is_cpu and torch.equal(*weights)
    assert (weights[0] - plain.weight).norm() < precision * plain.weight.norm()
    assert torch.equal(layer.weight.data, codes)


def test_torchao_codes_are_dequantised() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    plain = nn.Linear(64, 96)
    layer = nn.Linear(64, 96)
    layer.load_state_dict(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    weight = gathered_weight(layer)
    assert type(weight) is Tensor
    assert (weight - plain.weight).norm() < 0.01 * plain.weight.norm()
