"""The methods as PEFT runs them: layers are found and checked before any is changed, then wrapped."""

from collections.abc import Iterator
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
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

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """As PEFT does; a failure leaves a configuration that the model has under the same name."""
        configs: dict[str, Any] = getattr(model, "peft_config", {})
        known = dict(configs)
        try:
            super().__init__(model, *args, **kwargs)
        except BaseException:
            configs.update(known)
            raise

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """As PEFT does, after every check: a failure leaves the model as it was."""
        config: UpdateConfig = self.peft_config[adapter_name]
        before = _checkpoint.Before(self, model, adapter_name)
        try:
            self._plans = _planning.plans(self, model, adapter_name, state_dict)
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                state_dict=state_dict,
            )
            _checkpoint.require_modules(model, config, adapter_name)
        except BaseException:
            before.restore()
            raise
        finally:
            self._plans = {}
        self.before = before if config.awaits_tensors else None

    #: What the model was before an adapter that is made to be loaded, until its tensors are there.
    before: "_checkpoint.Before | None" = None

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
            self._replace_module(parent, target_name, layer, target)

    def layers(self) -> Iterator[tuple[str, StructuredLinear]]:
        """Path and module of every adapted layer."""
        for path, module in self.model.named_modules():
            if isinstance(module, StructuredLinear):
                yield path, module

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
        layers = list(self.layers())
        if merge:
            self._require_all_mergeable(adapter_names, safe_merge)
        else:
            for _, layer in layers:
                if layer.merged:
                    layer.unmerge()
        result = super()._unload_and_optionally_merge(merge, progressbar, False, adapter_names)
        if merge:
            _merging.report(layers)
        return result

    def _require_all_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        if isinstance(adapter_names, str):
            raise TypeError(f"adapter_names should be a list of strings, got {adapter_names!r}.")
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
        biases = cls._get_learnable_bias_state_dict(model, model.state_dict(), config)
        _checkpoint.require_fitting(model, config, adapter_name, state, biases)
        return state

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, Tensor], config: UpdateConfig
    ) -> dict[str, Tensor]:
        """As PEFT does, but for those of modules that are saved whole: twice in a file they would not be read back."""
        biases = super()._get_learnable_bias_state_dict(model, state_dict, config)
        return _checkpoint.biases_outside_wrappers(model, biases)


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
