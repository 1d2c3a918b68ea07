"""A frozen linear layer with a trained structured update: what parameter-efficient fine-tuning trains."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surm_kernels import _checks, first_use, siva
from surm_kernels.nn._adapted import Update
from surm_kernels.nn._adapted_product import AdaptedProduct
from surm_kernels.nn._base import frozen, place, require_base, require_frozen
from surm_kernels.nn._constants import ConstantBuffers
from surm_kernels.nn._strategy import require_strategy
from surm_kernels.nn.structured_linear import plain_linear
from surm_kernels.structures import Siva, Structure


class AdaptedLinear(ConstantBuffers):
    """`base(x) + scale * x @ W.T` for a frozen base and a structured W of few parameters.

    The parameters carry the structure's names (`c` for a circulant); what a structure never trains (SiVA's U and V) are
    buffers. Two strategies give the same result but for rounding:

    - "direct": one matrix product with the frozen weight and the structure's kernel, which share the output;
    - "merged": the weight plus `scale * W` is formed, once for every change of the parameters, into a buffer of the
      weight's size that the layer keeps; then one matrix product. In 16 bits that sum is rounded: stochastically in
      training (`surm_kernels.rounding`), so that no small update is lost, else to nearest.
    - "auto" takes the faster by `surm_kernels.cost_model`, from sizes, tokens, type and the gradients wanted; in
      inference in 16 bits it merges only an update that rounding to nearest leaves most of.

    Either keeps nothing for the backward but x and the parameters, and SiVA its projection of few tokens. A base that
    is not a plain torch.nn.Linear (quantised, custom, with hooks or parametrisations) is called as it is, and the
    update is direct.

    Args:
        base: torch.nn.Linear or a module that acts like one, (..., in_features) to (..., out_features); its parameters
            are frozen.
        structure: of W, in_features x out_features of the base.
        scale: factor of W.
        strategy: "auto", "direct" or "merged"; may be set later.
        initialisation: one of the structure's; "paper", with W = 0, where it has that, else its first.
        constants: what the structure does not train, by name; by default the structure prepares it from the weight.
        merge_dtype: None, or torch.float32 to merge and multiply 16-bit layers in float32.
        save_constants: whether state_dict holds the constants. A fingerprint of them it always holds, and a state with
            another fingerprint is refused, unless it brings the constants or the weight that gives them.

    Raises:
        TypeError: base is no module, structure no structure, scale no number.
        ValueError: sizes do not agree, the strategy is unknown or needs a torch.nn.Linear.
    """

    def __init__(
        self,
        base: nn.Module,
        structure: Structure,
        scale: float = 1.0,
        strategy: str = "auto",
        *,
        initialisation: str | None = None,
        constants: dict[str, Tensor] | None = None,
        merge_dtype: torch.dtype | None = None,
        save_constants: bool = False,
    ) -> None:
        super().__init__()
        require_base(base, structure)
        _checks.require_finite("scale", scale)
        require_strategy(strategy, base)
        if merge_dtype not in (None, torch.float32):
            raise ValueError(f"merge_dtype must be None or torch.float32, got {merge_dtype}")
        self.base = base.requires_grad_(False)
        self.structure = structure
        self.in_features, self.out_features = structure.in_features, structure.out_features
        self.save_constants = save_constants
        self._names = tuple(structure.parameter_shapes())
        self._update = Update(structure, float(scale), strategy, merge_dtype)
        self._product = AdaptedProduct()

        device, dtype = place(base)
        for name, shape in structure.parameter_shapes().items():
            if name not in structure.constants:
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_constants(constants, device, dtype)
        self.reset_parameters(initialisation)
        first_use.offer(structure, self.structured_parameters())

    @classmethod
    def siva(
        cls,
        base: nn.Linear,
        *,
        perc: float = 0.95,
        k: int | None = None,
        basis: str = "bottom",
        rule: str = "variance",
        precision: str = "float64",
        seed: int = 0,
        scale: float = 1.0,
        strategy: str = "auto",
        save_constants: bool = False,
    ) -> "AdaptedLinear":
        """The layer with SiVA's update: `W = U diag(s) V.T` over the smallest singular values of its weight.

        Args:
            base: a torch.nn.Linear; its weight is decomposed once, here.
            perc: share of the spectrum that is left alone, which says how many values are retuned.
            k: how many, instead of `perc`.
            basis: "bottom", "top" or "random".
            rule: "variance" or "sum" of the singular values make the spectrum that `perc` is a share of.
            precision: "float64" or "float32", of the decomposition.
            seed: of the random basis.
            scale: factor of the update; the method has none.
            strategy: as of the layer.
            save_constants: whether state_dict holds U and V.
        """
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be a torch.nn.Linear, got {type(base).__name__}")
        U, V = siva.bases(base.weight, perc=perc, k=k, basis=basis, rule=rule, precision=precision, seed=seed)
        structure = Siva(base.in_features, base.out_features, U.shape[1], basis, precision, seed)
        return cls(base, structure, scale, strategy, constants={"U": U, "V": V}, save_constants=save_constants)

    @property
    def strategy(self) -> str:
        """`auto`, `direct` or `merged`."""
        return self._update.strategy

    @strategy.setter
    def strategy(self, strategy: str) -> None:
        require_strategy(strategy, self.base)
        self._update = replace(self._update, strategy=strategy)

    @property
    def scale(self) -> float:
        """Factor of W."""
        return self._update.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        _checks.require_finite("scale", scale)
        self._update = replace(self._update, scale=float(scale))

    @property
    def merge_dtype(self) -> torch.dtype | None:
        """The type of the merged weight, that of the tokens if None."""
        return self._update.merge_dtype

    @property
    def weight(self) -> Tensor:
        """`base.weight + scale * W`, rounded once, a tensor of its own every time; it cannot be set.

        Differentiable with respect to the parameters where that is recorded. There is none where base is not a plain
        torch.nn.Linear.
        """
        tensors = frozen(self.base)
        if tensors is None:
            raise AttributeError(f"weight of a base that is not a plain torch.nn.Linear, {type(self.base).__name__}")
        return self._product.weight(self._update, tensors.weight, self.structured_parameters())

    @property
    def bias(self) -> Tensor | None:
        """That of base; it cannot be set."""
        base: Any = self.base
        return base.bias

    def structured_parameters(self) -> tuple[Tensor, ...]:
        """The parameters of W with its constants, in the structure's order."""
        held: Any = self._parameters  # where a parameter is unless it is parametrised; getattr takes longer
        return tuple([held[name] if name in held else getattr(self, name) for name in self._names])

    def reset_parameters(self, initialisation: str | None = None) -> None:
        """Starts the update anew, by one of the structure's initialisations; "paper" where none is named."""
        if initialisation is None and "paper" in self.structure.initialisations:
            initialisation = "paper"
        self.structure.initialise(self.structured_parameters(), initialisation)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        base: Any = self._modules["base"]  # as attributes of modules, it takes longer to find
        return self._product(self._update, base, input, self.structured_parameters(), self.training)

    @torch.no_grad()
    def chosen(self, tokens: int, dtype: torch.dtype | None = None, gradients: bool = True) -> str:
        """The strategy, "direct" or "merged", that a call takes.

        Args:
            tokens: how many, over all leading dimensions.
            dtype: of the tokens, by default that of the weight.
            gradients: whether those of x and of the parameters are wanted.
        """
        return self._product.chosen(self._update, self.base, self.structured_parameters(), tokens, dtype, gradients)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """`base.weight + scale * W`, a new tensor."""
        weight = require_frozen(self.base).weight
        return self.structure.merge(weight, *self.structured_parameters(), scale=self.scale)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A torch.nn.Linear with the same map."""
        return plain_linear(self.merged_weight(), require_frozen(self.base).bias)

    def refresh(self) -> None:
        """Gives back the memory of the merged weight and of spectra; the next call that wants them forms them again."""
        self._product.clear()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self.refresh()  # what is kept belongs to the old device or type
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"structure={self.structure}, scale={self.scale:g}, strategy={self.strategy!r}"
