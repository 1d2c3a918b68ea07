"""The methods as PEFT runs them: layers are found and checked before any is changed, then wrapped."""

from collections.abc import Iterator
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from surm_kernels.peft import _checkpoint, _merging, _mixed, _planning
from surm_kernels.peft.config import UpdateConfig
from surm_kernels.peft.layer import HydraLinear, SivaLinear, StructuredLinear, SurmLinear

#: Query and value projections of the architectures that PEFT's table lacks.
_MORE_TARGETS = {name: ["q_proj", "v_proj"] for name in ("vit", "dinov2", "dinov2_with_registers", "deit", "clip")}


class StructuredTuner(BaseTuner):
    """What the three methods share; `tuner_layer_cls` and `prefix` are each method's own."""

    tuner_layer_cls: type[StructuredLinear]
    target_module_mapping: ClassVar[dict[str, Any]] = {
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        **_MORE_TARGETS,
    }

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """As PEFT does, after every check: a failure leaves the model as it was."""
        self._plans = _planning.plans(self, model, adapter_name, state_dict)
        self._trainable_before = self._trainable_before or _checkpoint.Trainability(model)
        try:
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                state_dict=state_dict,
            )
        except BaseException:
            _checkpoint.undo(self, model, adapter_name)
            raise
        finally:
            del self._plans

    #: Which parameters of the model were trainable before the first adapter.
    _trainable_before: "_checkpoint.Trainability | None" = None

    def _create_and_replace(
        self,
        peft_config: UpdateConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        structure, constants = self._plans[current_key]
        layer = target
        if not isinstance(target, StructuredLinear):
            layer = self.tuner_layer_cls(target, adapter_name)
        assert isinstance(layer, StructuredLinear)
        layer.update_layer(
            adapter_name,
            structure,
            constants,
            alpha=peft_config.value("alpha", current_key),
            strategy=peft_config.strategy,
            start=peft_config.start if peft_config.init_weights else None,
            save_constants=getattr(peft_config, "save_bases", False),
            inference_mode=peft_config.inference_mode,
            awaits_tensors=peft_config.awaits_tensors,
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            layer.train(target.training)
            layer.is_read = isinstance(parent, nn.TransformerEncoderLayer)  # on its fast path
            self._replace_module(parent, target_name, layer, target)

    def layers(self) -> Iterator[tuple[str, StructuredLinear]]:
        """Path and module of every adapted layer."""
        for path, module in self.model.named_modules():
            if isinstance(module, StructuredLinear):
                yield path, module

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        """As PEFT does; modules that are trained whole are frozen afterwards if they were before, as adapters are."""
        whole = [module for module in self.model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        before = self._trainable_whole or _checkpoint.Trainability(nn.ModuleList(whole))
        super()._enable_adapter_layers(enabled)
        self._trainable_whole = None if enabled else before
        if enabled:
            before.restore()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        self._trainable_whole = None
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    #: Which parameters of modules that are trained whole were trainable before adapters were switched off.
    _trainable_whole: "_checkpoint.Trainability | None" = None

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT does; where a layer cannot be merged, or is not finite with `safe_merge`, none is written to.

        In 16 bits `rounding` has, by layer, the share of the update that rounding removed.
        """
        self._require_all_mergeable(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge=False)
        self.rounding = _merging.report(self.layers())

    #: Share of its update that the last merge into 16 bits removed, by a layer's path; None before the first.
    rounding: dict[str, float] | None = None

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge:
            self._require_all_mergeable(adapter_names, safe_merge)
        layers = list(self.layers())
        result = super()._unload_and_optionally_merge(merge, progressbar, False, adapter_names)
        if merge:
            self.rounding = _merging.report(layers)
        return result

    def _require_all_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        if isinstance(adapter_names, str):
            raise TypeError(f"adapter_names should be a list of strings, got {adapter_names!r}.")
        for name in adapter_names or ():
            if name not in self.peft_config:
                raise ValueError(f"adapter_names must be of {', '.join(self.peft_config)}, got {name!r}")
        for path, layer in self.layers():
            names = layer.active_adapters if adapter_names is None else adapter_names
            if layer.current(names) is None:
                continue
            try:
                _merging.require_mergeable(layer)
                if safe_merge:
                    found = layer.merged_weight(names)
                    assert found is not None
                    _merging.require_finite(found[0], names)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

    # Mixed batches

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        return _mixed.hooks(self, *args, **kwargs)

    # Files

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: UpdateConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As PEFT does, and refuses tensors that do not fit before any is copied."""
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        _checkpoint.require_fitting(model, config, adapter_name, state)
        return state


class SurmModel(StructuredTuner):
    """A model adapted by SURM."""

    prefix = SurmLinear.prefix
    tuner_layer_cls = SurmLinear


class HydraModel(StructuredTuner):
    """A model adapted by HyDRA."""

    prefix = HydraLinear.prefix
    tuner_layer_cls = HydraLinear


class SivaModel(StructuredTuner):
    """A model adapted by SiVA."""

    prefix = SivaLinear.prefix
    tuner_layer_cls = SivaLinear
