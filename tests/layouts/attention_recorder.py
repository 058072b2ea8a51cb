"""Records softmax attention while a model runs.

The recorder does not use the names or the layout of weights. It follows the arithmetic: a product of two tensors goes
through a softmax, whose result is multiplied with a third tensor. These three are the queries, the keys and the values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ROLES = ("query", "key", "value")
_PRODUCTS = {"matmul", "bmm", "__matmul__", "__rmatmul__", "baddbmm", "einsum"}
_SOFTMAX = {"softmax", "_softmax"}
_ENDS = {  # the result of these is no longer a score
    *("linear", "addmm", "conv1d", "conv2d", "conv3d", "embedding"),
    *("layer_norm", "rms_norm", "group_norm", "batch_norm"),
}
_HEAD_COUNTS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nheads", "num_key_value_heads"),
)


@dataclass
class HeadTensor:
    """The queries, keys, values or outputs of an attention, with the axis of its heads."""

    tensor: torch.Tensor
    axis: int

    @property
    def heads(self) -> int:
        return self.tensor.shape[self.axis]

    def head(self, index: int) -> torch.Tensor:
        return self.tensor.select(self.axis, index)


@dataclass
class RecordedAttention:
    """One softmax attention that a module computed."""

    module: str
    factors: dict[str, HeadTensor]
    output: HeadTensor
    call: int
    """How often the module had run before this call."""

    @property
    def heads(self) -> int:
        return self.output.heads


def _axes(equation: Any, operands: list[torch.Tensor]) -> tuple[int, int, int] | None:
    """Returns the axis of the heads in both operands and in the result of an einsum, or None if there is none."""
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    left, out = equation.replace(" ", "").split("->")
    first, second = left.split(",")
    sizes = dict(zip(first, operands[0].shape, strict=True))
    shared = [letter for letter in out if letter in first and letter in second]
    shared = [letter for letter in shared if sizes[letter] > 1] or shared
    if not shared:
        return None
    return first.index(shared[-1]), second.index(shared[-1]), out.index(shared[-1])


class AttentionRecorder(TorchFunctionMode):
    """Records the softmax attention of everything that runs inside its context."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.found: list[RecordedAttention] = []
        self._stack: list[str] = []
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        self._model = model

    def __enter__(self) -> AttentionRecorder:
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self._stack.append(name)
            self._calls[name] = self._calls.get(name, -1) + 1

        return hook

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def _record(self, query: HeadTensor, key: HeadTensor, value: HeadTensor, output: HeadTensor) -> None:
        name = self._stack[-1] if self._stack else ""
        parts = [query, key, value, output]
        counts = self._counts(name)
        if (
            not {query.heads, output.heads} <= counts
        ):  # an axis of windows or blocks may follow that of the heads
            alike = [part.tensor.shape for part in parts if part.tensor.dim() == output.tensor.dim()]
            for axis in range(output.tensor.dim() - 2):
                if len(sizes := {shape[axis] for shape in alike}) == 1 and sizes <= counts:
                    parts = [HeadTensor(part.tensor, axis) for part in parts]
                    break
        factors = dict(zip(ROLES, parts[:3], strict=True))
        self.found.append(RecordedAttention(name, factors, parts[3], self._calls.get(name, 0)))

    def _counts(self, name: str) -> set[int]:
        """Returns the numbers of heads that a module, or one of the two around it, has as attributes."""
        names = [name, name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]]
        values = (getattr(self._model.get_submodule(n), key, None) for n in names for key in _HEAD_COUNTS)
        return {value for value in values if isinstance(value, int)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "multi_head_attention_forward":
            self._torch_attention(args, kwargs)
        out = func(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            factors = [*args, *(kwargs[role] for role in ROLES if role in kwargs)][:3]
            query, key, value = (HeadTensor(factor, -3) for factor in factors)
            self._record(query, key, value, HeadTensor(out, -3))
        elif name in _PRODUCTS and isinstance(out, torch.Tensor):
            self._product(name, args, kwargs, out)
        elif isinstance(out, torch.Tensor | tuple | list) and name not in _ENDS:
            self._pass_on(name, _tensors((*args, *kwargs.values())), out)
        return out

    def _pass_on(self, name: str, operands: Iterator[torch.Tensor], out: Any) -> None:
        """Passes the tag of an operand on to the result. A softmax turns scores into weights."""
        tag = next(filter(None, map(_tag, operands)), None)
        if tag is not None:
            kind, factors = tag
            kind = "weights" if kind == "scores" and name in _SOFTMAX else kind
            for tensor in _tensors((out,)):
                if tensor.dim() >= 3:
                    _set_tag(tensor, (kind, factors))

    def _product(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        operands = list(_tensors((*args, *kwargs.values())))[-2:]
        if len(operands) < 2 or min(tensor.dim() for tensor in operands) < 3:
            return
        axes = _axes(args[0], operands) if name == "einsum" else (-3, -3, -3)
        if axes is None:
            return
        for index, other in ((0, 1), (1, 0)):
            tag = _tag(operands[index])
            if tag is not None and tag[0] == "weights":
                self._record(*tag[1], HeadTensor(operands[other], axes[other]), HeadTensor(out, axes[2]))
                return
        _set_tag(out, ("scores", (HeadTensor(operands[0], axes[0]), HeadTensor(operands[1], axes[1]))))

    def _torch_attention(self, args: Any, kwargs: Any) -> None:
        """Records torch's `MultiheadAttention`, which hides its products, by computing them again."""
        call = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        weights = [given[f"{letter}_proj_weight"] for letter in "qkv"]
        if not given["use_separate_proj_weight"]:
            weights = given["in_proj_weight"].chunk(3)
        biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        factors = []
        for role, weight, bias in zip(ROLES, weights, biases, strict=True):
            rows = functional.linear(
                given[role], weight, bias
            )  # [positions, batch, width], possibly without the batch
            rows = rows.unflatten(-1, (given["num_heads"], -1)).movedim(-2, 0)
            factors.append(rows if rows.dim() == 4 else rows[:, :, None])
        query, key, value = factors
        shares = torch.softmax(torch.einsum("htbd,hsbd->hbts", query, key), -1)
        out = torch.einsum("hbts,hsbd->htbd", shares, value)
        self._record(HeadTensor(query, 0), HeadTensor(key, 0), HeadTensor(value, 0), HeadTensor(out, 0))


_Tag = tuple[str, tuple[HeadTensor, HeadTensor]]
"""What a tensor holds, "scores" or the "weights" that a softmax makes of them, and its queries and keys."""


def _tag(tensor: torch.Tensor) -> _Tag | None:
    tag: _Tag | None = getattr(tensor, "_attention", None)
    return tag


def _set_tag(tensor: torch.Tensor, tag: _Tag) -> None:
    tensor._attention = tag  # type: ignore[attr-defined]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
