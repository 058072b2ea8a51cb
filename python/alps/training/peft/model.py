"""A model with adapters, as a PEFT method."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper, register_peft_method
from torch import nn

from alps.errors import ArgumentError
from alps.heads import HeadSet
from alps.training import attention, quantised
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
        """Finds the rows of the heads; makes all checks before any module changes.

        Returns:
            The configuration with the fingerprint of the model; a copy if the caller uses it for a model with another.
        """
        model = self.model
        if restricted_projections(model):
            raise ArgumentError("the model is restricted already; alps.release(model) ends that")
        if any(layer.merged for layer in self._layers()):
            raise ArgumentError("expected a model without merged adapters, found some; unmerge them first")
        heads = peft_config.head_set
        found = attention.find(model, heads.geometry.component, wrapper=".base_layer", quantised=True)
        rows = found.rows(heads)
        projections: dict[str, nn.Module] = {}
        for name, axis in found.modules.items():
            module = model.get_submodule(name)
            base = module.base_layer if isinstance(module, AlpsLayer) else module
            projections[name] = attention.check_projection(name, base, axis)
        if not peft_config.inference_mode:
            quantised.keep_order(model)
        own = copy.copy(peft_config)
        fingerprint.check(own, projections, rows)
        axes = found.modules
        self._alps_rows = {name: (numbers, axes[name]) for name, numbers in rows.items() if len(numbers)}
        own.target_modules = sorted(self._alps_rows)
        if not peft_config.has_model or peft_config.fingerprint == own.fingerprint:
            vars(peft_config).update(vars(own), has_model=True)
            return peft_config
        for name, config in self.peft_config.items():
            if config is peft_config:
                self.peft_config[name] = own
        return own

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
        if not autocast_adapter_dtype:
            for layer in self._layers():
                layer.narrow(adapter_name)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters the active ones.

        Raises:
            ArgumentError: Two of them hold the same row. The active adapters are unchanged.
        """
        for layer in self._layers():
            layer.check_disjoint(adapter_name)
        super().set_adapter(adapter_name, inference_mode)

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str) -> None:
        """Adds an adapter that changes the base by the weighted sum of the changes of other adapters.

            model.add_weighted_adapter(["german", "python"], [0.5, 0.5], "both")

        The rows of the new adapter are those of all its adapters. A row becomes B + sum_i w_i (R_i - B), where B is the
        row of the base and R_i that of an adapter which holds it.

        Raises:
            ArgumentError: An adapter is unknown, the name of the new one is taken, or there is not one weight for each.
        """
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or not adapters:
            raise ArgumentError(f"adapters: expected some of {', '.join(self.peft_config)}, found {adapters}")
        if len(weights) != len(adapters) or len(set(adapters)) < len(adapters):
            raise ArgumentError(
                f"expected different adapters with a weight each, found {adapters} and weights {weights}"
            )
        if adapter_name in self.peft_config:
            raise ArgumentError(
                f"adapter_name: expected a new name, found that of an adapter, {adapter_name!r}"
            )
        configs: list[Any] = [self.peft_config[name] for name in adapters]
        heads = reduce(HeadSet.union, (it.head_set for it in configs))
        self.peft_config[adapter_name] = replace(configs[0], heads=heads, fingerprint=None, fingerprints=None)
        self.inject_adapter(self.model, adapter_name)
        for layer in self._layers():
            if adapter_name in layer.alps_rows:
                layer.set_weighted_sum(adapter_name, dict(zip(adapters, weights, strict=True)))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Gives `adapter_names`, the adapter of each sequence of a batch, to the layers during a forward pass."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ArgumentError("adapter_names: expected a model in evaluation mode, found one that trains")
        if unknown := set(names) - {*self.peft_config, "__base__"}:
            raise ArgumentError(
                f"adapter_names: expected some of {', '.join(self.peft_config)} or __base__, found "
                f"{', '.join(sorted(unknown))}"
            )
        # Beam search repeats each sequence, but for the encoder.
        repeated = [name for name in names for _ in range(kwargs.get("num_beams") or 1)]
        has_encoder = self.get_model_config(self.model).get("is_encoder_decoder")
        in_encoder = set(self.model.get_encoder().modules()) if has_encoder else set()

        def hook(module: nn.Module, positional: Any, keywords: Any) -> Any:
            return positional, {**keywords, "adapter_names": names if module in in_encoder else repeated}

        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, AlpsLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _layers(self) -> Iterator[AlpsLayer]:
        return (module for module in self.modules() if isinstance(module, AlpsLayer))


def register() -> None:
    """Registers the method with PEFT, unless it is registered."""
    if PEFT_TYPE not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=AlpsConfig, model_cls=AlpsModel)
