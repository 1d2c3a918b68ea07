"""The sentence classifier and its ways to learn: by its head only, or by an adapter of PEFT, LoRA's or one of ours.

SURM (arXiv 2406.17740): a frozen weight W becomes W + C(r1 * r2), the circulant matrix whose first column is the
elementwise product of two trained vectors, or W + T(t2) T(t1), a product of symmetric Toeplitz matrices. One vector
starts at zero and the other from N(0, 0.02^2), so training starts at W itself. HyDRA: W plus a grid of small Toeplitz
blocks, whose values come from one pool. SiVA: W plus U diag(s) V^T over the singular vectors of its smallest singular
values, all those beyond 95 % of the sum of squares; s, which is trained, starts at zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

METHOD_TITLES = {
    "probe": "linear probe",
    "lora": "PEFT LoRA r = 8",
    "surm": "SURM circulant",
    "toeplitz": "SURM Toeplitz",
    "hydra": "HyDRA",
    "siva": "SiVA",
}
ADAPTER_LEARNING_RATES = {"probe": 0.0, "lora": 2e-3, "surm": 1e-2, "toeplitz": 1e-3, "hydra": 1e-3, "siva": 4e-2}
ADAPTED_LAYERS = ("query", "value")
LORA_RANK = 8
LORA_ALPHA = 16
SIVA_SHARE = 0.95
CLASSES = 2


def configuration(method: str) -> Any:
    """What PEFT is to make of the encoder, for a key of METHOD_TITLES other than "probe"."""
    layers = list(ADAPTED_LAYERS)
    if method == "lora":
        from peft import LoraConfig

        return LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=layers)
    from surm_kernels.peft import HydraConfig, SivaConfig, SurmConfig

    if method == "surm":
        return SurmConfig(target_modules=layers)
    if method == "toeplitz":
        return SurmConfig(structure="toeplitz", target_modules=layers)
    if method == "hydra":
        return HydraConfig(target_modules=layers)
    return SivaConfig(perc=SIVA_SHARE, target_modules=layers)


def adapt(encoder: nn.Module, method: str) -> nn.Module:
    """`encoder` made ready for `method`, a key of METHOD_TITLES: only what it trains requires gradients."""
    if method == "probe":
        return encoder.requires_grad_(False)
    from peft import get_peft_model

    wrapped: Any = encoder
    adapted: nn.Module = get_peft_model(wrapped, configuration(method))
    return adapted


class SentenceClassifier(nn.Module):
    """A transformer encoder, the mean over its tokens, and a linear head.

    The encoder stays in evaluation mode: without dropout all methods see the same activations, and the probe's
    features are constants.
    """

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.head = head

    def features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean of the last hidden states over the tokens that are not padding, (examples, hidden)."""
        hidden: torch.Tensor = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits, (examples, classes)."""
        logits: torch.Tensor = self.head(self.features(tokens, mask))
        return logits

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What is trained inside the encoder."""
        return [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]


def load_encoder(folder: Path) -> tuple[nn.Module, int]:
    """MiniLM from `folder` in float32 and its hidden size, its weights in memory of their own."""
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False, dtype=torch.float32)
    # Weights mapped from the file would enter memory only at the first step and be counted as the training's.
    for parameter in encoder.parameters():
        parameter.data = parameter.data.clone()
    return encoder, int(encoder.config.hidden_size)


def build_classifier(encoder: nn.Module, hidden_size: int, method: str, seed: int) -> SentenceClassifier:
    """The classifier for `method`; its head depends on the seed alone, so that all methods start from the same one."""
    torch.manual_seed(seed)
    head = nn.Linear(hidden_size, CLASSES)
    return SentenceClassifier(adapt(encoder, method), head)
