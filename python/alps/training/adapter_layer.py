"""One projection under the adapters of PEFT."""

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from alps.errors import ArgumentError, CheckpointError, WeightsError
from alps.training.attention import Projection
from alps.training.compute import project

_PARTS = {"alps_rows": "weight", "alps_bias_rows": "bias"}


class AlpsLayer(nn.Module, BaseTunerLayer):
    """A projection some of whose rows (a Conv1D's columns) come from the active adapters.

    The rows are in float32 or wider. Several adapters can be active or merged at once if no two of
    them hold the same row.
    """

    adapter_layer_names = ("alps_rows", "alps_bias_rows")
    other_param_names = ("alps_indices",)

    def __init__(self, base_layer: Projection, axis: int) -> None:
        """Wraps `base_layer`, whose outputs are on `axis` of its weight."""
        super().__init__()
        self.base_layer = base_layer
        self.axis = axis
        self.alps_rows = nn.ParameterDict()
        self.alps_bias_rows = nn.ParameterDict()
        self.alps_indices = BufferDict(persistent=True)
        # What merging overwrites, for the same bits after unmerging.
        self.alps_merged_over = nn.ModuleDict(
            {part: BufferDict(persistent=False) for part in _PARTS.values()}
        )
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add(self, adapter: str, indices: Tensor) -> None:
        """Adds an adapter that holds the rows at `indices`, as they are in the base."""
        self.alps_indices[adapter] = indices.to(self.base_layer.weight.device)
        for rows, (whole, axis) in self._parts().items():
            selected = whole.detach().index_select(axis, self.alps_indices[adapter])
            wide = selected.to(torch.promote_types(selected.dtype, torch.float32))
            getattr(self, rows)[adapter] = nn.Parameter(wide)

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Projects [..., in] to [..., out]."""
        if args or kwargs:
            raise ArgumentError(f"expected no arguments but the inputs, found {[*args, *kwargs]}")
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.alps_rows]
        if self.disable_adapters or self.merged or not active:
            output: Tensor = self.base_layer(inputs)
            return output
        self._check_disjoint(active)
        base = self.base_layer
        rows = _together([self.alps_rows[name] for name in active], self.axis)
        indices = _together([self.alps_indices[name] for name in active], 0)
        bias_rows = None
        if base.bias is not None:
            bias_rows = _together([self.alps_bias_rows[name] for name in active], 0)
        return project(inputs, base.weight, base.bias, rows, bias_rows, indices, self.axis)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes the rows of adapters, the active ones if none are named, over those of the base.

        Raises:
            ArgumentError: Two adapters hold the same row.
            WeightsError: With `safe_merge`, a row holds a number that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.alps_rows]
        self._check_disjoint([*self.merged_adapters, *names])
        for name in names:
            rows = [getattr(self, rows)[name] for rows in self._parts()]
            if safe_merge and not all(bool(part.isfinite().all()) for part in rows):
                raise WeightsError(f"adapter {name}: expected finite rows, found some that are not")
        for name in names:
            indices = self.alps_indices[name]
            for rows_name, (whole, axis) in self._parts().items():
                over = self.alps_merged_over[_PARTS[rows_name]]
                over[name] = whole.detach().index_select(axis, indices)  # type: ignore[operator]
                whole.detach().index_copy_(axis, indices, getattr(self, rows_name)[name].to(whole.dtype))
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Gives the base its rows back, to the bit."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            for rows_name, (whole, axis) in self._parts().items():
                over: Any = self.alps_merged_over[_PARTS[rows_name]]
                whole.detach().index_copy_(axis, self.alps_indices[name], over[name].to(whole.dtype))
                del over[name]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves an adapter to the base; does not round its rows to the base's number format, as PEFT would."""
        target = device or self.base_layer.weight.device
        for container in (self.alps_rows, self.alps_bias_rows, self.alps_indices):
            if adapter_name in container and not container[adapter_name].is_meta:
                container[adapter_name].data = container[adapter_name].data.to(target)

    def _parts(self) -> dict[str, tuple[Tensor, int]]:
        """The names of the row parameters, with what they are rows of, and on which axis."""
        parts = {"alps_rows": (self.base_layer.weight, self.axis)}
        if self.base_layer.bias is not None:
            parts["alps_bias_rows"] = (self.base_layer.bias, 0)
        return parts

    def _check_disjoint(self, adapters: list[str]) -> None:
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


def _together(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, axis)
