"""The adapter form of SURM (Houlsby et al., 2019): an adapter after a layer, and which layers of a model have one."""

from torch import Tensor

from surm_kernels.peft._activated import NO_MATRIX
from surm_kernels.peft.layer import Current, SurmLinear

#: The two layers of a block whose outputs the residual is added to, attention's and the feed-forward's, and the
#: architectures where they have these names.
_NAMES = (
    (("output.dense",), "bert roberta xlm-roberta camembert electra deberta deberta-v2"),
    (("attention.dense", "ffn_output"), "albert"),
    (("out_lin", "lin2"), "distilbert"),
    (("o_proj", "fc2"), "vit deit beit"),
    (("o_proj", "fc2", "down_proj"), "dinov2 dinov2_with_registers"),  # the last one is that of SwiGLU
    (("out_proj", "fc2"), "clip clip_text_model clip_vision_model opt"),
    (("o_proj", "down_proj"), "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 stablelm smollm3 olmo2"),
    (("self_attn.dense", "fc2"), "phi"),
    (("c_proj",), "gpt2"),
    (("out_proj", "c_proj"), "gpt_neo"),
    (("out_proj", "fc_out"), "gptj"),
    (("attention.dense", "dense_4h_to_h"), "gpt_neox"),
    (("self_attention.dense", "dense_4h_to_h"), "bloom falcon"),
)
#: The same by architecture.
OUTPUT_PROJECTIONS = {model_type: names for names, model_types in _NAMES for model_type in model_types.split()}


def output_projections(model_type: str) -> list[str]:
    """Those of an architecture, or a ValueError that says what to give instead."""
    if model_type not in OUTPUT_PROJECTIONS:
        raise ValueError(
            f"target_modules must name the output projections of attention and of the feed-forward layer for model "
            f"type {model_type!r}; they are known for {', '.join(sorted(OUTPUT_PROJECTIONS))}"
        )
    return list(OUTPUT_PROJECTIONS[model_type])


class SurmAdapterLinear(SurmLinear):
    """`X + sum over active adapters of alpha * GELU(X @ W.T) + b` for the outputs X of the base.

    Every adapter sees the same X, as in the other form, so that their order does not matter.
    """

    in_one_product = False

    def added(self, current: Current, y: Tensor, x: Tensor) -> Tensor:
        """y, an output of the base, with the adapters' outputs for it; x is not asked for."""
        return super().added(current, y, y)

    def require_mergeable(self) -> None:
        """Always a ValueError."""
        raise ValueError(NO_MATRIX)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Never."""
        return False
