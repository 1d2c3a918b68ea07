"""An adapted layer of PEFT: a frozen layer and the updates of any number of adapters, of which some are active."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from surm_kernels import first_use
from surm_kernels._kept import no_inference_tensors
from surm_kernels.nn._adapted import Update
from surm_kernels.nn._adapted_product import AdaptedProduct
from surm_kernels.peft import _merging, _origin
from surm_kernels.peft._base_layers import place_of, sizes_of
from surm_kernels.peft._batch import Batch
from surm_kernels.peft._mixed_product import MixedProduct
from surm_kernels.structures import Structure, Sum


class Trained(nn.Module):
    """One trained tensor of one adapter, called `weight`: PEFT's offloading is right only for such names."""

    #: What it started from, of an adapter that was made to be loaded and still waits for its tensors.
    start: Tensor | None = None

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)

    def waits(self) -> bool:
        """Whether it was made to be loaded, and neither loaded nor trained since."""
        if self.start is None:
            return False
        return self.weight.is_meta or torch.equal(self.weight.detach().to(self.start), self.start)


class Fixed(nn.Module):
    """What an adapter has beside its trained tensors: where it comes from and, of SiVA, its constants.

    Sizes, the structure's identity and the fingerprint of the constants are saved, so that a file of another model or
    structure is known before it is loaded.
    """

    sizes: Tensor
    identity: Tensor
    fingerprint: Tensor

    def __init__(
        self, structure: Structure, alpha: float, constants: dict[str, Tensor], device: Any, save: bool
    ) -> None:
        super().__init__()
        sizes = [structure.out_features, structure.in_features]
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.int64, device=device))
        identity = _origin.identity(structure, alpha)
        self.register_buffer("identity", torch.tensor(identity, dtype=torch.int64, device=device))
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=save)
        if constants:
            fingerprint = structure.fingerprint(*(constants[name] for name in structure.constants))
            self.register_buffer("fingerprint", fingerprint)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what is of another layer or weight: transformers' own loader sets tensors without asking first."""
        ours = vars(self).get("_buffers", {}).get(name)
        if ours is not None and name == "sizes":
            _origin.require_sizes("sizes", ours, value)
        if ours is not None and name == "identity":
            _origin.require_identity("identity", ours, value)
        if ours is not None and name == "fingerprint" and "U" in self._non_persistent_buffers_set:
            _origin.require_fingerprint("fingerprint", ours, value)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        exact = self._buffers.get("fingerprint")
        super()._apply(fn, recurse)
        if exact is not None and not exact.is_meta:  # moved, but not rounded
            self.fingerprint = exact.to(self.fingerprint.device)
        return self


class Current(list):
    """Where the tensors of some adapters are, in their structure's order, and the update that they make."""

    def __init__(self, update: Update, places: Sequence[tuple[nn.Module, str]]) -> None:
        super().__init__(places)
        self.update = update

    def tensors(self) -> list[Tensor]:
        """Those of now."""
        return [getattr(owner, name) for owner, name in self]


class StructuredLinear(nn.Module, BaseTunerLayer):
    """`base_layer(x) + sum over active adapters of alpha * x @ W.T`, by one product for all of them.

    The base is called as it is where it is more than a plain torch.nn.Linear. A trained tensor `c` of adapter `a` is
    `layer.surm_c["a"].weight`.
    """

    #: Of the attributes with parameters.
    prefix = ""
    #: Whether updates are of the base's input, so that base and updates may be one product.
    in_one_product = True
    #: The base's weight as it was, while adapters are merged into it.
    unmerged: Tensor | None
    #: Whether the module that has the layer may multiply by its weight instead of calling it.
    is_read = False
    #: While it names an adapter, who goes through the modules sees no other one.
    shown: str | None = None

    # PEFT's own, for the type checker.
    get_base_layer: Callable[[], Any]
    active_adapters: list[str]
    merged: bool

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        sizes = sizes_of(base_layer)
        assert sizes is not None
        self.in_features, self.out_features = sizes
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = adapter_name
        self.cast_input_dtype_enabled = True  # which PEFT reads of every layer
        self.structures: dict[str, Structure] = {}
        self.alphas: dict[str, float] = {}
        self.strategies: dict[str, str] = {}
        self.adapter_layer_names: tuple[str, ...] = ()
        self.other_param_names = ("structures", "alphas", "strategies", self.fixed_name)
        setattr(self, self.fixed_name, nn.ModuleDict())
        self._product = AdaptedProduct()
        self.mixed = MixedProduct()
        self._currents: dict[tuple[str, ...], Current | None] = {}
        self._acting: Current | None = None  # of the active adapters; found here, since a compiled call makes no Update
        self._flags: dict[tuple[str, str], bool] | None = None
        self.register_buffer("unmerged", None, persistent=False)

    @property
    def fixed_name(self) -> str:
        """Of the attribute with what is not trained."""
        return f"{self.prefix}fixed"

    # Adapters

    def update_layer(
        self,
        adapter_name: str,
        structure: Structure,
        constants: dict[str, Tensor],
        *,
        alpha: float,
        strategy: str,
        start: str | None,
        save_constants: bool,
        inference_mode: bool,
        awaits_tensors: bool,
    ) -> None:
        """Adds an adapter, or one in place of another with its name.

        Args:
            adapter_name: of the adapter.
            structure: of its update.
            constants: what the structure does not train.
            alpha: factor of the update.
            strategy: see `surm_kernels.nn.AdaptedLinear`.
            start: the structure's initialisation; None for N(0, 0.02^2) in every factor.
            save_constants: whether the constants are saved.
            inference_mode: whether the adapter is frozen.
            awaits_tensors: whether the adapter is made to be loaded.
        """
        device, dtype = place_of(self.get_base_layer())
        fixed = Fixed(structure, alpha, constants, device, save_constants)
        getattr(self, self.fixed_name)[adapter_name] = fixed
        self.structures[adapter_name], self.alphas[adapter_name] = structure, alpha
        self.strategies[adapter_name] = strategy
        parameters, holders = [], []
        for name, shape in structure.parameter_shapes().items():
            if name in constants:
                parameters.append(constants[name])
                continue
            container = self.prefix + name
            if container not in self.adapter_layer_names:
                self.adapter_layer_names += (container,)
                setattr(self, container, nn.ModuleDict())
            holder = Trained(torch.empty(shape, device=device, dtype=dtype))
            getattr(self, container)[adapter_name] = holder
            parameters.append(holder.weight)
            holders.append(holder)
        _initialise(structure, parameters, start)
        if awaits_tensors:
            for holder in holders:
                holder.start = holder.weight.detach().clone()
        for holder in holders:
            holder.requires_grad_(adapter_name in self.active_adapters and not inference_mode)
        self._forget()
        self._acting = self.current(self.active_adapters)
        first_use.offer(structure, parameters)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As torch does, without the adapters that are not shown."""
        if self.shown is None:
            yield from super().named_modules(memo, prefix, remove_duplicate)
            return
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        start = prefix + "." if prefix else ""
        yield from self.base_layer.named_modules(memo, f"{start}base_layer", remove_duplicate)
        for container in (*self.adapter_layer_names, self.fixed_name):
            modules = getattr(self, container)
            yield start + container, modules
            if self.shown in modules:
                path = f"{start}{container}.{self.shown}"
                yield from modules[self.shown].named_modules(memo, path, remove_duplicate)

    def current(self, adapter_names: Sequence[str]) -> Current | None:
        """The update of some adapters together; None where this layer has none of them."""
        names = tuple(adapter_names)
        if names not in self._currents:
            self._currents[names] = self._find(names)
        return self._currents[names]

    def _find(self, adapter_names: Sequence[str]) -> Current | None:
        names = [name for name in adapter_names if name in self.structures]
        if not names:
            return None
        places = [place for name in names for place in self._places(name)]
        structures, alphas = [self.structures[n] for n in names], [self.alphas[n] for n in names]
        strategies = {self.strategies[name] for name in names}
        strategy = strategies.pop() if len(strategies) == 1 else "auto"
        if len(names) == 1:
            return Current(Update(structures[0], alphas[0], strategy, None), places)
        return Current(Update(Sum(structures, alphas), 1.0, strategy, None), places)

    def _places(self, adapter_name: str) -> Iterator[tuple[nn.Module, str]]:
        """Of the tensors of an adapter: the module that has it and its name there."""
        structure = self.structures[adapter_name]
        for name in structure.parameter_shapes():
            if name in structure.constants:
                yield getattr(self, self.fixed_name)[adapter_name], name
            else:
                yield getattr(self, self.prefix + name)[adapter_name], "weight"

    def trained(self, adapter_name: str) -> list[Trained]:
        """The modules with an adapter's trained tensors."""
        containers = [getattr(self, name) for name in self.adapter_layer_names]
        return [modules[adapter_name] for modules in containers if adapter_name in modules]

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT does, but adapters that stay active stay frozen where they were."""
        stay = [name for name in self.active_adapters if name != adapter_name]
        flags = [(t.weight, t.weight.requires_grad) for name in stay for t in self.trained(name)]
        self._forget()
        super().delete_adapter(adapter_name)
        for weight, flag in flags:
            weight.requires_grad_(flag)

    def _forget(self) -> None:
        """What was found of adapters, when one is added or deleted."""
        self._currents.clear()
        self.mixed.clear()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT does, in the adapters that are shown."""
        self._flags = None
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in self.structures if self.shown is None else (self.shown,):
            for holder in self.trained(name):
                holder.requires_grad_(name in names and not inference_mode)
        self._active_adapter = names
        self._acting = self.current(self.active_adapters)

    def enable_adapters(self, enabled: bool) -> None:
        """Adapters off, or on again with those trainable that were so before."""
        trained = {
            (container, adapter): module.weight
            for container in self.adapter_layer_names
            for adapter, module in getattr(self, container).items()
        }
        if not enabled:
            if self._flags is None:
                self._flags = {key: weight.requires_grad for key, weight in trained.items()}
            super().enable_adapters(False)
            return
        self._disable_adapters = False
        for key, weight in trained.items():
            if self._flags is not None:
                weight.requires_grad_(self._flags.get(key, weight.requires_grad))
        self._flags = None

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves and does not round: numbers that were loaded in float32 keep their type."""
        target = place_of(self.get_base_layer())[0] if device is None else device
        for container in (*self.adapter_layer_names, self.fixed_name):
            modules = getattr(self, container)
            if target is not None and adapter_name in modules:
                module = modules[adapter_name]
                if not any(t.is_meta for t in (*module.parameters(), *module.buffers())):
                    module.to(target)

    # What it computes

    def forward(self, input: Tensor, *args: Any, adapter_names: Batch | None = None, **kwargs: Any) -> Tensor:
        """(..., in_features) to (..., out_features); `adapter_names` are those of a mixed batch, for every row."""
        if self._disable_adapters or self.merged_adapters:
            if self._disable_adapters and self.merged_adapters:
                self.unmerge()
            return self.base_layer(input, *args, **kwargs)
        if adapter_names is not None:
            return self.mixed(self, self.base_layer(input, *args, **kwargs), input, adapter_names)
        current = self._acting
        if current is None:
            return self.base_layer(input, *args, **kwargs)
        if args or kwargs or not self.in_one_product:
            return self.added(current, self.base_layer(input, *args, **kwargs), input)
        return self._product(current.update, self.base_layer, input, current.tensors(), self.training)

    @property
    def weight(self) -> Tensor:
        """The base's, as PEFT has it; with the update where somebody multiplies by it, see `is_read`."""
        base = self.get_base_layer()
        if self._disable_adapters and self.merged_adapters:
            self.unmerge()
        current = None if self._disable_adapters or self.merged_adapters else self._acting
        if current is None or not self.is_read:
            return base.weight
        return self._product.weight(current.update, base.weight, current.tensors())

    def added(self, current: Current, y: Tensor, x: Tensor) -> Tensor:
        """y, an output of the base for x, with an update added to it."""
        return self._product.added(current.update, y, x, current.tensors(), self.training)

    def refresh(self) -> None:
        """Gives back what is kept between calls; a weight that was changed in place through numpy asks for it."""
        self._product.clear()
        self.mixed.clear()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self.refresh()
        return super()._apply(fn, recurse)

    # Merging

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The update of an adapter as a matrix in the layout of the base's weight, in float32 at least."""
        current = self.current([adapter_name])
        if current is None:
            raise ValueError(
                f"adapter_name must be one of {', '.join(self.structures) or 'none'}, got {adapter_name!r}"
            )
        return _merging.delta(self.get_base_layer(), current.update, current.tensors())

    def merged_weight(self, adapter_names: Sequence[str]) -> tuple[Tensor, float | None] | None:
        """The base's weight with adapters added, beside what is merged already, and the share that rounding removed.

        None where there is nothing to merge. The weight is a new tensor; see `_merging.merged`.
        """
        current = self.current([*self.merged_adapters, *(n for n in adapter_names if n not in self.merged_adapters)])
        if current is None:
            return None
        base = self.get_base_layer()
        weight = base.weight.data if self.unmerged is None else self.unmerged
        return _merging.merged(base, weight, current.update, current.tensors())

    def require_mergeable(self) -> None:
        """Raises ValueError where no adapter can be added to the base's weight."""
        _merging.require_mergeable(self.get_base_layer())

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the base's weight, by default the active ones; the weight as it was is kept.

        Args:
            safe_merge: whether a sum that is not finite is refused.
            adapter_names: those to add.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.structures]
        if not names:
            return
        self.require_mergeable()
        with no_inference_tensors():  # which could not be trained on
            found = self.merged_weight(names)
        assert found is not None
        weight, self.rounded_away = found
        if safe_merge:
            _merging.require_finite(weight, names)
        base = self.get_base_layer()
        if self.unmerged is None:
            self.unmerged = base.weight.data
        base.weight.data = weight
        self.merged_adapters.extend(names)

    #: Share of the update that the rounding of the last merge removed; None in 32 bits and more.
    rounded_away: float | None = None

    def unmerge(self) -> None:
        """Puts the weight back as it was before merging, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.get_base_layer().weight.data = self.unmerged
        self.unmerged = self.rounded_away = None
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base alone, with adapters merged into it or as it was; nothing more than it is kept."""
        if merge:
            self.merge(safe_merge, adapter_names)
        elif self.merged:
            self.unmerge()
        self.unmerged = None
        self.refresh()
        return self.get_base_layer()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return self.prefix.removesuffix("_") + "." + super().__repr__()


class SurmLinear(StructuredLinear):
    """A layer adapted by SURM."""

    prefix = "surm_"


class HydraLinear(StructuredLinear):
    """A layer adapted by HyDRA."""

    prefix = "hydra_"


class SivaLinear(StructuredLinear):
    """A layer adapted by SiVA."""

    prefix = "siva_"


def adapted(module: nn.Module) -> Iterator[nn.Module]:
    """The modules with adapters, without a look at what they consist of: that would take longer with every adapter."""
    if isinstance(module, (StructuredLinear, AuxiliaryTrainingWrapper)):
        yield module
        return
    for child in module.children():
        yield from adapted(child)


@contextmanager
def showing(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """While one adapter is added, no other is seen: PEFT looks through all modules several times."""
    layers = [module for module in adapted(model) if isinstance(module, StructuredLinear)]
    try:
        for layer in layers:
            layer.shown = adapter_name
        yield
    finally:
        for layer in layers:
            layer.shown = None


@torch.no_grad()
def _initialise(structure: Structure, parameters: list[Tensor], start: str | None) -> None:
    """Starts the trained parameters, unless they have no values yet."""
    if any(parameter.is_meta for parameter in parameters):
        return
    if start is not None:
        structure.initialise(parameters, start)
        return
    for name, parameter in zip(structure.parameter_shapes(), parameters, strict=True):
        if name not in structure.constants:
            parameter.normal_(0, 0.02)
