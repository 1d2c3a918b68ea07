"""What an adapter loses as LoRA: `peft.convert_to_lora` is exact at full rank alone, and servers want a low one."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


@torch.no_grad()
def losses(layers: Iterable[Any], adapter_name: str, ranks: Sequence[int]) -> dict[int, float]:
    """By rank, the share of an adapter's updates that the nearest matrices of this rank leave out.

    The share is `|dW - nearest| / |dW|` in the Frobenius norm, over all layers that have the adapter.
    """
    layers = [layer for layer in layers if adapter_name in layer.structures]
    if not layers:
        raise ValueError(f"adapter_name must be one of the model's adapters, got {adapter_name!r}")
    lost, total = dict.fromkeys(ranks, 0.0), 0.0
    for layer in layers:
        energies = torch.linalg.svdvals(layer.get_delta_weight(adapter_name)).double().square()
        total += energies.sum().item()
        for rank in lost:
            lost[rank] += energies[rank:].sum().item()
    return {rank: (left_out / total) ** 0.5 if total else 0.0 for rank, left_out in lost.items()}


def show(shares: dict[int, float]) -> None:
    """Prints a line a rank."""
    print("LoRA rank  lost of the update")
    for rank, share in shares.items():
        print(f"{rank:9}  {100 * share:16.2f} %")
