"""A frozen linear layer with a trained structured update: what parameter-efficient fine-tuning trains."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from surm_kernels import _checks, siva
from surm_kernels.functional._product import cast
from surm_kernels.nn._adapted import Adapted, Update, traced
from surm_kernels.nn._kept import KeptProduct, Memory, MergedWeight, Product, split
from surm_kernels.ops._differentiable import _transforms_active
from surm_kernels.ops._library import without_autocast
from surm_kernels.structures import Siva, Structure

STRATEGIES = ("auto", "direct", "merged")

#: Merging in 16 bits rounds a weight by about a third of the type's spacing, relative to its size. `auto` merges only
#: where the update has this many spacings, so that rounding takes less than a tenth of it.
LEAST_SPACINGS = 4

#: Up to this many tokens a product by a spectrum that is kept is faster by more than a tenth.
FEW_TOKENS = 16
_PROBES = 8


class AdaptedLinear(nn.Module):
    """`base(x) + scale * x @ W.T` for a frozen base and a structured W of few parameters.

    The parameters carry the structure's names (`c` for a circulant); what a structure never trains (SiVA's U and V) are
    buffers. Two strategies give the same result but for rounding:

    - "direct": one matrix product with the frozen weight and the structure's kernel, which share the output;
    - "merged": the weight plus `scale * W` is formed, once for every change of the parameters, into a buffer of the
      weight's size that the layer keeps; then one matrix product. In 16 bits that sum is rounded.
    - "auto" takes the faster by `surm_kernels.cost_model`, from sizes, tokens, type and the gradients wanted; in 16
      bits it merges only where the update is `LEAST_SPACINGS` spacings of the type or more, relative to the weight.

    Either keeps nothing for the backward but x and the parameters. A base that is not a plain torch.nn.Linear
    (quantised, custom, with hooks or parametrisations) is called as it is, and the update is direct.

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

    fingerprint: Tensor

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
        _check(base, structure, scale, merge_dtype)
        self.base = base.requires_grad_(False)
        self.structure = structure
        self.in_features, self.out_features = structure.in_features, structure.out_features
        self.save_constants = save_constants
        self._names = tuple(structure.parameter_shapes())
        self._merged, self._kept, self._size = MergedWeight(), KeptProduct(), _RelativeSize()
        self._update = Update(structure, float(scale), "direct", merge_dtype, self._merged)
        self.strategy = strategy

        device, dtype = _place(base)
        given = self._constants(constants)
        for name, shape in structure.parameter_shapes().items():
            if name in structure.constants:
                _checks.require_shape(name, given[name], shape, f"as {structure} has it")
                value = given[name].detach().to(device, dtype)
                self.register_buffer(name, value, persistent=save_constants)
            else:
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if structure.constants:
            self.register_buffer("fingerprint", self._fingerprint())
        self.reset_parameters(initialisation)

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
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
        if strategy == "merged" and not _is_plain(self.base):
            raise ValueError(
                f"strategy must be direct or auto where base is not a plain torch.nn.Linear, "
                f"got merged for {type(self.base).__name__}"
            )
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

    def structured_parameters(self) -> tuple[Tensor, ...]:
        """The parameters of W with its constants, in the structure's order."""
        return tuple(getattr(self, name) for name in self._names)

    def reset_parameters(self, initialisation: str | None = None) -> None:
        """Starts the update anew, by one of the structure's initialisations; "paper" where none is named."""
        if initialisation is None and "paper" in self.structure.initialisations:
            initialisation = "paper"
        self.structure.initialise(self.structured_parameters(), initialisation)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        _checks.require_floating("x", x)
        parameters: Sequence[Tensor] = self.structured_parameters()
        if not self._is_fusable(x):
            return self._unfused(x, parameters)
        weight, bias = self._weight, self._bias
        _checks.require_features(x, self.in_features, {"base.weight": weight})
        dtype = _compute_dtype(x, weight)
        flat = x.dim() == 2  # then views would only cost their nodes in the graph
        rows = cast(x if flat else x.reshape(-1, self.in_features), dtype)
        bias = None if bias is None else cast(bias, dtype)
        parameters = [cast(parameter, dtype) for parameter in parameters]
        if torch.compiler.is_compiling():
            # Not a decorator, which would import Dynamo, and Triton with it, for everybody.
            y = torch._dynamo.nonstrict_trace(traced)(self._update, rows, weight, bias, *parameters)
        else:
            y = self._call(rows, weight, bias, parameters)
        return y if flat else y.view(*x.shape[:-1], self.out_features)

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None, parameters: Sequence[Tensor]) -> Tensor:
        recording = torch.is_grad_enabled()
        need_parameters = recording and any(parameter.requires_grad for parameter in parameters)
        need_x = recording and x.requires_grad
        merged = self._merges(x, weight, parameters, need_x, need_parameters)
        if need_parameters or need_x or (recording and bias is not None and bias.requires_grad):
            return Adapted.apply(self._update, merged, x, weight, bias, *parameters)
        with torch.no_grad(), without_autocast(x):
            kept = self._kept_product(x, parameters) if not merged else None
            return self._update.product(merged, x, weight, bias, parameters, kept)

    def _unfused(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The base called as it is and the update by itself, for any base, recording and transformation."""
        base = self.base(x)
        if _is_eager(x) and type(base) is Tensor and not torch.is_autocast_enabled(x.device.type):
            tensors = (x, base, *parameters)
            recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
            if not recorded and all(t.dtype is x.dtype for t in tensors):
                kept = self._kept_product(x, parameters)
                if kept is not None:
                    return kept(x, base, self.scale)
        return self.structure.linear(x, *parameters, base=base, scale=self.scale)

    def _kept_product(self, x: Tensor, parameters: Sequence[Tensor]) -> Product | None:
        """The update's product with what it needs of its parameters computed once, where that is worth it."""
        if x.device.type != "cpu" or x.numel() > FEW_TOKENS * self.in_features:
            return None
        return self._kept.of(self.structure, parameters)

    def _merges(
        self, x: Tensor, weight: Tensor, parameters: Sequence[Tensor], need_x: bool, need_parameters: bool
    ) -> bool:
        """Whether this call merges: what the strategy says, unless `auto` would round the update away."""
        merges = self._update.merges(x, need_x, need_parameters)
        if self.strategy == "auto" and not need_parameters and weight.device.type != "cpu":
            return False  # where changes cannot be looked for, nothing is kept from call to call
        if not merges or self.strategy != "auto" or x.dtype.itemsize > 2 or self.merge_dtype is not None:
            return merges
        least = LEAST_SPACINGS * torch.finfo(x.dtype).eps
        return self._size.of(self.structure, self.scale, weight, parameters) >= least

    def chosen(self, tokens: int, dtype: torch.dtype | None = None, gradients: bool = True) -> str:
        """The strategy, "direct" or "merged", that a call takes.

        Args:
            tokens: how many, over all leading dimensions.
            dtype: of the tokens, by default that of the weight.
            gradients: whether those of x and of the parameters are wanted.
        """
        if not _is_plain(self.base):
            return "direct"
        weight = self._weight
        x = torch.empty(tokens, 0, dtype=dtype or weight.dtype, device=weight.device)
        with torch.no_grad():
            parameters = [cast(parameter, x.dtype) for parameter in self.structured_parameters()]
            return "merged" if self._merges(x, weight, parameters, gradients, gradients) else "direct"

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """`base.weight + scale * W`, a new tensor."""
        if not _is_plain(self.base):
            raise ValueError(f"base must be a plain torch.nn.Linear, got {type(self.base).__name__}")
        return self.structure.merge(self._weight, *self.structured_parameters(), scale=self.scale)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A torch.nn.Linear with the same map."""
        weight, bias = self.merged_weight(), self._bias
        linear = nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, bias is not None, device=weight.device, dtype=weight.dtype
        )
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear

    def refresh(self) -> None:
        """Gives back the memory of the merged weight and of spectra; the next call that wants them forms them again."""
        self._merged.clear()
        self._kept.clear()
        self._size.clear()

    def extra_repr(self) -> str:
        return f"structure={self.structure}, scale={self.scale:g}, strategy={self.strategy!r}"

    @property
    def _weight(self) -> Tensor:
        weight = self.base._parameters["weight"]  # base.weight takes longer
        assert weight is not None
        return weight

    @property
    def _bias(self) -> Tensor | None:
        return self.base._parameters["bias"]

    def _is_fusable(self, x: Tensor) -> bool:
        """Whether base and update may be one function; else each is called by itself, under autograd."""
        if not _is_plain(self.base) or self._weight.requires_grad:
            return False
        if torch.compiler.is_compiling():
            inside = torch.compiler.is_exporting() or self.structure.holds_tensors or _transforms_active()
            return not inside
        return _is_eager(x)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "AdaptedLinear":
        self.refresh()  # the buffer belongs to the old device or type
        exact = self.fingerprint if self.structure.constants else None
        super()._apply(fn, recurse)
        if exact is not None and not exact.is_meta:  # moved, but not rounded
            self.fingerprint = exact.to(self.fingerprint.device)
        return self

    def _constants(self, given: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The structure's constants by name, those given or prepared from the weight."""
        names = self.structure.constants
        if given is not None:
            if set(given) != set(names):
                raise ValueError(f"constants must have the names {', '.join(names) or 'none'}, got {sorted(given)}")
            return given
        if not names:
            return {}
        if not _is_plain(self.base):
            raise ValueError(f"constants must be given where base is not a plain torch.nn.Linear, for {self.structure}")
        return dict(zip(names, self.structure.prepare(self._weight), strict=True))

    def _fingerprint(self) -> Tensor:
        return self.structure.fingerprint(*(getattr(self, name) for name in self.structure.constants))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: Any
    ) -> None:
        names = self.structure.constants
        if names and all(prefix + name in state_dict for name in names):
            if not self.save_constants:  # not expected, but better than our own
                self._take_constants(state_dict, prefix)
        elif names and prefix + "fingerprint" in state_dict and not self.fingerprint.is_meta:
            change = self._change(state_dict[prefix + "fingerprint"], state_dict.get(prefix + "base.weight"))
            if not change <= siva.TOLERANCE:
                errors: list[str] = lists[-1]
                errors.append(
                    f"{prefix}fingerprint says that the update was trained on another {' and '.join(names)} than this "
                    f"base weight gives: the update would change by about {100 * change:.2g} %. Load it over the same "
                    f"weight in the same type, or save it with save_constants=True."
                )
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    @torch.no_grad()
    def _take_constants(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Moves the constants of a state to the buffers, unless their shapes are others, which is told later."""
        names = self.structure.constants
        if all(state_dict[prefix + name].shape == getattr(self, name).shape for name in names):
            for name in names:
                getattr(self, name).copy_(state_dict.pop(prefix + name))

    @torch.no_grad()
    def _change(self, fingerprint: Tensor, weight: Tensor | None) -> float:
        """How far a fingerprint is from ours, or from that of a new weight, whose constants are then taken over."""
        change = siva.difference(self.fingerprint, fingerprint)
        if change <= siva.TOLERANCE or weight is None or weight.shape != self._weight.shape:
            return change
        prepared = self.structure.prepare(weight.to(self._weight))
        change = siva.difference(self.structure.fingerprint(*prepared), fingerprint)
        if change <= siva.TOLERANCE:
            for name, value in zip(self.structure.constants, prepared, strict=True):
                getattr(self, name).copy_(value)
        return change


class _RelativeSize:
    """The norm of `scale * W` over that of the frozen weight, estimated again when something has changed."""

    def __init__(self) -> None:
        self._of_weight, self._weight = Memory(), 0.0
        self._of_update, self._update = Memory(), 0.0
        self._signs = torch.empty(0)

    @torch.no_grad()
    def of(self, structure: Structure, scale: float, weight: Tensor, parameters: Sequence[Tensor]) -> float:
        """The ratio; 0 on devices where looking at numbers would have to wait for them."""
        if weight.device.type != "cpu":
            return 0.0
        if not self._of_weight.holds("norm", (weight,), ()):
            self._weight = weight.float().norm().item()
            self._of_weight.take("norm", (weight,), ())
        constants, trained = split(structure, parameters)
        if not self._of_update.holds((structure,), constants, trained):
            self._update = self._estimate(structure, parameters)
            self._of_update.take((structure,), constants, trained)
        return abs(scale) * self._update / max(self._weight, torch.finfo(torch.float32).tiny)

    def _estimate(self, structure: Structure, parameters: Sequence[Tensor]) -> float:
        """The norm of W: E ||W z||^2 = ||W||^2 for independent signs z (Hutchinson, 1989)."""
        if self._signs.numel() == 0:
            generator = torch.Generator().manual_seed(0)
            with torch.inference_mode(False):
                self._signs = torch.randint(0, 2, (_PROBES, structure.in_features), generator=generator) * 2.0 - 1
        with without_autocast(self._signs):
            products = structure.linear(self._signs, *(parameter.float() for parameter in parameters))
        return products.norm().item() / _PROBES**0.5

    def clear(self) -> None:
        """Forgets everything."""
        self._of_weight, self._of_update = Memory(), Memory()

    def __reduce__(self) -> tuple[type, tuple]:
        return _RelativeSize, ()


def _check(base: Any, structure: Any, scale: Any, merge_dtype: Any) -> None:
    if not isinstance(base, nn.Module):
        raise TypeError(f"base must be a torch.nn.Module, got {type(base).__name__}")
    if not isinstance(structure, Structure):
        raise TypeError(f"structure must be a surm_kernels.structures.Structure, got {type(structure).__name__}")
    _checks.require_finite("scale", scale)
    for name in ("in_features", "out_features"):
        size = getattr(base, name, None)
        if size is not None and size != getattr(structure, name):
            raise ValueError(f"structure must have the {name} of base, {size}, got {getattr(structure, name)}")
    if merge_dtype not in (None, torch.float32):
        raise ValueError(f"merge_dtype must be None or torch.float32, got {merge_dtype}")


def _is_eager(x: Any) -> bool:
    """Whether a call is an ordinary one: not traced, not transformed, no tensor of another kind."""
    if torch.compiler.is_compiling() or _transforms_active() or forward_ad._current_level >= 0:
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta


def _is_plain(base: Any) -> bool:
    """Whether a module is x W^T + bias of a torch.nn.Linear and nothing else."""
    if type(base).forward is not nn.Linear.forward or "forward" in base.__dict__:
        return False
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return False
    weight = base._parameters.get("weight")  # None where it is parametrised
    return type(weight) is nn.Parameter and weight.dtype in _checks.FLOATING


def _place(base: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and type of the parameters of an update."""
    tensors = [*base.parameters(), *base.buffers()]
    device = tensors[0].device if tensors else None
    return device, next((t.dtype for t in tensors if t.dtype in _checks.FLOATING), None)


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type the base computes in."""
    _checks.require_same_device(x, "base.weight", weight)
    dtype = _checks.common_dtype(x, weight)
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x must be {weight.dtype} like base.weight, got {x.dtype}")
    return dtype
