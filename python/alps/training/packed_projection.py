"""A Linear that bitsandbytes has packed, of which only some rows train.

A packed weight cannot hold the trained rows. So the packed module computes its outputs, and those of the rows are computed
anew from rows in float32 and replace them. No state of such a module would be that of an ordinary one with the trained rows
in place, so that none is saved: `release` makes an ordinary Linear of it, with the weight dequantised and the rows in place.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from alps.errors import ModelError
from alps.training import optimizer_hooks, quantised
from alps.training.autograd import replace_outputs, write_rows
from alps.training.projection import RestrictedModule, freeze, keep_wide, select_rows


class PackedProjection(RestrictedModule):
    """A packed Linear with rows that train beside its weight.

    Attributes:
        base_layer: The packed Linear, frozen.
        rows: The rows of the weight that train, [n, in] in float32; None if there are none.
        bias_rows: The entries of the bias that train, [n] in float32; None if there are none.
        indices: int64, ascending: the positions of the rows.
    """

    def __init__(self, base_layer: nn.Linear, indices: Tensor, name: str) -> None:
        """Wraps `base_layer`, whose place in its model the caller gives to this module."""
        super().__init__()
        self._name = name
        self._trained_before = [it for it in base_layer.parameters() if it.requires_grad]
        self.base_layer: Any = base_layer
        weight = quantised.float_weight(base_layer)
        indices = indices.to(weight.device)
        self.register_buffer("indices", indices, persistent=False)
        self.rows = self.bias_rows = None
        if len(indices):
            self.rows = nn.Parameter(select_rows(weight, indices, 0))
            if base_layer.bias is not None:
                self.bias_rows = nn.Parameter(select_rows(base_layer.bias, indices, 0))
        optimizer_hooks.keep_rows(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Projects [..., in] to [..., out]."""
        outputs: Tensor = self.base_layer(inputs)
        if self.rows is None:
            return outputs
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            optimizer_hooks.warn_if_frozen(self, self.rows)
        return replace_outputs(outputs, inputs, self.rows, self.bias_rows, self.indices, axis=0)

    @property
    def weight(self) -> Tensor:
        """The packed weight, without the trained rows, for code that asks for its device."""
        weight: Tensor = self.base_layer.weight
        return weight

    def extra_repr(self) -> str:
        """The number of rows that train."""
        return f"trainable={len(self.indices)}"

    def row_parameters(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The parameters that train, each with its own dtype, since no checkpoint rounds them."""
        return [(rows, rows.dtype) for _, rows in self.named_rows()]

    def named_rows(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that train, by the names that they had in the model when it was restricted."""
        for name, rows in (("rows", self.rows), ("bias_rows", self.bias_rows)):
            if rows is not None:
                yield f"{self._name}.{name}", rows

    def restricted_parameters(self) -> list[nn.Parameter]:
        """The packed weight, the whole bias and the rows that train."""
        return list(self.parameters())

    def biases(self) -> list[nn.Parameter]:
        """The whole bias, if there is one."""
        return [] if self.base_layer.bias is None else [self.base_layer.bias]

    def freeze(self) -> None:
        """Freezes the packed module."""
        for parameter in self.base_layer.parameters():
            freeze(parameter)

    def write(self) -> None:
        """Does nothing: the rows stay beside the packed weight."""

    @torch.no_grad()
    def release(self, dtype: torch.dtype) -> nn.Module:
        """The module for its place from now on: a Linear with the rows in place; the packed one if no rows train.

        Args:
            dtype: Of the weight of the Linear, that of its inputs.
        """
        optimizer_hooks.forget_rows(self)
        base = self.base_layer
        for parameter in self._trained_before:
            parameter.requires_grad_(True)
        if self.rows is None:
            return base  # type: ignore[no-any-return]
        weight = quantised.float_weight(base).to(dtype, copy=True)
        linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        write_rows(weight, self.rows, self.indices, 0)
        if self.bias_rows is not None:
            linear.bias = nn.Parameter(base.bias.to(dtype, copy=True), base.bias.requires_grad)
            write_rows(linear.bias, self.bias_rows, self.indices, 0)
        if (
            hook := getattr(base, "_hf_hook", None)
        ) is not None:  # accelerate's, which moves inputs to its device
            remove_hook_from_module(base)
            add_hook_to_module(linear, hook)
        return linear.train(self.training)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._refuse_state()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._refuse_state()

    def _refuse_state(self) -> NoReturn:
        kind = type(self.base_layer).__name__
        raise ModelError(
            f"{self._name}: expected a weight that can hold the trained rows, found a packed one ({kind}), whose state is "
            "not that of the trained model; call alps.release(model) before saving or loading, which makes a Linear "
            "with the trained rows of it, or train an adapter (AlpsConfig), which saves the rows alone"
        )

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedProjection":
        """Moves and converts the module, but never narrows the rows."""
        super()._apply(keep_wide(function, [rows for _, rows in self.named_rows()]), recurse)  # type: ignore[no-untyped-call]
        return self
