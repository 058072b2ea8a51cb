"""Compares the training of a restricted model with that of the same model without restriction.

In every component of a model, one head of each layer is restricted. The restricted model has to compute the same
outputs, and its rows have to get the gradient that the same rows of the whole weights get.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

import alps
from alps.training import attention
from alps.training.projection import RestrictedProjection, restricted_projections, select_rows
from layouts import model_inputs, run_model
from layouts.proof import COMPONENTS

PROVEN = "proven"
NOT_RUN = "did not run"
_SECONDS = 4
"""For finding arguments that submodels run with."""


def prove_training(model: Any, runs: list[run_model.Run]) -> dict[str, str]:
    """Trains one head of each layer of every component that alps finds.

    Returns:
        By component `PROVEN`, `NOT_RUN` if no gradient reaches its weights here, or what is wrong or refused.
    """
    found: dict[str, str] = {}
    _forget_runs(model)
    runs = _complete(model, runs)
    _forget_runs(model)
    for component in COMPONENTS:
        try:
            geometry = attention.find(model, component).geometry
        except alps.AlpsError:
            continue
        counts = [sizes.query_heads for sizes in geometry.sizes]
        pairs = [(layer, row % counts[row]) for row, layer in enumerate(geometry.layers)]
        found[component] = _prove(model, runs, alps.HeadSet.from_pairs(pairs, geometry))
    return found


def _forget_runs(model: Any) -> None:
    """Detaches the tensors that modules keep from one run to the next, which cannot be copied otherwise."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                setattr(module, name, value.detach())


def _complete(model: Any, runs: list[run_model.Run]) -> list[run_model.Run]:
    """The runs that end without an error, and one of each submodel that takes no part in them."""
    complete = [(name, arguments) for name, arguments in runs if _runs(model, name, arguments)]
    end = time.process_time() + _SECONDS
    for name, module in model.named_modules():
        covered = any(f"{name}.".startswith(f"{ran}." if ran else "") for ran, _ in complete)
        if covered or not isinstance(module, transformers.PreTrainedModel):
            continue
        for arguments in model_inputs.of_model(module):
            if time.process_time() > end:
                return complete
            if _runs(model, name, arguments):
                complete.append((name, arguments))
                break
    return complete


def _runs(model: Any, name: str, arguments: model_inputs.Arguments) -> bool:
    try:
        model.get_submodule(name)(**arguments)
    except Exception:  # a model may raise anything for unsuitable arguments
        return False
    return True


def _prove(model: Any, runs: list[run_model.Run], heads: alps.HeadSet) -> str:
    reference, restricted = copy.deepcopy(model), copy.deepcopy(model)
    for parameter in (*reference.parameters(), *restricted.parameters()):
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        alps.restrict(restricted, heads)
    except alps.AlpsError as error:
        return f"refused: {error}"
    for name, arguments in runs:
        outputs = []
        for whole in (reference, restricted):
            torch.manual_seed(0)
            try:
                outputs.append(list(_tensors(whole.get_submodule(name)(**arguments))))
            except Exception as error:  # the whole model ran
                return f"wrong: {name}: {type(error).__name__}: {error}"
        for expected, output in zip(*outputs, strict=True):
            if not torch.equal(torch.nan_to_num(expected), torch.nan_to_num(output)):
                return f"wrong: {name or 'the model'} has other outputs"
        for tensors in outputs:
            losses = [_loss(tensor) for tensor in tensors if tensor.requires_grad]
            if losses:
                torch.stack(losses).sum().backward()
    reached = 0
    parameters = dict(reference.named_parameters(remove_duplicate=False))
    for name, projection in restricted_projections(restricted).items():
        assert isinstance(projection, RestrictedProjection)
        problem, count = _compare(name, projection, parameters)
        if problem:
            return f"wrong: {problem}"
        reached += count
    return PROVEN if reached else NOT_RUN


def _compare(
    name: str, projection: RestrictedProjection, parameters: Mapping[str, Tensor]
) -> tuple[str | None, int]:
    """Returns what is wrong with the gradients of a module, if anything, and how many gradients were right."""
    right = 0
    wholes = [
        parameters[f"{name}.{projection._wholes[rows_name]}"] for rows_name, _, _ in projection._pairs()
    ]
    # The gradient of a bias of keys is rounding noise, so that the gradients of the weight tell what is small.
    grads = [torch.nan_to_num(it.grad) for it in wholes if it.grad is not None]
    scale = max((float(it.abs().max()) for it in grads), default=0.0)
    for (rows_name, rows, whole), reference in zip(projection._pairs(), wholes, strict=True):
        expected = reference.grad
        if whole.grad is not None:
            return f"the whole parameter of {name}.{rows_name} has a gradient", right
        if expected is None:
            continue
        if rows.grad is None:
            return f"{name}.{rows_name} has no gradient", right
        wanted = select_rows(expected, projection.indices, projection._axis_of(rows_name))
        if not torch.allclose(rows.grad, wanted, rtol=1e-3, atol=1e-4 * scale + 1e-30, equal_nan=True):
            return f"{name}.{rows_name} has another gradient", right
        right += bool(expected.any())
    return None, right


def _loss(tensor: Tensor) -> Tensor:
    """A sum with other factors for all entries, in which equal changes do not cancel."""
    values = torch.nan_to_num(tensor.float())
    return (values * torch.linspace(-1, 1, values.numel()).view(values.shape)).sum()


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
