"""Scores heads by data: by the gradients of a loss, and by what the loss would lose without a head."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import alps._alps as _alps
from alps.errors import ArgumentError, ModelError, UnchangedError
from alps.live.grafting import LiveHeads, Tuned, other_heads
from alps.live.losses import Batch, evaluating, loss_of_batch
from alps.live.map_sums import MapSums, returning_maps
from alps.live.models import load
from alps.scan import Component
from alps.scores import EQUAL, HeadScores
from alps.training.attention import HeadRows

Measure: TypeAlias = Literal[
    "fisher", "gradient", "saliency", "taylor", "michel", "michel_layer", "seekr", "lift"
]

WITHOUT_DATA = frozenset({"lift"})
_OF_TUNED = frozenset({"taylor", "seekr"})
OF_GATES = frozenset({"michel", "michel_layer"})
_OF_MEAN = frozenset({"gradient", "saliency", "taylor"})
"""The statistics of the mean gradient, which has to be held."""

_NO_BATCHES = "batches: expected at least one, found none"

_RANK = 128
"""Of the part of a projection that LIFT keeps."""

_Weight: TypeAlias = tuple[str, str]
"""The names of a module and of its weight."""


def measure(
    model: nn.Module,
    batches: Iterable[Batch] = (),
    *,
    tuned: Tuned | None = None,
    statistics: Sequence[Measure] = ("fisher", "gradient", "saliency", "michel"),
    component: Component | None = None,
) -> HeadScores:
    """Scores every head of a live model on data.

    With g the gradient of the loss of a batch, E the mean over batches, w the weights and delta their change to `tuned`,
    summed over the query rows of the head and the key and value rows of its group:

    - "fisher": E[g^2], the diagonal of the empirical Fisher information per batch (with batches of one sample, per sample);
    - "gradient": abs(E[g]);
    - "saliency": abs(E[g] w), as SPEFT (https://arxiv.org/abs/2412.13488);
    - "taylor": abs(E[g] delta), the first-order effect of the change (https://arxiv.org/abs/2411.16139); needs `tuned`;
    - "michel": E[abs(dL/dxi)] of a gate xi = 1 on the output of the head (https://arxiv.org/abs/1905.10650), and
      "michel_layer": that divided by the Euclidean norm of its layer, as there;
    - "seekr": S F, where S is E[(dL/dA)^2] of the attention map A of the head, divided by the sum over its layer, and F is
      E[(A' - A)^2] with the map A' of `tuned`, both summed over the entries of the map (https://arxiv.org/abs/2411.06171);
      needs `tuned` in memory, and attention that returns its maps ("eager", which is switched to meanwhile);
    - "lift": the norm of the rows in the rank-128 part of their projection
      (https://arxiv.org/abs/2506.00772); needs no data.

    What these are worth for choosing heads to train is measured in docs/evidence.md; over all layers none was better than
    random heads there.

    The gradients of Q, K and V are held, and their mean for "gradient", "saliency" and "taylor"; nothing else of the
    model has gradients meanwhile. Works in any floating-point format, under autocast, with gradient checkpointing
    (reentrant checkpointing needs `model.enable_input_require_grads()`), and over several processes of torch.distributed
    that each have batches of their own. The model is left as it was.

        batches = [dict(input_ids=ids, labels=ids) for ids in windows]
        alps.measure(model, batches, statistics=["taylor"], tuned="tuned").select(ratio=0.1)

    Args:
        model: A transformers model of any layout that `scan` knows, with a loss.
        batches: What the model takes, by name, with `labels`.
        tuned: Another state of the model, live or on this machine.
        statistics: What to compute.
        component: Whose heads, as for `scan`.

    Returns:
        float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: There is no such statistic, there are no batches, the model returns no loss or one that is not
            finite, or "taylor" or "seekr" is asked for without `tuned`.
        UnchangedError: `tuned` has the same attention weights, or the same attention maps on the batches.
        ModelError: The model has no known layout, its weights are quantised, sharded or not in memory, or the output
            projection of a layer cannot be told, or the model returns no attention maps.
    """
    names = list(dict.fromkeys(statistics))
    known = get_args(Measure)
    if not names or any(name not in known for name in names):
        unknown = next((name for name in names if name not in known), "none")
        raise ArgumentError(f"statistics: there is no {unknown!r}; there are {', '.join(known)}")
    for name in names:
        if name in _OF_TUNED and tuned is None:
            raise ArgumentError(f'tuned: "{name}" needs the model after tuning')
    heads = LiveHeads(model, component)
    changes = {} if tuned is None or "taylor" not in names else _changes(heads, tuned)
    found: dict[str, NDArray[np.float64]] = {}
    if "seekr" in names:
        batches = list(batches)  # passes once more over them
        found["seekr"] = _by_maps(model, tuned, heads, batches)
    if set(names) - WITHOUT_DATA - {"seekr"}:
        found |= _with_data(model, heads, batches, set(names), changes)
    if "lift" in names:
        found["lift"] = np.sqrt(heads.attention.by_head(_low_rank(heads)))
    geometry = heads.geometry
    provenance = {"measured": str(getattr(model.config, "_name_or_path", "") or type(model).__name__)}
    if isinstance(tuned, (str, os.PathLike)):
        provenance["tuned"] = os.fspath(tuned)
    return HeadScores(
        {name: found[name] for name in names}, geometry, provenance | {"alps": _alps.__version__}
    )


def _changes(heads: LiveHeads, tuned: Tuned) -> dict[HeadRows, Tensor]:
    other = other_heads(tuned, heads.geometry)
    changes = {}
    for matrix in heads.attention.matrices:
        own = heads.read(matrix).weight
        wide = torch.promote_types(own.dtype, torch.float32)
        changes[matrix] = other.read(matrix).weight.to(own.device, wide) - own.to(wide)
    if not any(bool(change.any()) for change in changes.values()):
        raise UnchangedError(EQUAL)
    return changes


def _with_data(
    model: nn.Module,
    heads: LiveHeads,
    batches: Iterable[Batch],
    names: set[str],
    changes: Mapping[HeadRows, Tensor],
) -> dict[str, NDArray[np.float64]]:
    matrices = heads.attention.matrices
    weights = _weights(model, heads)
    squares = torch.zeros(len(matrices), dtype=torch.float64)
    means: dict[_Weight, Tensor] = {}
    gates = torch.zeros(heads.geometry.shape, dtype=torch.float64)
    count = 0
    with _gradients_of(model, list(weights.values())), _gates(model, heads, names, gates) as take_gates:
        for number, batch in enumerate(batches):
            with torch.enable_grad():
                loss_of_batch(model, batch, number).backward()
            take_gates()
            count += 1
            gradients: dict[_Weight, Tensor] = {}
            for name, weight in weights.items():
                if weight.grad is None:
                    raise ModelError(f"{name[0]}.{name[1]}: expected a gradient, found none")
                gradients[name], weight.grad = weight.grad, None
                if names & _OF_MEAN:
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    mean = means.setdefault(name, torch.zeros_like(weight, dtype=wide))
                    mean += gradients[name]
            if "fisher" in names:
                for place, matrix in enumerate(matrices):
                    rows = matrix.rows_of(gradients[matrix.module, matrix.parameter])
                    squares[place] += rows.double().square().sum().cpu()
    count = _summed(count, [squares, gates, *means.values()])
    if not count:
        raise ArgumentError(_NO_BATCHES)

    def of_mean(matrix: HeadRows) -> Tensor:
        return matrix.rows_of(means[matrix.module, matrix.parameter]).double() / count

    found: dict[str, NDArray[np.float64]] = {}
    if "fisher" in names:
        found["fisher"] = heads.attention.by_head(
            dict(zip(matrices, (squares / count).tolist(), strict=True))
        )
    factors: dict[str, Callable[[HeadRows], Tensor | float]] = {
        "gradient": lambda _: 1.0,
        "saliency": lambda matrix: heads.read(matrix).weight.double(),
        "taylor": lambda matrix: changes[matrix].double(),
    }
    for statistic in names & _OF_MEAN:
        sums = {it: float((of_mean(it) * factors[statistic](it)).abs().sum()) for it in matrices}
        found[statistic] = heads.attention.by_head(sums)
    if names & OF_GATES:
        michel = np.where(heads.geometry.is_head, (gates / count).numpy(), np.nan)
        found["michel"] = michel
        norms = np.sqrt(np.nansum(michel**2, axis=1, keepdims=True))
        found["michel_layer"] = michel / np.where(norms > 0, norms, 1)
    return found


def _weights(model: nn.Module, heads: LiveHeads) -> dict[_Weight, nn.Parameter]:
    """The weights that hold the rows of heads."""
    names = {(matrix.module, matrix.parameter) for matrix in heads.attention.matrices}
    return {name: model.get_submodule(name[0]).get_parameter(name[1]) for name in sorted(names)}


def _by_maps(
    model: nn.Module, tuned: Tuned | None, heads: LiveHeads, batches: Iterable[Batch]
) -> NDArray[np.float64]:
    assert tuned is not None
    other = tuned if isinstance(tuned, nn.Module) else load(tuned).to(next(model.parameters()).device)
    sums = MapSums(heads.geometry)
    count = 0
    with _gradients_of(model, list(_weights(model, heads).values())), returning_maps(model, other):
        for number, batch in enumerate(batches):
            sums.add(model, other, batch, number)
            count += 1
    count = _summed(count, [sums.sensitivity, sums.change])
    if not count:
        raise ArgumentError(_NO_BATCHES)
    if not sums.change.any():
        raise UnchangedError(EQUAL)
    return np.where(heads.geometry.is_head, sums.scores(count).numpy(), np.nan)


def _summed(count: int, numbers: list[Tensor]) -> int:
    """Adds up numbers over the processes of torch.distributed, and returns how many batches they had together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return count
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(count, device=device)
    distributed.all_reduce(total)
    for tensor in numbers:
        there = tensor.to(device)
        distributed.all_reduce(there)
        tensor.copy_(there)
    return int(total)


@contextmanager
def _gradients_of(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Lets these weights have gradients, and no other parameter; restores all at the end."""
    chosen = {id(weight) for weight in weights}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    # Gradient checkpointing works in training mode only, and dropout must not act.
    checkpointed = [
        module
        for module in model.modules()
        if module.training and getattr(module, "gradient_checkpointing", False)
    ]
    with evaluating(model):
        for module in checkpointed:
            module.training = True
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(id(parameter) in chosen)
                parameter.grad = None
            yield
        finally:
            for parameter, required, gradient in before:
                parameter.requires_grad_(required)
                parameter.grad = gradient


@contextmanager
def _gates(model: nn.Module, heads: LiveHeads, names: set[str], total: Tensor) -> Iterator["_TakeGates"]:
    """Adds the absolute gradients of gates on the outputs of all heads to `total`, batch by batch."""
    taken = _TakeGates(total)
    if not names & OF_GATES:
        yield taken
        return
    hooks = []
    try:
        for row, module in enumerate(_output_projections(model, heads)):
            hooks.append(
                module.register_forward_pre_hook(taken.hook(row, heads.geometry.sizes[row].query_heads))
            )
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


class _TakeGates:
    """The gradients of the gates of one batch, which are added up before their absolute value is taken."""

    def __init__(self, total: Tensor) -> None:
        self._total = total
        self._batch = torch.zeros_like(total)

    def hook(self, row: int, count: int) -> "_Hook":
        return _Hook(self._batch[row, :count])

    def __call__(self) -> None:
        self._total += self._batch.abs()
        self._batch.zero_()


class _Hook:
    def __init__(self, sums: Tensor) -> None:
        self._sums = sums

    def __call__(self, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        outputs = arguments[0]
        if not outputs.requires_grad:
            return
        values = outputs.detach()

        def add(gradient: Tensor) -> None:
            products = (values.double() * gradient.double()).reshape(
                -1, len(self._sums), values.shape[-1] // len(self._sums)
            )
            self._sums.add_(products.sum(dim=(0, 2)).to(self._sums.device))

        outputs.register_hook(add)


def _output_projections(model: nn.Module, heads: LiveHeads) -> list[nn.Module]:
    """The module of each layer that takes the outputs of all heads.

    Raises:
        ModelError: There is none, or more than one, near the queries of a layer.
    """
    geometry, inside = heads.geometry, set(heads.attention.modules)
    found = []
    for row, sizes in enumerate(geometry.sizes):
        query = next(
            it.module for it in heads.attention.matrices if (it.layer_index, it.role) == (row, "query")
        )
        width = sizes.query_heads * sizes.value_size
        candidates: list[nn.Module] = []
        place = query
        for _ in range(2):
            place = place.rpartition(".")[0]
            candidates = [
                module
                for name, module in model.get_submodule(place).named_modules(prefix=place)
                if name not in inside and _takes(module) == width
            ]
            if candidates:
                break
        if len(candidates) != 1:
            raise ModelError(
                f"{query}: expected one projection of the outputs of {sizes.query_heads} heads beside it, found "
                f"{len(candidates)}; leave out michel and michel_layer"
            )
        found += candidates
    return found


def _takes(module: nn.Module) -> int | None:
    """The in features of a linear layer."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.weight.shape[0] if isinstance(module, Conv1D) else None


def _low_rank(heads: LiveHeads) -> dict[HeadRows, float]:
    """The squared norms of the rows of each matrix in the rank-128 part of all queries, keys or values of a layer."""
    found: dict[HeadRows, float] = {}
    roles: dict[tuple[int, str], list[HeadRows]] = {}
    for matrix in heads.attention.matrices:
        roles.setdefault((matrix.layer_index, matrix.role), []).append(matrix)
    for matrices in roles.values():
        whole = torch.cat([heads.read(matrix).weight for matrix in matrices]).double()
        squared, vectors = torch.linalg.eigh(whole @ whole.T)
        kept = (vectors[:, -_RANK:].square() * squared[-_RANK:].clamp(min=0)).sum(dim=1)
        start = 0
        for matrix in matrices:
            found[matrix] = float(kept[start : start + matrix.count].sum())
            start += matrix.count
    return found
