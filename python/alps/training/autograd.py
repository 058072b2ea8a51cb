"""Multiplies inputs by a weight of which only some rows train.

How it works. Y = X W^T + b, where the rows of W at `indices` are the trained rows R. The gradient of the inputs is
dX = dY W, that of the rows needs only the outputs at the indices: dR = dY[:, indices]^T X. So autograd keeps what it
keeps for a Linear, the inputs, and no gradient of the whole weight is ever computed.
"""

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class RowsIn(Enum):
    """Where the trained rows are during a pass."""

    WEIGHT = "weight"
    """The weight holds them; another writer of the weight between the passes is an error, as for a Linear."""
    REFILLED_WEIGHT = "refilled weight"
    """The weight holds them in the forward pass; before the backward pass its memory may be filled with other rows."""
    COPY = "copy"
    """The weight does not hold them; each pass copies it and writes the rows into the copy."""


def project(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor | None,
    bias_rows: Tensor | None,
    indices: Tensor,
    axis: int,
    rows_in: RowsIn = RowsIn.COPY,
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
        rows_in: Whether the weight and the bias hold the rows already.

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
    output: Tensor = _ProjectRows.apply(inputs, weight, bias, rows, bias_rows, indices, axis, dtype, rows_in)
    return output


def with_rows(whole: Tensor, rows: Tensor, indices: Tensor, axis: int, rows_in: RowsIn) -> Tensor:
    """Returns a parameter with its trained rows, through which gradients reach the rows.

    For modules that do more with a parameter than a projection: the gradient of the whole parameter is computed.
    """
    tensor: Tensor = _WithRows.apply(whole, rows, indices, axis, rows_in)
    return tensor


def replace_outputs(
    outputs: Tensor, inputs: Tensor, rows: Tensor, bias_rows: Tensor | None, indices: Tensor, axis: int
) -> Tensor:
    """Computes the outputs of a projection at `indices` anew, from rows beside its weight.

    For weights that cannot hold the rows: those that are packed, or that a module multiplies in its own way. The
    gradient of the outputs reaches the module at all other places and the rows at these.

    Args:
        outputs: [..., out], of the module.
        inputs: [..., in].
        rows: [n, in] with axis 0, [in, n] with axis 1.
        bias_rows: [n], or None.
        indices: int64 [n], without duplicates.
        axis: The axis of the rows that holds the outputs.

    Returns:
        [..., out], in the dtype of the outputs; computed in that of the rows, or of autocast where it is on.
    """
    own = functional.linear(inputs.to(rows.dtype), rows if axis == 0 else rows.t(), bias_rows)
    return outputs.index_copy(-1, indices.to(outputs.device), own.to(outputs.device, outputs.dtype))


def rows_at(whole: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Copies the rows at `indices`: of axis 0, or of all later axes as one with axis 1."""
    return _as_matrix(whole, axis).index_select(axis, indices)


def write_rows(whole: Tensor, rows: Tensor, indices: Tensor, axis: int) -> None:
    """Writes rows at `indices`, where `rows_at` reads them, without a trace for autograd."""
    matrix = _as_matrix(whole.data, axis)
    matrix.index_copy_(axis, indices, rows.data.to(matrix.dtype))


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
        rows_in: RowsIn,
    ) -> Tensor:
        if rows_in is RowsIn.REFILLED_WEIGHT:
            # Writing the rows again is no change; autograd would count it as one of a saved tensor.
            ctx.save_for_backward(inputs, rows, indices)
            ctx.weight = weight
        else:
            ctx.save_for_backward(inputs, rows, indices, weight)
        ctx.axis, ctx.dtype, ctx.rows_in = axis, dtype, rows_in
        ctx.bias_dtype = None if bias_rows is None else bias_rows.dtype
        if bias is not None:
            if rows_in is RowsIn.COPY and bias_rows is not None:
                bias = _replace_rows(bias, bias_rows, indices, 0, dtype)
            else:
                bias = bias.to(dtype)
        return _multiply(inputs, _used(weight, rows, indices, axis, dtype, rows_in), bias, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, rows, indices, *saved = ctx.saved_tensors
        weight = saved[0] if saved else ctx.weight
        input_gradient = row_gradient = bias_gradient = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        flat_inputs = inputs.reshape(-1, inputs.shape[-1])
        if ctx.needs_input_grad[0]:
            if ctx.rows_in is RowsIn.REFILLED_WEIGHT:
                write_rows(weight, rows, indices, ctx.axis)
            used = _used(weight, rows, indices, ctx.axis, ctx.dtype, ctx.rows_in)
            input_gradient = _input_gradient(flat, used if ctx.axis == 0 else used.t(), flat_inputs)
            input_gradient = input_gradient.view(inputs.shape)
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            selected = flat.index_select(1, indices)
            if ctx.needs_input_grad[3]:
                product = selected.t() @ flat_inputs if ctx.axis == 0 else flat_inputs.t() @ selected
                row_gradient = product.to(rows.dtype)
            if ctx.needs_input_grad[4]:
                bias_gradient = selected.sum(0, dtype=ctx.bias_dtype)
        return input_gradient, None, None, row_gradient, bias_gradient, None, None, None, None


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, rows: Tensor, indices: Tensor, axis: int, rows_in: RowsIn) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.axis, ctx.dtype, ctx.shape = axis, rows.dtype, rows.shape
        if rows_in is RowsIn.WEIGHT:
            return whole.view_as(whole)
        copy = whole.clone()
        write_rows(copy, rows, indices, axis)
        return copy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return None, rows_at(gradient, indices, ctx.axis).to(ctx.dtype), None, None, None


def _as_matrix(whole: Tensor, axis: int) -> Tensor:
    return whole.view(whole.shape[0], -1) if axis == 1 and whole.dim() > 2 else whole


def _input_gradient(gradient: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of the inputs, dY W, in their memory format, as torch's own product gives it.

    Code further back may depend on it: torch 2.15's gradient of batch normalisation on a CPU is wrong for some formats.
    """
    if inputs.stride() == (1, inputs.shape[0]) and not inputs.is_contiguous():
        return (weight.t() @ gradient.t()).t()
    return gradient @ weight


def _used(
    weight: Tensor, rows: Tensor, indices: Tensor, axis: int, dtype: torch.dtype, rows_in: RowsIn
) -> Tensor:
    """The weight with the rows in place, in the dtype of the product."""
    return _replace_rows(weight, rows, indices, axis, dtype) if rows_in is RowsIn.COPY else weight.to(dtype)


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
