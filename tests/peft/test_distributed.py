"""Two processes train as one does: the same gradients, and whole adapter files, however the model is spread."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.peft.models import METHODS, config_of, model_of

PROCESSES = 2
TOKENS = 4  # of a process

#: A model as it is trained, and how its tensors are put together again.
Spread = tuple[nn.Module, Callable[[], dict[str, Tensor]]]


def _alone(model: PeftModel) -> Spread:
    return model, model.state_dict


def _ddp(model: PeftModel) -> Spread:
    return DistributedDataParallel(model), model.state_dict


def _accelerate(model: PeftModel) -> Spread:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    assert isinstance(prepared, DistributedDataParallel)
    return prepared, lambda: accelerator.unwrap_model(prepared).state_dict()


def _fsdp2(model: PeftModel) -> Spread:
    for layer in (model.base_model.model.first, model.base_model.model.second, model):
        fully_shard(layer)
    options = StateDictOptions(full_state_dict=True)
    return model, lambda: get_model_state_dict(model, options=options)


def _fsdp1(model: PeftModel) -> Spread:
    spread = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))

    def whole() -> dict[str, Tensor]:
        options = FullStateDictConfig(rank0_only=True)
        with FullyShardedDataParallel.state_dict_type(spread, StateDictType.FULL_STATE_DICT, options):
            return spread.state_dict()

    return spread, whole


WAYS = {"ddp": _ddp, "accelerate": _accelerate, "fsdp2": _fsdp2, "fsdp1": _fsdp1}


def train(method: str, spread: Callable[[PeftModel], Spread], x: Tensor, folder: Path) -> None:
    """Two steps of gradient descent, which moves the numbers by their gradients, and an adapter's file."""
    torch.manual_seed(0)
    model = get_peft_model(model_of("mlp"), config_of(method, "mlp", init_weights=False))
    trained, whole = spread(model)
    optimiser = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], 1.0)
    for _ in range(2):
        optimiser.zero_grad()
        (trained(x) - 1).square().mean().backward()
        optimiser.step()
    state = whole()
    if state:  # that of the first process alone is whole
        model.save_pretrained(folder, state_dict=state, is_main_process=_rank() == 0)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _process(rank: int, way: str, x: Tensor, folder: Path) -> None:
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=PROCESSES)
    for method in METHODS:
        train(method, WAYS[way], x.chunk(PROCESSES)[rank], folder / method)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, tmp_path: Path) -> None:
    x = torch.randn(PROCESSES * TOKENS, 12, generator=torch.Generator().manual_seed(1))
    torch.multiprocessing.spawn(_process, (way, x, tmp_path), nprocs=PROCESSES)
    for method in METHODS:
        train(method, _alone, x, tmp_path / "alone" / method)
        found, wanted = (load_file(tmp_path / p / method / "adapter_model.safetensors") for p in ("", "alone"))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)
