"""A model with adapters, as a PEFT method."""

import copy
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn

from alps.errors import ArgumentError
from alps.training import attention
from alps.training.peft import fingerprint
from alps.training.peft.config import PEFT_TYPE, AlpsConfig
from alps.training.peft.layer import AlpsLayer
from alps.training.projection import restricted_projections


class AlpsModel(BaseTuner):
    """A model with adapters that hold the rows of chosen heads."""

    prefix = "alps_"
    tuner_layer_cls = AlpsLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (the type that the base class gives it)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if not peft_config.has_model:
            peft_config.has_model = True
            return peft_config
        # The caller uses the object for another model as well, whose fingerprint is not that of this one.
        own = copy.copy(peft_config)
        for name, config in self.peft_config.items():
            if config is peft_config:
                self.peft_config[name] = own
        return own

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Finds the rows of the heads; makes all checks before any module changes."""
        if restricted_projections(model):
            raise ArgumentError("the model is restricted already; alps.release(model) ends that")
        if any(isinstance(module, AlpsLayer) and module.merged for module in model.modules()):
            raise ArgumentError("expected a model without merged adapters, found some; unmerge them first")
        heads = peft_config.head_set
        found = attention.find(model, heads.geometry.component, wrapper=".base_layer", quantised=True)
        rows = found.rows(heads)
        projections: dict[str, nn.Module] = {}
        for name, axis in found.modules.items():
            module = model.get_submodule(name)
            base = module.base_layer if isinstance(module, AlpsLayer) else module
            projections[name] = attention.check_projection(name, base, axis)
        fingerprint.check(peft_config, projections, rows)
        axes = found.modules
        self._alps_rows = {name: (numbers, axes[name]) for name, numbers in rows.items() if len(numbers)}
        peft_config.target_modules = sorted(self._alps_rows)

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: nn.Module,
        current_key: str, parameter_name: str | None = None,
    ) -> None:  # fmt: skip
        indices, axis = self._alps_rows[current_key]
        layer = target if isinstance(target, AlpsLayer) else AlpsLayer(target, axis)
        layer.add(adapter_name, indices)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Narrows the rows of an adapter to the format of the base if PEFT is asked not to widen adapters."""
        for layer in self.modules():
            if not autocast_adapter_dtype and isinstance(layer, AlpsLayer):
                layer.narrow(adapter_name)


def register() -> None:
    """Registers the method with PEFT, unless it is registered."""
    if PEFT_TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=AlpsConfig, model_cls=AlpsModel)
