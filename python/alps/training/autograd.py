"""Multiplies inputs by a weight of which only some rows train.

How it works. The forward pass copies the weight W, replaces the rows at `indices` by the trained rows R, and computes
Y = X W^T + b with that copy. The copy lives as long as the product; the backward pass builds it again for the gradient
of the inputs, dX = dY W. The gradient of the rows needs only the outputs at the indices: dR = dY[:, indices]^T X. So
autograd keeps what it keeps for a Linear, the inputs, and no gradient of the whole weight is ever computed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def project(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    bias_rows: Tensor | None,
    indices: Tensor,
    axis: int,
) -> Tensor:
    """Multiplies with `rows` at `indices` of the weight and `bias_rows` at `indices` of the bias.

    The inputs, the rows and the rows of the bias get gradients; the weight and the bias never do. A second
    derivative is refused.

    Args:
        inputs: [..., in].
        weight: [out, in] with axis 0, [in, out] with axis 1.
        bias: [out], or None.
        rows: [n, in] with axis 0, [in, n] with axis 1; None if no row trains.
        bias_rows: [n]; None if no entry of the bias trains.
        indices: int64 [n], without duplicates.
        axis: The axis of the weight that holds the outputs.

    Returns:
        [..., out], in the dtype of the weight, or that of autocast where it is on.
    """
    device = inputs.device.type
    # Autocast does not convert float64.
    autocast = torch.is_autocast_enabled(device) and torch.float64 not in (inputs.dtype, weight.dtype)
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    if autocast:
        inputs = inputs.to(dtype)
    if rows is None:
        return _multiply(
            inputs, weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype), axis
        )
    output: Tensor = _ProjectRows.apply(inputs, weight, bias, rows, bias_rows, indices, axis, dtype)
    return output


class _ProjectRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        bias_rows: Tensor | None,
        indices: Tensor,
        axis: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, rows, indices)
        ctx.axis = axis
        ctx.dtype = dtype
        ctx.bias_dtype = None if bias_rows is None else bias_rows.dtype
        if bias is not None:
            bias = bias.to(dtype) if bias_rows is None else _replace_rows(bias, bias_rows, indices, 0, dtype)
        return _multiply(inputs, _replace_rows(weight, rows, indices, axis, dtype), bias, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, rows, indices = ctx.saved_tensors
        input_gradient = row_gradient = bias_gradient = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            replaced = _replace_rows(weight, rows, indices, ctx.axis, ctx.dtype)
            input_gradient = (flat @ (replaced if ctx.axis == 0 else replaced.t())).view(inputs.shape)
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            selected = flat.index_select(1, indices)
            if ctx.needs_input_grad[3]:
                flat_inputs = inputs.reshape(-1, inputs.shape[-1])
                product = selected.t() @ flat_inputs if ctx.axis == 0 else flat_inputs.t() @ selected
                row_gradient = product.to(rows.dtype)
            if ctx.needs_input_grad[4]:
                bias_gradient = selected.sum(0, dtype=ctx.bias_dtype)
        return input_gradient, None, None, row_gradient, bias_gradient, None, None, None


def _replace_rows(whole: Tensor, rows: Tensor, indices: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Copies `whole` with `rows` at `indices` of `axis`."""
    return whole.to(dtype, copy=True).index_copy_(axis, indices, rows.to(dtype))


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Uses the same operations as torch's Linear (axis 0) and GPT-2's Conv1D (axis 1), to give the same bits."""
    if axis == 0:
        return functional.linear(inputs, weight, bias)
    flat = inputs.reshape(-1, inputs.shape[-1])
    output = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return output.view(*inputs.shape[:-1], weight.shape[1])
