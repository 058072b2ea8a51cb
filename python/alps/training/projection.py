"""A projection of which only some rows train.

The frozen rows never move, whatever the optimizer: it skips a parameter whose gradient is None, so neither momentum nor
the weight decay of AdamW changes it. `weight` and `bias` of a restricted projection never have a gradient; the rows that
train are parameters of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.pytorch_utils import Conv1D

from alps.training import optimizer_state
from alps.training.attention import Projection
from alps.training.autograd import project

_WHOLE = {"rows": "weight", "bias_rows": "bias"}
"""The row parameters, with the name of the parameter that each holds rows of."""


class RestrictedProjection(nn.Module):
    """Replaces a Linear or a Conv1D, and trains only some of its rows (columns, for a Conv1D).

    It saves and loads like the module that it replaces: its state dict has `weight` and `bias` only, with the
    trained rows in place.

    Attributes:
        weight: [out, in] with axis 0, [in, out] with axis 1. Never trains; stale at `indices`.
        bias: [out], or None. Never trains; stale at `indices`.
        rows: The rows of the weight that train, in float32 or wider; None if there are none.
        bias_rows: The entries of the bias that train, in float32 or wider; None if there are none.
        indices: int64, ascending: the positions of the rows.
        axis: The axis of the weight that holds the outputs.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: nn.Parameter | None
    bias_rows: nn.Parameter | None
    indices: Tensor

    def __init__(self, module: Projection, indices: Tensor, axis: int) -> None:
        """Shares the weight and the bias of `module` (a Linear with axis 0, a Conv1D with axis 1)."""
        super().__init__()
        self.axis = axis
        parameters = dict(module.named_parameters())
        self.register_parameter("weight", parameters["weight"])
        self.register_parameter("bias", parameters.get("bias"))
        self.out_features, self.in_features = self.weight.shape if axis == 0 else self.weight.shape[::-1]
        self._indices = indices.cpu()
        self.register_buffer("indices", self._indices.to(self.weight.device), persistent=False)
        for name, whole in _WHOLE.items():
            rows = None
            if whole in parameters and len(indices):
                rows = nn.Parameter(select_rows(parameters[whole], indices, self._axis_of(whole)))
            self.register_parameter(name, rows)
        self._trained_before = tuple(name for name, it in parameters.items() if it.requires_grad)
        self.train(module.training)
        optimizer_state.keep_rows(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        optimizer_state.keep_rows(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Projects [..., in] to [..., out]."""
        return project(inputs, self.weight, self.bias, self.rows, self.bias_rows, self.indices, self.axis)

    def extra_repr(self) -> str:
        """The sizes, as a Linear shows them, with the number of rows that train."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, trainable={len(self.indices)}"
        )

    def row_parameters(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The parameters that train, each with the dtype that a checkpoint stores it in."""
        pairs = [(getattr(self, name), getattr(self, whole)) for name, whole in _WHOLE.items()]
        return [(rows, whole.dtype) for rows, whole in pairs if rows is not None]

    def freeze(self) -> None:
        """Freezes the weight and the bias."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                freeze(parameter)

    @torch.no_grad()
    def release(self) -> Projection:
        """Returns the module that this one replaced, with the trained rows in place.

        It takes over the weight and the bias, so this module must not be used any more.
        """
        for name, whole in _WHOLE.items():
            if (rows := getattr(self, name)) is not None:
                tensor = getattr(self, whole)
                tensor.index_copy_(self._axis_of(whole), self.indices, rows.to(tensor.dtype))
        module: Projection
        with torch.device("meta"):
            if self.axis == 0:
                module = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
            else:
                module = Conv1D(self.out_features, self.in_features)
        for name in _WHOLE.values():
            if (parameter := getattr(self, name)) is not None:
                parameter.requires_grad_(name in self._trained_before)
            setattr(module, name, parameter)
        return module.train(self.training)

    def _axis_of(self, whole: str) -> int:
        return self.axis if whole == "weight" else 0

    @torch.no_grad()
    def _with_rows(self, tensor: Tensor, rows: Tensor, whole: str) -> Tensor:
        if isinstance(tensor, DTensor):
            # The rows and the weight are sharded independently: a shard of one does not match a shard of the other.
            full = self._with_rows(tensor.full_tensor(), _full(rows), whole)
            return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
        indices = self._indices.to(tensor.device)
        return tensor.detach().index_copy(self._axis_of(whole), indices, rows.to(tensor.device, tensor.dtype))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, whole in _WHOLE.items():
            if (rows := destination.pop(prefix + name, None)) is not None:
                destination[prefix + whole] = self._with_rows(destination[prefix + whole], rows, whole)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], *args: Any,
    ) -> None:  # fmt: skip
        for name, whole in _WHOLE.items():
            # Rows in the state may be stale; the weight is what was saved.
            state_dict.pop(prefix + name, None)
            own, loaded = getattr(self, name), state_dict.get(prefix + whole)
            # torch refuses a weight of another shape below.
            if own is not None and loaded is not None and loaded.shape == getattr(self, whole).shape:
                rows = select_rows(_full(loaded), self._indices, self._axis_of(whole)).to(own.dtype)
                if isinstance(own, DTensor):
                    rows = distribute_tensor(rows, own.device_mesh, own.placements, src_data_rank=None)
                state_dict[prefix + name] = rows
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        self._place_indices()
        missing_keys[:] = [key for key in missing_keys if key not in {prefix + name for name in _WHOLE}]

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "RestrictedProjection":
        """Moves and converts the module, but never narrows the rows."""
        row_parameters = [rows for rows, _ in self.row_parameters()]
        wide = {id(tensor) for rows in row_parameters for tensor in (rows, rows.grad) if tensor is not None}

        def convert(tensor: Tensor) -> Tensor:
            converted = function(tensor)
            if id(tensor) in wide and converted.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(converted.device)
            return converted

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        self._place_indices()
        return self

    def _place_indices(self) -> None:
        self.indices = self._indices.to(
            self.weight.device
        )  # from a copy, since indices on `meta` hold no data


def restricted_projections(model: nn.Module) -> dict[str, RestrictedProjection]:
    """The restricted projections of a model by name."""
    return {name: it for name, it in model.named_modules() if isinstance(it, RestrictedProjection)}


def select_rows(whole: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Copies the rows at `indices` in float32 or wider, since narrower numbers would round small steps away."""
    rows = whole.detach().index_select(axis, indices.to(whole.device))
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def freeze(parameter: nn.Parameter) -> None:
    """Stops the training of a parameter."""
    parameter.requires_grad_(False)
    parameter.grad = None  # else an optimizer made earlier would still apply it


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
