"""The methods as PEFT runs them: layers are found and checked before any is changed, then wrapped."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from surm_kernels.peft import _checkpoint, _lora_export, _merging, _mixed, _planning
from surm_kernels.peft._adapter_form import SurmAdapterLinear, output_projections
from surm_kernels.peft.config import SurmConfig, UpdateConfig
from surm_kernels.peft.layer import HydraLinear, SivaLinear, StructuredLinear, SurmLinear, showing

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
        with showing(model, adapter_name):
            self._inject(
                model,
                adapter_name,
                state_dict,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
            )

    def _inject(self, model: nn.Module, adapter_name: str, state: dict[str, Tensor] | None, **options: bool) -> None:
        config: UpdateConfig = self.peft_config[adapter_name]
        before = _checkpoint.Before(self, model, adapter_name)
        try:
            self._plans = _planning.plans(self, model, adapter_name, state)
            super().inject_adapter(model, adapter_name, state_dict=state, **options)
            _checkpoint.require_modules(model, config, adapter_name)
        except BaseException:
            before.restore()
            raise
        finally:
            self._plans = {}
        self.before = before if config.awaits_tensors else None

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        with showing(self.model, adapter_name):
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

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
            layer = self.layer_class(peft_config)(target, adapter_name)
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

    def layer_class(self, config: UpdateConfig) -> type[StructuredLinear]:
        """What a layer becomes by a configuration."""
        return self.tuner_layer_cls

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Puts a module in the place of another; its tensors are where they belong already.

        PEFT copies the child's weight as well, which fails where that is an embedding with trainable tokens.
        """
        setattr(parent, child_name, new_module)

    def adapted_layers(self) -> Iterator[tuple[str, StructuredLinear]]:
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
        self.rounding = _merging.report(self.adapted_layers())

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
        layers = list(self.adapted_layers())
        result = super()._unload_and_optionally_merge(merge, progressbar, False, adapter_names)
        if merge:
            self.rounding = _merging.report(layers)
        return result

    def _require_all_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        if isinstance(adapter_names, str):
            raise TypeError(f"adapter_names should be a list of strings, got {adapter_names!r}.")
        owners = _merging.owners(self.model)
        for name in adapter_names or ():
            if name not in self.peft_config:
                raise ValueError(f"adapter_names must be of {', '.join(self.peft_config)}, got {name!r}")
        for path, layer in self.adapted_layers():
            names = layer.active_adapters if adapter_names is None else adapter_names
            if layer.current(names) is None:
                continue
            try:
                layer.require_mergeable()
                _merging.require_own(layer.get_base_layer(), owners)
                if safe_merge:
                    found = layer.merged_weight(names)
                    assert found is not None
                    _merging.require_finite(found[0], names)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

    def lora_losses(
        self, adapter_name: str = "default", ranks: Sequence[int] = (4, 8, 16, 32, 64, 128)
    ) -> dict[int, float]:
        """Prints, and gives by rank, the share of an adapter that is lost when it becomes LoRA of this rank.

        Before `peft.convert_to_lora(model, rank)`, which says nothing of it. The share is that of the Frobenius norm
        of all updates. It takes the singular values of every update, seconds for one of 4096 x 4096.

        Raises:
            ValueError: no layer has the adapter, or it cannot become LoRA.
        """
        shares = _lora_export.losses((layer for _, layer in self.adapted_layers()), adapter_name, ranks)
        _lora_export.show(shares)
        return shares

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

    def layer_class(self, config: UpdateConfig) -> type[StructuredLinear]:
        """Which depends on the form."""
        return SurmAdapterLinear if isinstance(config, SurmConfig) and config.form == "adapter" else SurmLinear

    def _prepare_adapter_config(self, peft_config: SurmConfig, model_config: dict[str, Any]) -> Any:
        """As PEFT does; the adapter form has other default targets."""
        if peft_config.form == "adapter" and peft_config.target_modules is None:
            peft_config.target_modules = output_projections(model_config["model_type"])
        return super()._prepare_adapter_config(peft_config, model_config)


class HydraModel(StructuredTuner):
    """A model adapted by HyDRA."""

    prefix = HydraLinear.prefix
    tuner_layer_cls = HydraLinear


class SivaModel(StructuredTuner):
    """A model adapted by SiVA."""

    prefix = SivaLinear.prefix
    tuner_layer_cls = SivaLinear
