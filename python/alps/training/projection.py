"""A module of which only some rows of the Q, K and V weights train.

The frozen rows never move. The whole parameters of a restricted module never have a gradient, and optimizers skip a
parameter without one: neither momentum nor the weight decay of AdamW changes it. The rows that train are parameters of
their own.

How it works. A restricted module keeps its parameters under their names and with the trained rows in them, so that all
who read them read what was trained: a forward pass, `state_dict`, averages of weights, an inference engine. The rows
are written into the whole parameter after every step of an optimizer and in every forward pass that may have a
backward pass. Between such passes nothing is written as long as the versions that autograd counts are unchanged. If
somebody else has written to the whole parameter, as averages of weights do, the rows are read from it instead.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.pytorch_utils import Conv1D

from alps.errors import ModelError
from alps.training import optimizer_hooks
from alps.training.autograd import RowsIn, project, rows_at, with_rows, write_rows


class RestrictedModule(nn.Module):
    """A module of which only some rows train: a `RestrictedProjection`, or a `PackedProjection`.

    Attributes:
        rows: The rows of the weight that train, in float32 or wider; None if there are none.
        bias_rows: The entries of the bias that train, in float32 or wider; None if there are none.
        indices: int64, ascending: the positions of the rows.
    """

    _alps_restricted = True
    rows: nn.Parameter | None
    bias_rows: nn.Parameter | None
    indices: Tensor
    _name: str

    def restricted_parameters(self) -> list[nn.Parameter]:
        """The whole parameters and the rows of them that train."""
        raise NotImplementedError

    def biases(self) -> list[nn.Parameter]:
        """The biases of the restricted weights, whole."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Freezes the whole parameters."""
        raise NotImplementedError

    def release(self, dtype: torch.dtype) -> nn.Module:
        """Ends the restriction.

        Args:
            dtype: Of the weight, if it was packed and is no longer.

        Returns:
            The module for the place of this one, with the trained rows in its weight: often the same object.
        """
        raise NotImplementedError


class RestrictedProjection(RestrictedModule):
    """A Linear or a Conv1D of which only some rows (columns, for a Conv1D) train; the base of all such modules.

    `restrict_rows` makes one of an ordinary module by changing its class. It saves and loads like that module.

    Attributes:
        weight: [out, in] with axis 0, [in, out] with axis 1. Frozen; the trained rows are in place.
        bias: [out], or None. Frozen; the trained entries are in place.
        rows: The rows of the weight that train, in float32 or wider; None if there are none.
        bias_rows: The entries of the bias that train, in float32 or wider; None if there are none.
        indices: int64, ascending: the positions of the rows.
        axis: The axis of the weight that holds the outputs.
    """

    axis: int
    _wholes: dict[str, str]
    """The names of the row parameters, with the name of the parameter that each holds rows of."""
    _indices: Tensor
    _records: "dict[str, _Record | None]"
    _ordinary: type[nn.Module]
    _trained_before: tuple[str, ...]

    def forward(self, inputs: Tensor) -> Tensor:
        """Projects [..., in] to [..., out]."""
        rows_in = self._write("rows", "bias_rows")
        weight, bias = self._whole("weight"), self._whole("bias")
        return project(inputs, weight, bias, self.rows, self.bias_rows, self.indices, self.axis, rows_in)

    def extra_repr(self) -> str:
        """The sizes, as a Linear shows them, with the number of rows that train."""
        if self._ordinary.extra_repr not in (nn.Linear.extra_repr, Conv1D.extra_repr):
            return f"{self._ordinary.extra_repr(self)}, trainable={len(self.indices)}".removeprefix(", ")
        weight = self._whole("weight")
        return (
            f"in_features={weight.shape[1 - self.axis]}, out_features={weight.shape[self.axis]}, "
            f"bias={self._whole('bias') is not None}, trainable={len(self.indices)}"
        )

    def row_parameters(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The parameters that train, each with the dtype that a checkpoint stores it in."""
        return [(rows, whole.dtype) for _, rows, whole in self._pairs()]

    def named_rows(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that train, by the names that they had in the model when it was restricted."""
        return ((f"{self._name}.{name}".removeprefix("."), rows) for name, rows, _ in self._pairs())

    def restricted_parameters(self) -> list[nn.Parameter]:
        """The whole parameters and the rows of them that train."""
        names = [*self._wholes, *self._wholes.values()]
        return [parameter for name in names if (parameter := self._parameters[name]) is not None]

    def biases(self) -> list[nn.Parameter]:
        """The biases of the restricted weights, whole."""
        wholes = (self._parameters[name] for name in self._wholes.values() if name.endswith("bias"))
        return [bias for bias in wholes if bias is not None]

    def freeze(self) -> None:
        """Freezes the whole parameters."""
        for name in self._wholes.values():
            if (parameter := self._parameters[name]) is not None:
                freeze(parameter)

    @torch.no_grad()
    def write(self) -> None:
        """Writes the trained rows into the whole parameters, also into shards of them."""
        for name, rows, whole in self._pairs():
            if self._was_written_by_others(name, rows, whole):
                self._read(name, rows, whole)
            elif isinstance(whole, DTensor):
                _write_shard(whole, _full(rows), self._indices, self._axis_of(name))
            elif rows.shape == self._shape_of_rows(
                name, whole
            ):  # not a shard of FSDP1, which writes in each pass
                write_rows(whole, rows, self.indices, self._axis_of(name))
            self._note(name, written=True)

    def release(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Makes it the ordinary module again, with the trained rows in place and the format that it has."""
        self.write()
        optimizer_hooks.forget_rows(self)
        for name, whole in self._wholes.items():
            del self._parameters[name]
            if (parameter := self._parameters[whole]) is not None:
                parameter.requires_grad_(whole in self._trained_before)
        del self._buffers["indices"]
        self._non_persistent_buffers_set.discard("indices")
        ordinary = self._ordinary
        for name in ("axis", "_wholes", "_indices", "_records", "_ordinary", "_trained_before", "_name"):
            del self.__dict__[name]
        self.__class__ = ordinary  # type: ignore[assignment]
        return self

    def _begin(
        self, indices: Tensor, axis: int, wholes: list[str], ordinary: type[nn.Module], name: str
    ) -> None:
        self.axis, self._ordinary, self._indices, self._name = axis, ordinary, indices.cpu(), name
        self._wholes = {_rows_name(whole): whole for whole in wholes}
        self._trained_before = tuple(
            name for name in wholes if (it := self._parameters[name]) is not None and it.requires_grad
        )
        self._records = {}
        device = next(it for name in wholes if (it := self._parameters[name]) is not None).device
        self.register_buffer("indices", self._indices.to(device), persistent=False)
        for name, whole in self._wholes.items():
            parameter, rows = self._parameters[whole], None
            if parameter is not None and len(indices):
                rows = nn.Parameter(select_rows(parameter, indices, self._axis_of(name)))
            self.register_parameter(name, rows)
        self._note_all()
        optimizer_hooks.keep_rows(self)

    def _whole(self, name: str) -> Any:
        # The copies that DataParallel makes hold tensors that are no parameters.
        return self._parameters[name] if name in self._parameters else self.__dict__.get(name)

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter, Any]]:
        for name, whole in self._wholes.items():
            if (rows := getattr(self, name)) is not None:
                yield name, rows, self._whole(whole)

    def _axis_of(self, rows: str) -> int:
        return 0 if self._wholes[rows].endswith("bias") else self.axis

    def _shape_of_rows(self, name: str, whole: Tensor) -> tuple[int, ...]:
        count, axis = len(self._indices), self._axis_of(name)
        return (count, *whole.shape[1:]) if axis == 0 else (whole.shape[0], count)

    # Rows and whole parameters

    def _write(self, *names: str) -> RowsIn:
        """Writes these rows into their whole parameters for a forward pass, where they may not be there."""
        if torch.compiler.is_compiling() or self._wholes[names[0]] not in self._parameters:
            return RowsIn.COPY
        rows_in = RowsIn.WEIGHT
        for name in names:
            rows: Tensor | None = getattr(self, name)
            if rows is None:
                continue
            whole = self._parameters[self._wholes[name]]
            assert whole is not None
            if hasattr(whole, "ds_id"):
                raise ModelError(
                    "a restricted model: expected whole weights, found some that DeepSpeed's ZeRO-3 has partitioned, "
                    "whose checkpoints would hold the rows of the base; train with ZeRO-1 or 2, with FSDP2, or an "
                    "adapter (AlpsConfig)"
                )
            record = self._records.get(name)
            if record is None or not record.holds(rows, whole):
                rows_in = RowsIn.REFILLED_WEIGHT
                self._records[name] = None if record is None else record._replace(written=False)
            elif whole._version != record.whole_version and rows._version == record.rows_version:
                self._read(name, rows, whole)
                self._note(name, written=True)
                continue
            trains = torch.is_grad_enabled() and rows.requires_grad
            if trains or record is None or not record.is_settled(rows, whole):
                write_rows(whole, rows, self.indices, self._axis_of(name))
                # A step between this pass and the next may write to the rows where autograd does not count it.
                if rows_in is RowsIn.WEIGHT:
                    self._note(name, written=not trains)
            if self.training and torch.is_grad_enabled():
                optimizer_hooks.warn_if_frozen(self, rows)
        return rows_in

    def _was_written_by_others(self, name: str, rows: Tensor, whole: Tensor) -> bool:
        record = self._records.get(name)
        return (
            record is not None
            and record.holds(rows, whole)
            and whole._version != record.whole_version
            and rows._version == record.rows_version
        )

    @torch.no_grad()
    def _read(self, name: str, rows: Tensor, whole: Tensor) -> None:
        """Reads rows from a whole parameter that somebody has written to, unless it still holds the rows rounded."""
        found = rows_at(whole.detach(), self.indices, self._axis_of(name))
        if not torch.equal(found, rows.to(found.dtype)):
            rows.copy_(found)

    def _note(self, name: str, written: bool) -> None:
        """Notes the versions of the parameters; `written`, that the whole one holds the rows of this version."""
        record, rows, whole = (
            self._records.get(name),
            getattr(self, name),
            self._parameters[self._wholes[name]],
        )
        if record is not None and rows is not None and whole is not None and record.holds(rows, whole):
            self._records[name] = record._replace(
                rows_version=rows._version, whole_version=whole._version, written=written
            )

    def _note_all(self) -> None:
        """Notes the parameters that the module has from now on."""
        for name, rows, whole in self._pairs():
            own = not any(isinstance(it, DTensor) or it.is_meta for it in (rows, whole))
            self._records[name] = _Record.of(rows, whole) if own else None

    # Saving, loading, moving, copying

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.write()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, rows, whole in self._pairs():
            # FSDP1, which keeps all parameters of a module in one memory, fails where one is missing.
            if isinstance(rows, DTensor) or _memory(rows) != _memory(whole):
                destination.pop(prefix + name, None)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], *args: Any,
    ) -> None:  # fmt: skip
        for name, whole in self._wholes.items():
            # Rows in the state may be stale; the whole parameter is what was saved.
            state_dict.pop(prefix + name, None)
            own, loaded = getattr(self, name), state_dict.get(prefix + whole)
            # torch refuses a parameter of another shape below.
            if own is not None and loaded is not None and loaded.shape == self._whole(whole).shape:
                rows = select_rows(_full(loaded), self._indices, self._axis_of(name)).to(own.dtype)
                if isinstance(own, DTensor):
                    rows = distribute_tensor(rows, own.device_mesh, own.placements, src_data_rank=None)
                state_dict[prefix + name] = rows
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        self._place_indices()
        self._note_all()
        missing_keys[:] = [key for key in missing_keys if key not in {prefix + name for name in self._wholes}]

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "RestrictedProjection":
        """Moves and converts the module, but never narrows the rows."""
        super()._apply(keep_wide(function, [rows for rows, _ in self.row_parameters()]), recurse)  # type: ignore[no-untyped-call]
        self._place_indices()
        self._note_all()
        return self

    def _place_indices(self) -> None:
        # From a copy, since indices on `meta` hold no data.
        self.indices = self._indices.to(self._whole(next(iter(self._wholes.values()))).device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {**self.__dict__, "_records": {}}
        read_by_others = issubclass(type(self), self._ordinary)
        return _make_anew, (self._ordinary, tuple(self._wholes.values()), read_by_others), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._note_all()
        optimizer_hooks.keep_rows(self)


class _Record(NamedTuple):
    """A row parameter and its whole parameter, as they were when the rows were written last."""

    rows: Any
    whole: Any
    addresses: tuple[int, int]
    rows_version: int
    whole_version: int
    written: bool

    @classmethod
    def of(cls, rows: Tensor, whole: Tensor) -> "_Record":
        addresses = (rows.data_ptr(), whole.data_ptr())
        return cls(ref(rows), ref(whole), addresses, rows._version, whole._version, False)

    def holds(self, rows: Tensor, whole: Tensor) -> bool:
        """Whether these are the same parameters, in the same memory."""
        return (
            self.rows() is rows
            and self.whole() is whole
            and self.addresses == (rows.data_ptr(), whole.data_ptr())
        )

    def is_settled(self, rows: Tensor, whole: Tensor) -> bool:
        """Whether the whole parameter holds the rows."""
        return (
            self.written
            and self.holds(rows, whole)
            and self.rows_version == rows._version
            and self.whole_version == whole._version
        )


def restrict_rows(
    module: nn.Module,
    indices: Tensor,
    axis: int,
    parameters: tuple[str, ...] = ("weight",),
    name: str = "",
    read_by_others: bool = False,
) -> RestrictedProjection:
    """Lets only the rows at `indices` of some parameters of a module, and of their biases, train.

    Changes the class of the module, which stays the same object. A Linear and a Conv1D compute no gradient of frozen
    rows. Any other module runs its own forward, and computes the gradient of the whole parameters for a while; so
    does code that reads the parameters of a module instead of calling it. For these, the parameters of the module are
    properties, which gradients pass, as those of `torch.nn.utils.parametrize` are.

    Args:
        module: Any module.
        indices: int64, ascending, without duplicates.
        axis: The axis of the parameters that holds the outputs. With axis 1, all axes from there on count as one.
        parameters: The names of the parameters.
        name: The name of the module in its model, for messages.
        read_by_others: Whether code outside the module computes with its parameters.
    """
    biases = [name.replace("weight", "bias") for name in parameters if "weight" in name]
    wholes = [*parameters, *(name for name in biases if name in module._parameters)]
    ordinary: Any = type(module)
    calls = "forward" in vars(module)  # as the hooks of accelerate set it: it calls the class's own forward
    module.__class__ = _restricted_class(ordinary, tuple(wholes), read_by_others or calls)
    assert isinstance(module, RestrictedProjection)
    module._begin(indices, axis, wholes, ordinary, name)
    return module


@cache
def _restricted_class(
    ordinary: type[nn.Module], wholes: tuple[str, ...], read_by_others: bool
) -> type[RestrictedProjection]:
    if ordinary in (nn.Linear, Conv1D) and not read_by_others:
        return RestrictedProjection
    forward = {} if ordinary.forward in (nn.Linear.forward, Conv1D.forward) else {"forward": ordinary.forward}
    properties = {name: _property(name) for name in wholes}
    return type(f"Restricted{ordinary.__name__}", (RestrictedProjection, ordinary), forward | properties)


def _property(name: str) -> property:
    """A whole parameter as the module's own code reads it: gradients reach the rows through it."""

    def read(self: RestrictedProjection) -> Any:
        if "_wholes" not in self.__dict__:
            raise AttributeError(name)  # the module is being made
        whole, rows_name = self._whole(name), _rows_name(name)
        rows = getattr(self, rows_name)
        if rows is None:
            return whole.detach() if whole is not None and whole.requires_grad else whole
        rows_in = self._write(rows_name)
        if rows_in is not RowsIn.COPY and not (torch.is_grad_enabled() and rows.requires_grad):
            return whole
        # Its memory may be filled with other rows before the backward pass, so that the pass needs a copy.
        rows_in = rows_in if rows_in is RowsIn.WEIGHT else RowsIn.COPY
        axis = self._axis_of(rows_name)
        return with_rows(whole, rows, self.indices, axis, rows_in)

    def write(self: RestrictedProjection, value: Any) -> None:
        self.__dict__[name] = (
            value  # only where the module has no parameter of this name, as in copies by DataParallel
        )

    return property(read, write)


def _make_anew(ordinary: Any, wholes: tuple[str, ...], read_by_others: bool) -> RestrictedProjection:
    cls = _restricted_class(ordinary, wholes, read_by_others)
    return cls.__new__(cls)


def _rows_name(whole: str) -> str:
    return "rows" if whole == "weight" else f"{whole}_rows"


def restricted_projections(model: nn.Module) -> dict[str, RestrictedModule]:
    """The restricted modules of a model by name."""
    return {name: it for name, it in model.named_modules() if isinstance(it, RestrictedModule)}


def select_rows(whole: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Copies the rows at `indices` in float32 or wider, since narrower numbers would round small steps away."""
    rows = rows_at(whole.detach(), indices.to(whole.device), axis)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def keep_wide(
    function: Callable[[Tensor], Tensor], parameters: list[nn.Parameter]
) -> Callable[[Tensor], Tensor]:
    """Returns a function that converts tensors as `function` does, but never narrows these parameters below float32."""
    wide = {id(tensor) for it in parameters for tensor in (it, it.grad) if tensor is not None}

    def convert(tensor: Tensor) -> Tensor:
        converted = function(tensor)
        if id(tensor) in wide and converted.dtype.itemsize < torch.float32.itemsize:
            return tensor.to(converted.device)
        return converted

    return convert


def freeze(parameter: nn.Parameter) -> None:
    """Stops the training of a parameter."""
    parameter.requires_grad_(False)
    parameter.grad = None  # else an optimizer made earlier would still apply it


def _write_shard(whole: DTensor, rows: Tensor, indices: Tensor, axis: int) -> None:
    """Writes the part of the rows that this process's shard of a parameter holds."""
    # torch has no public name for it.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, whole.placements)
    if 0 in shape:
        return
    inside = torch.arange(len(indices))
    for dimension, (start, length) in enumerate(zip(offset, shape, strict=True)):
        if length == whole.shape[dimension]:
            continue
        if dimension == axis:
            inside = ((indices >= start) & (indices < start + length)).nonzero().flatten()
            indices = indices - start
        else:
            rows = rows.narrow(dimension, start, length)
    local = whole.to_local()
    rows = rows.index_select(axis, inside.to(rows.device))
    write_rows(local, rows, indices[inside].to(local.device), axis)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
