"""Finds which stored weights the heads of a model are made of, without knowing how it lays them out.

The gradient of one head's queries, keys or values says which entries of which parameters they need; and `save_pretrained` itself
carries that to the names and the order of the file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from layouts.attention_recorder import ROLES, Attention, Part
from layouts.run_model import Run, observe, run, stirred, without_norms

MOST_HEADS = 52
"""Bits of the integers that a float64 holds; later heads of an attention are left out."""
_LARGEST_SCOPE = 4_000_000
"""Parameters of a module that still counts as one attention."""
Marks = dict[str, dict[str, torch.Tensor]]
"""By role and tensor: an integer for every entry, whose bit h says that head h needs it."""


@dataclass
class Traced:
    """One attention, with the marks of its heads on the tensors of the file."""

    module: str
    heads: int
    marks: Marks
    sizes: dict[str, set[int]]
    """By role: what may be the size of a head."""


def traced(model: Any) -> tuple[list[Traced], list[Run], dict[str, str]]:
    """Every attention of a model that runs, the runs that show them, and why other parts did not run."""
    first, runs, failures = observe(model)
    owners = {attention.module for attention in first}
    with without_norms(model, owners), stirred(model, owners):
        again: dict[tuple[str, int], Attention] = {}
        for name, arguments in runs:
            run(model, name, arguments, again)
        found = list(again.values())
        saved = in_file(model, [entries(model, attention) for attention in found])
    result = [
        Traced(
            a.module, a.heads, marks, {role: set(part.tensor.shape[-2:]) for role, part in a.parts.items()}
        )
        for a, marks in zip(found, saved, strict=True)
    ]
    return result, runs, failures


def entries(model: torch.nn.Module, attention: Attention) -> Marks:
    """Which entries of which parameters each head's queries, keys and values are made of.

    Only the parameters of the module that computes the attention count, or of the nearest one around it that has any.
    """
    scope = attention.module
    for _ in range(3):
        named = {n: p for n, p in model.named_parameters() if n.startswith(f"{scope}." if scope else "")}
        if sum(p.numel() for p in named.values()) > _LARGEST_SCOPE:
            return {role: {} for role in ROLES}
        query = _marks(named, attention.parts["query"], attention.heads)
        if query or not scope:
            break
        scope = scope.rpartition(".")[0]
    return {
        role: query if role == "query" else _marks(named, attention.parts[role], attention.heads)
        for role in ROLES
    }


def _draw(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _marks(named: dict[str, torch.nn.Parameter], part: Part, heads: int) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    if not named or not part.tensor.requires_grad:
        return result
    for group in range(part.heads):
        sharing = [head for head in range(min(heads, MOST_HEADS)) if head * part.heads // heads == group]
        bits = sum(1 << head for head in sharing)
        rows = part.head(group)
        total = (rows.double() * _draw(rows.shape).double()).sum()
        gradients = torch.autograd.grad(total, list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None and gradient.any():
                code = result.setdefault(name, torch.zeros(gradient.shape, dtype=torch.int64))
                code |= ((gradient != 0) & gradient.isfinite()).long() * bits
    return result


def in_file(model: Any, attentions: list[Marks]) -> list[Marks]:
    """Carries marks on parameters to the tensors of the file that `save_pretrained` writes.

    One save carries the marks of all attentions that have no parameter in common, another one says which of them a tensor of the
    file comes from.
    """
    groups: list[list[int]] = []
    for number, marks in enumerate(attentions):
        names = {name for by_name in marks.values() for name in by_name}
        for group in groups:
            if not any(names & set(by_name) for other in group for by_name in attentions[other].values()):
                group.append(number)
                break
        else:
            groups.append([number])
    result: list[Marks] = [{role: {} for role in ROLES} for _ in attentions]
    for group in groups:
        owner = {
            name: torch.full(code.shape, number + 1)
            for number in group
            for by_name in attentions[number].values()
            for name, code in by_name.items()
        }
        owners = _saved(model, owner)
        for role in ROLES:
            codes = {name: code for number in group for name, code in attentions[number][role].items()}
            for name, code in _saved(model, codes).items():
                for number in owners[name].unique().tolist():
                    if number and (mine := torch.where(owners[name] == number, code, 0)).any():
                        result[number - 1][role][name] = mine
    return result


def _saved(model: Any, codes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The integers that arrive in the file if they are saved instead of parameters, where there are any."""
    if not codes:
        return {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_parameter = {id(parameters[name]): code.double() for name, code in codes.items()}
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        known = id(parameters.get(name))  # one parameter may have several names, of which only one is saved
        state[name] = by_parameter.setdefault(known, torch.zeros_like(value, dtype=torch.float64))
        if name not in parameters:
            del by_parameter[known]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state)
        tensors = load_file(Path(folder) / "model.safetensors")
    return {name: value.round().long() for name, value in tensors.items() if value.any()}
