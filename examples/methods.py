"""The methods that the examples compare: what each makes of a model, and about which learning rate it wants.

Where one may choose how many numbers a method trains, it trains as many as SURM's circulant update, 768 for a weight of
384 x 384, or as near to that as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from examples.bottleneck import add_bottlenecks

COUNT = 768  # numbers for a weight of 384 x 384
LAYERS = ("query", "value", "q_proj", "v_proj")  # as the models here call them; PEFT takes those that are there

Adapt = Callable[[Any], nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to adapt a model.

    Attributes:
        title: for tables and pictures.
        adapt: makes of a model one of which it trains what requires gradients.
        learning_rate: the middle one of those that are tried; 0 where nothing is trained in the model.
        follows: of which method the learning rate is taken instead, for variants of it.
    """

    title: str
    adapt: Adapt
    learning_rate: float = 0.0
    follows: str | None = None


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def _by_peft(configuration: str, **options: Any) -> Adapt:
    """get_peft_model with a configuration of PEFT's or ours, named so that nothing is imported before it is used."""

    def adapt(model: Any) -> nn.Module:
        import peft

        import surm_kernels.peft as ours

        make = getattr(ours if hasattr(ours, configuration) else peft, configuration)
        return peft.get_peft_model(model, make(**({"target_modules": targets(model)} | options)))

    return adapt


def targets(model: nn.Module) -> list[str]:
    """The names of the query and value projections."""
    names = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    return [name for name in LAYERS if name in names]


def _lora(rank: int) -> Adapt:
    return _by_peft("LoraConfig", r=rank, lora_alpha=2 * rank, lora_dropout=0.0)


def _surm(structure: str, **options: Any) -> Adapt:
    return _by_peft("SurmConfig", structure=structure, **options)


def _hydra(structure: str, pool_size: int | None, **options: Any) -> Adapt:
    return _by_peft("HydraConfig", structure=structure, pool_size=pool_size, **options)


def _siva(perc: float, basis: str = "bottom") -> Adapt:
    return _by_peft("SivaConfig", perc=perc, basis=basis)


METHODS = {
    "probe": Method("linear probe", _frozen),
    "lora_r8": Method("LoRA r = 8", _lora(8), 2e-3),
    "lora_r1": Method("LoRA r = 1", _lora(1), 2e-3),
    "c3a": Method("C3A, block 192", _by_peft("C3AConfig", block_size=192, init_weights=True), 4e-1),
    "lokr": Method("LoKr", _by_peft("LoKrConfig", r=16, alpha=16), 4e-3),
    "fourierft": Method("FourierFT", _by_peft("FourierFTConfig", n_frequency=COUNT), 1e-1),
    "vera": Method("VeRA r = 384", _by_peft("VeraConfig", r=384), 2e-2),
    "circulant": Method("SURM circulant", _surm("circulant"), 1e-2),
    "toeplitz": Method("SURM Toeplitz", _surm("toeplitz"), 2e-3),
    "kronecker": Method("SURM Kronecker", _surm("kronecker"), 4e-3),
    "ldr_r4": Method("SURM LDR r = 4", _surm("ldr", rank=4), 1e-3),
    "hydra_toeplitz_3072": Method("HyDRA Toeplitz, pool 3072", _hydra("toeplitz", 3072), 1e-3),
    "hydra_toeplitz_768": Method("HyDRA Toeplitz, pool 768", _hydra("toeplitz", 768), 1e-3),
    "hydra_toeplitz_192": Method("HyDRA Toeplitz, pool 192", _hydra("toeplitz", 192), 1e-3),
    "hydra_hankel_768": Method("HyDRA Hankel, pool 768", _hydra("hankel", 768), 1e-3),
    "hydra_circulant_768": Method("HyDRA circulant, pool 768", _hydra("circulant", 768), 1e-3),
    "hydra_vandermonde_768": Method("HyDRA Vandermonde, pool 768", _hydra("vandermonde", 768), 1e-2),
    "siva_950_bottom": Method("SiVA 0.95, bottom", _siva(0.95), 4e-2),
    "siva_950_top": Method("SiVA 0.95, top", _siva(0.95, "top"), 4e-2),
    "siva_950_random": Method("SiVA 0.95, random", _siva(0.95, "random"), 4e-2),
    "siva_997_bottom": Method("SiVA 0.997, bottom", _siva(0.997), 4e-2),
    "siva_997_top": Method("SiVA 0.997, top", _siva(0.997, "top"), follows="siva_997_bottom"),
    "siva_997_random": Method("SiVA 0.997, random", _siva(0.997, "random"), follows="siva_997_bottom"),
    "circulant_diagonal": Method("CirculantDiagonal", _surm("circulant_diagonal"), 1e-3),
    # C3A's matrices with the right gradient, no factor of 1 / 384, so that rates are as much smaller
    "block_circulant": Method("SURM block circulant, block 192", _surm("block_circulant", block_size=192), 1e-3),
    # more and fewer numbers
    "lora_r2": Method("LoRA r = 2", _lora(2), follows="lora_r8"),
    "lora_r4": Method("LoRA r = 4", _lora(4), follows="lora_r8"),
    "ldr_r1": Method("SURM LDR r = 1", _surm("ldr", rank=1), follows="ldr_r4"),
    "ldr_r2": Method("SURM LDR r = 2", _surm("ldr", rank=2), follows="ldr_r4"),
    # as many numbers in other grids, and fixed shares of them
    "hydra_splits_1": Method("HyDRA, 1 × 1 blocks", _hydra("toeplitz", 768, splits=1), follows="hydra_toeplitz_768"),
    "hydra_splits_2": Method("HyDRA, 2 × 2 blocks", _hydra("toeplitz", 768, splits=2), follows="hydra_toeplitz_768"),
    "hydra_splits_8": Method("HyDRA, 8 × 8 blocks", _hydra("toeplitz", 768, splits=8), follows="hydra_toeplitz_768"),
    **{
        f"hydra_fixed_{share}": Method(
            f"HyDRA, {share} % fixed",
            _hydra("toeplitz", 3072, fixed_fraction=share / 100),
            follows="hydra_toeplitz_3072",
        )
        for share in (30, 60, 90)
    },
    # other starts of the circulant update, zero x N(0, 0.02^2) in the paper
    "circulant_repo": Method("circulant, zero × N(0, 1)", _surm("circulant", init="repo"), 1e-3),
    "circulant_random": Method("circulant, both N(0, 0.02²)", _surm("circulant", init_weights=False), 1e-2),
    # adapters after the layers' outputs
    "adapter_circulant": Method(
        "circulant adapter", _surm("circulant", form="adapter", target_modules=["output.dense"]), 4e-3
    ),
    "adapter_bottleneck": Method("Houlsby adapter, width 18", add_bottlenecks, 2e-3),
}  # fmt: skip
TABLE = tuple(METHODS)[: tuple(METHODS).index("block_circulant") + 1]
SIX = ("lora_r8", "lora_r1", "circulant", "toeplitz", "hydra_toeplitz_768", "siva_950_bottom")
