"""A projection of which only some rows train."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.pytorch_utils import Conv1D

from alps.training import precision
from alps.training.attention import Projection
from alps.training.compute import project

_TRAINED = {"rows": "weight", "bias_rows": "bias"}
"""The parameters that train, with what they are rows of."""


class RestrictedProjection(nn.Module):
    """Stands in for a Linear or a Conv1D, and trains only some of its rows (a Conv1D's columns).

    Whoever saves or loads it sees the projection that it stands for: its state dict has `weight` and
    `bias` only, with the trained rows in their places.

    Attributes:
        weight: [out, in] with axis 0, [in, out] with axis 1. Never trains; stale at `indices`.
        bias: [out], or None. Never trains; stale at `indices`.
        rows: The rows of the weight that train, in float32 or wider, since small steps vanish in the
            rounding of narrower numbers; None if there are none.
        bias_rows: The entries of the bias that train, likewise.
        indices: int64, ascending: where the rows stand.
        axis: The axis of the weight that is the outputs.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: nn.Parameter | None
    bias_rows: nn.Parameter | None
    indices: Tensor

    def __init__(self, module: Projection, indices: Tensor, axis: int) -> None:
        """Makes a stand-in for `module`, which shares its weight and bias and is not changed by this.

        Args:
            module: A Linear with axis 0, a Conv1D with axis 1.
            indices: int64, ascending: the rows to train.
            axis: The axis of the weight that is the outputs.
        """
        super().__init__()
        self.axis = axis
        parameters = dict(module.named_parameters())
        self.register_parameter("weight", parameters["weight"])
        self.register_parameter("bias", parameters.get("bias"))
        self.out_features, self.in_features = self.weight.shape if axis == 0 else self.weight.shape[::-1]
        self._indices = indices.cpu()
        self.register_buffer("indices", self._indices.to(self.weight.device), persistent=False)
        for name, of in _TRAINED.items():
            trains = of in parameters and len(indices) > 0
            rows = nn.Parameter(self._select(parameters[of], of)) if trains else None
            self.register_parameter(name, rows)
        self._trained_before = tuple(name for name, it in parameters.items() if it.requires_grad)
        self.train(module.training)
        precision.watch(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        precision.watch(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Projects [..., in] to [..., out]."""
        return project(inputs, self.weight, self.bias, self.rows, self.bias_rows, self.indices, self.axis)

    def extra_repr(self) -> str:
        """The sizes, as a Linear shows them, with the number of rows that train."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, trainable={len(self.indices)}"
        )

    def trained(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The parameters that train, each with the number format that a checkpoint rounds it to."""
        pairs = [(getattr(self, name), getattr(self, of)) for name, of in _TRAINED.items()]
        return [(rows, whole.dtype) for rows, whole in pairs if rows is not None]

    def freeze(self) -> None:
        """Stops the training of the weight and the bias, whoever trained them before."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                freeze(parameter)

    @torch.no_grad()
    def released(self) -> Projection:
        """The projection that this stands for, with the trained rows in their places.

        It has the weight and the bias of this one, which is of no use from here on.
        """
        for name, of in _TRAINED.items():
            if (rows := getattr(self, name)) is not None:
                whole = getattr(self, of)
                whole.index_copy_(self._axis(of), self.indices, rows.to(whole.dtype))
        module: Projection
        with torch.device("meta"):
            if self.axis == 0:
                module = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
            else:
                module = Conv1D(self.out_features, self.in_features)
        for name in _TRAINED.values():
            parameter = getattr(self, name)
            if parameter is not None:
                parameter.requires_grad_(name in self._trained_before)
            setattr(module, name, parameter)
        return module.train(self.training)

    def _axis(self, of: str) -> int:
        return self.axis if of == "weight" else 0

    def _select(self, whole: Tensor, of: str) -> Tensor:
        """The rows at the indices, in the number format in which they train."""
        rows = whole.detach().index_select(self._axis(of), self._indices.to(whole.device))
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    @torch.no_grad()
    def _folded(self, whole: Tensor, rows: Tensor, of: str) -> Tensor:
        if isinstance(whole, DTensor):
            # The shards of the rows and of the weight are not those of the same rows.
            full = self._folded(whole.full_tensor(), _full(rows), of)
            return distribute_tensor(full, whole.device_mesh, whole.placements, src_data_rank=None)
        indices = self._indices.to(whole.device)
        return whole.detach().index_copy(self._axis(of), indices, rows.to(whole.device, whole.dtype))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, of in _TRAINED.items():
            if (rows := destination.pop(prefix + name, None)) is not None:
                destination[prefix + of] = self._folded(destination[prefix + of], rows, of)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, of in _TRAINED.items():
            # Rows that the state brings may be stale, while the weight is what was saved.
            state_dict.pop(prefix + name, None)
            own, whole = getattr(self, name), state_dict.get(prefix + of)
            # A weight of another shape is refused below.
            if own is not None and whole is not None and whole.shape == getattr(self, of).shape:
                rows = self._select(_full(whole), of).to(own.dtype)
                if isinstance(own, DTensor):
                    rows = distribute_tensor(rows, own.device_mesh, own.placements, src_data_rank=None)
                state_dict[prefix + name] = rows
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._place_indices()
        own_keys = {prefix + name for name in _TRAINED}
        missing_keys[:] = [key for key in missing_keys if key not in own_keys]

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "RestrictedProjection":
        """Moves and converts the module, but never narrows the rows."""
        trained = [rows for rows, _ in self.trained()]
        kept = {id(tensor) for rows in trained for tensor in (rows, rows.grad) if tensor is not None}

        def convert(tensor: Tensor) -> Tensor:
            converted = function(tensor)
            if id(tensor) in kept and converted.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(converted.device)
            return converted

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        self._place_indices()
        return self

    def _place_indices(self) -> None:
        """Puts the indices where the weight is, which may be the first place that holds data at all."""
        self.indices = self._indices.to(self.weight.device)


def freeze(parameter: nn.Parameter) -> None:
    """Stops the training of a parameter."""
    parameter.requires_grad_(False)
    parameter.grad = None  # an optimizer from before would go on to apply it


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
