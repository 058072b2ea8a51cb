"""The product of inputs and a weight of which only some rows train."""

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
    """Multiplies as if `rows` stood at `indices` in `weight`, and `bias_rows` in `bias`.

    Gradients go to the inputs, the rows and the rows of the bias; never to the weight and the bias. A
    second derivative is refused.

    Args:
        inputs: [..., in].
        weight: [out, in] with axis 0, [in, out] with axis 1.
        bias: [out], or None.
        rows: As the weight, with as many entries along the axis as there are indices; None for none.
        bias_rows: As many entries as there are indices; None for none.
        indices: int64 [n], no number twice.
        axis: The axis of the weight that is the outputs.

    Returns:
        [..., out], in the number format of the weight, or of autocast where that is on.
    """
    kind = inputs.device.type
    # Autocast leaves float64 alone.
    casts = torch.is_autocast_enabled(kind) and torch.float64 not in (inputs.dtype, weight.dtype)
    dtype = torch.get_autocast_dtype(kind) if casts else weight.dtype
    if casts and dtype != inputs.dtype:
        inputs = inputs.to(dtype)
    if rows is None:
        weight = weight.detach().to(dtype)
        return _multiply(inputs, weight, None if bias is None else bias.detach().to(dtype), axis)
    output: Tensor = _ProjectRows.apply(inputs, weight, bias, rows, bias_rows, indices, axis, dtype)
    return output


class _ProjectRows(torch.autograd.Function):
    """One product with a patched copy of the weight, which the backward pass builds anew.

    The copy lives as long as the product, so that what is kept between the passes is what a plain
    Linear keeps: the inputs.
    """

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
        patched_bias = None
        if bias is not None:
            patched_bias = bias.to(dtype) if bias_rows is None else patch(bias, bias_rows, indices, 0, dtype)
        return _multiply(inputs, patch(weight, rows, indices, axis, dtype), patched_bias, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, rows, indices = ctx.saved_tensors
        of_inputs = of_rows = of_bias_rows = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            patched = patch(weight, rows, indices, ctx.axis, ctx.dtype)
            of_inputs = (flat @ (patched if ctx.axis == 0 else patched.t())).view(inputs.shape)
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            chosen = flat.index_select(1, indices)
            if ctx.needs_input_grad[3]:
                flat_inputs = inputs.reshape(-1, inputs.shape[-1])
                product = chosen.t() @ flat_inputs if ctx.axis == 0 else flat_inputs.t() @ chosen
                of_rows = product.to(rows.dtype)
            if ctx.needs_input_grad[4]:
                of_bias_rows = chosen.sum(0, dtype=ctx.bias_dtype)
        return of_inputs, None, None, of_rows, of_bias_rows, None, None, None


def patch(whole: Tensor, rows: Tensor, indices: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """A copy of `whole` in which `rows` stand at `indices` of `axis`."""
    return whole.to(dtype, copy=True).index_copy_(axis, indices, rows.to(dtype))


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """The same operations as in torch's Linear (axis 0) and GPT-2's Conv1D (axis 1), for the same bits."""
    if axis == 0:
        return functional.linear(inputs, weight, bias)
    flat = inputs.reshape(-1, inputs.shape[-1])
    output = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
    return output.view(*inputs.shape[:-1], weight.shape[1])
