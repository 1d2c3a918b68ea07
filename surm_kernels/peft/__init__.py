"""SURM, HyDRA and SiVA as methods of Hugging Face PEFT: `import surm_kernels.peft` makes PEFT know them.

`peft.get_peft_model(model, SurmConfig())` adapts a model; saving, loading, merging and switching are PEFT's own.
`accelerate()` runs PEFT's own C3A and LoKr on our kernels.
"""

from surm_kernels.peft._requirements import require_peft

require_peft()

from surm_kernels.peft._register import register  # noqa: E402
from surm_kernels.peft.accelerate import accelerate, accelerated, restore  # noqa: E402
from surm_kernels.peft.config import HydraConfig, SivaConfig, SurmConfig  # noqa: E402
from surm_kernels.peft.tuner import HydraModel, SivaModel, SurmModel  # noqa: E402

register("SURM", SurmConfig, SurmModel)
register("HYDRA", HydraConfig, HydraModel)
register("SIVA", SivaConfig, SivaModel)

__all__ = ["HydraConfig", "SivaConfig", "SurmConfig", "accelerate", "accelerated", "restore"]
