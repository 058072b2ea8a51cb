"""A projection with adapters that replace some of its rows."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from alps.errors import ArgumentError, CheckpointError, ModelError, WeightsError
from alps.training import attention, quantised
from alps.training.autograd import RowsIn, project, replace_outputs, with_rows
from alps.training.projection import select_rows


class AlpsLayer(nn.Module, BaseTunerLayer):
    """A projection whose active adapters replace some of its rows (columns, for a Conv1D).

    The rows are in float32 or wider, unless PEFT is asked not to widen adapters. Several adapters can be active or merged
    at once if no two hold the same row.

    A base that is an ordinary Linear or Conv1D is multiplied once, with the rows in place. Any other base, such as a
    quantised one or one with hooks, computes its outputs, and those of the rows are computed anew and replace them.
    """

    adapter_layer_names = ("alps_rows", "alps_bias_rows")
    other_param_names = ("alps_indices",)

    def __init__(self, base_layer: nn.Module, axis: int) -> None:
        """Wraps `base_layer`; `axis` is the axis of its weight that holds the outputs."""
        super().__init__()
        self.base_layer: Any = base_layer
        self.axis = axis
        self.out_features, self.in_features = attention.features(base_layer, axis)
        self.alps_rows = nn.ParameterDict()
        self.alps_bias_rows = nn.ParameterDict()
        self.alps_indices = BufferDict(persistent=True)
        # Merging keeps the rows that it overwrites here, so that unmerging restores the same bits.
        self.alps_overwritten_rows = BufferDict(persistent=False)
        self.alps_overwritten_bias_rows = BufferDict(persistent=False)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, adapter: str, indices: Tensor) -> None:
        """Adds an adapter of the rows at `indices`, with the values of the base."""
        self.alps_indices[adapter] = indices.to(self.base_layer.weight.device)
        whole = quantised.float_weight(self.base_layer)
        self.alps_rows[adapter] = nn.Parameter(select_rows(whole, self.alps_indices[adapter], self.axis))
        if (bias := self.base_layer.bias) is not None:
            self.alps_bias_rows[adapter] = nn.Parameter(select_rows(bias, self.alps_indices[adapter], 0))

    def narrow(self, adapter: str) -> None:
        """Converts the rows of an adapter to the number format of the base."""
        dtype = self.base_layer.weight.dtype
        for rows in (self.alps_rows, self.alps_bias_rows):
            if adapter in rows and not quantised.is_packed(self.base_layer.weight):
                rows[adapter].data = rows[adapter].data.to(dtype)

    def forward(self, inputs: Tensor, adapter_names: list[str] | None = None) -> Tensor:
        """Projects [..., in] to [..., out].

        Args:
            inputs: [..., in].
            adapter_names: The adapter of each sequence of a batch [batch, ..., in], "__base__" for none; only for
                inference. The active adapters by default.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None and not self.disable_adapters:
            return self._project_mixed(inputs, adapter_names)
        base, active = self.base_layer, self._active_rows()
        if active is None:
            output: Tensor = base(inputs)
            return output
        rows, bias_rows, indices = active
        if attention.is_ordinary(base, self.axis):
            return project(inputs, base.weight, base.bias, rows, bias_rows, indices, self.axis)
        return replace_outputs(base(inputs), inputs, rows, bias_rows, indices, self.axis)

    def _project_mixed(self, inputs: Tensor, adapter_names: list[str]) -> Tensor:
        """Projects a batch whose sequences have an adapter each."""
        if len(adapter_names) != len(inputs):
            raise ArgumentError(
                f"adapter_names: expected one for each of {len(inputs)} inputs, found {len(adapter_names)}"
            )
        if self.merged:
            raise ArgumentError(
                f"adapter_names: expected no merged adapters, found {', '.join(self.merged_adapters)}; call "
                "`unmerge_adapter` first"
            )
        outputs: Tensor = self.base_layer(inputs)
        for name in set(adapter_names) & self.alps_rows.keys():
            places = [place for place, it in enumerate(adapter_names) if it == name]
            sequences = torch.tensor(places, device=outputs.device)
            rows, bias_rows = self.alps_rows[name], self.alps_bias_rows.get(name, None)
            indices = self.alps_indices[name]
            own, given = outputs[sequences], inputs[sequences]
            part = replace_outputs(own, given, rows, bias_rows, indices, self.axis)
            outputs = outputs.index_copy(0, sequences, part)
        return outputs

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters the active ones.

        Raises:
            ArgumentError: Two of them hold the same row.
        """
        self.check_disjoint(adapter_names)
        super().set_adapter(adapter_names, inference_mode)

    @torch.no_grad()
    def set_weighted_sum(self, adapter: str, weights: dict[str, float]) -> None:
        """Adds the weighted changes of other adapters to the rows of an adapter, which are those of the base."""
        indices = self.alps_indices[adapter]
        for container, axis in ((self.alps_rows, self.axis), (self.alps_bias_rows, 0)):
            if adapter not in container:
                continue
            base = container[adapter].clone()
            for name, weight in weights.items():
                if name in container:
                    places = torch.searchsorted(indices, self.alps_indices[name])
                    change = container[name].to(base.dtype) - base.index_select(axis, places)
                    container[adapter].index_add_(axis, places, change, alpha=weight)

    @property
    def weight(self) -> Tensor:
        """The weight with the rows of the active adapters, for code that reads it instead of calling the module."""
        return self._with_rows("weight")

    @property
    def bias(self) -> Any:
        """The bias, likewise."""
        return None if self.base_layer.bias is None else self._with_rows("bias")

    def _with_rows(self, name: str) -> Tensor:
        whole: Tensor = getattr(self.base_layer, name)
        active = self._active_rows()
        if active is None or quantised.is_packed(whole) or whole.is_meta:
            return whole
        rows, bias_rows, indices = active
        if name == "bias":
            assert bias_rows is not None
            return with_rows(whole, bias_rows, indices, 0, RowsIn.COPY)
        return with_rows(whole, rows, indices, self.axis, RowsIn.COPY)

    def _active_rows(self) -> tuple[Tensor, Tensor | None, Tensor] | None:
        """The rows, the entries of the bias and the indices of the active adapters; None if none changes the base."""
        active = [name for name in self.active_adapters if name in self.alps_rows]
        if self.disable_adapters or self.merged or not active:
            return None
        bias_rows = None
        if self.base_layer.bias is not None:
            bias_rows = _concatenate([self.alps_bias_rows[name] for name in active], 0)
        rows = _concatenate([self.alps_rows[name] for name in active], self.axis)
        return rows, bias_rows, _concatenate([self.alps_indices[name] for name in active], 0)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Overwrites rows of the base with those of the named adapters, or of the active ones if none are named.

        Adapters that are merged one after the other may hold the same rows, and the last one counts.

        Raises:
            ArgumentError: Two of the adapters hold the same row.
            ModelError: The base is quantised.
            WeightsError: With `safe_merge`, a row holds a number that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.alps_rows]
        self.check_disjoint(names)
        if names and quantised.is_packed(self.base_layer.weight):
            raise ModelError(
                f"adapter {names[0]}: expected weights that are floating-point numbers, found quantised ones, into "
                "which no rows can be merged; load the base without quantisation and merge the adapter there"
            )
        for name in names:
            if safe_merge and not all(bool(rows[name].isfinite().all()) for rows, *_ in self._row_storage()):
                raise WeightsError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken: expected finite rows, "
                    "found some that are not"
                )
        for name in names:
            for rows, overwritten, whole, axis in self._row_storage():
                overwritten[name] = whole.index_select(axis, self.alps_indices[name])
                whole.index_copy_(axis, self.alps_indices[name], rows[name].to(whole.dtype))
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the overwritten rows of the base, to the bit."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            for _, overwritten, whole, axis in self._row_storage():
                whole.index_copy_(axis, self.alps_indices[name], overwritten[name].to(whole.dtype))
                del overwritten[name]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """Moves an adapter to the device of the base, but keeps the dtype of its rows, unlike PEFT's own method."""
        target = device or self.base_layer.weight.device
        for container in (self.alps_rows, self.alps_bias_rows, self.alps_indices):
            if adapter_name in container and not container[adapter_name].is_meta:
                container[adapter_name].data = container[adapter_name].data.to(target)

    def _row_storage(self) -> Iterator[tuple[Any, Any, Tensor, int]]:
        """For the weight, and the bias if any: adapters' rows, overwritten rows, the tensor, its axis of outputs."""
        base = self.base_layer
        yield self.alps_rows, self.alps_overwritten_rows, base.weight.detach(), self.axis
        if base.bias is not None:
            yield self.alps_bias_rows, self.alps_overwritten_bias_rows, base.bias.detach(), 0

    def check_disjoint(self, adapters: str | list[str]) -> None:
        """Refuses adapters that hold the same row."""
        if isinstance(adapters, str):
            return
        adapters = [name for name in adapters if name in self.alps_indices]
        if len(adapters) < 2:
            return
        indices = torch.cat([self.alps_indices[name] for name in adapters])
        if len(set(indices.tolist())) < len(indices):
            raise ArgumentError(
                f"the adapters {', '.join(adapters)} hold the same rows, of which only one can be; "
                "expected adapters of different heads and key/value groups"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for adapter in self.alps_rows:
            if f"{prefix}alps_rows.{adapter}" not in state_dict:
                continue
            saved, own = state_dict.get(f"{prefix}alps_indices.{adapter}"), self.alps_indices[adapter]
            if saved is None or not torch.equal(saved.to(own.device), own):
                found = "none" if saved is None else f"{len(saved)} others"
                raise CheckpointError(
                    f"adapter {adapter}: {prefix.removesuffix('.')}: expected the {len(own)} rows of the heads in "
                    f"its configuration, found {found}"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _concatenate(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, axis)
