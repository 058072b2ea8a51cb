"""Finds the stored weights that each head of a model depends on, without any knowledge of its layout.

The gradient of a head's queries, keys or values shows the entries of parameters that they depend on. `save_pretrained`
translates these into the names and the order of the file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from layouts.attention_recorder import ROLES, HeadTensor, RecordedAttention
from layouts.run_model import Run, record_attention, run, with_noise, without_norms

MOST_HEADS = 52
"""The number of bits that a float64 holds exactly. Later heads of an attention are ignored."""
_LARGEST_SCOPE = 4_000_000
"""The largest number of parameters of a module that counts as one attention."""
HeadBits = dict[str, dict[str, torch.Tensor]]
"""By role and tensor name, an integer for every entry. Its bit h is 1 if head h needs the entry."""


@dataclass
class TracedAttention:
    """One attention, with the entries of the file that its heads need."""

    module: str
    heads: int
    head_bits: HeadBits
    sizes: dict[str, set[int]]
    """The possible sizes of a head, by role."""


def trace(model: Any) -> tuple[list[TracedAttention], list[Run], dict[str, str]]:
    """Traces every attention of a model to its file.

    Returns also the runs, and the errors of modules that did not run.
    """
    first, runs, failures = record_attention(model)
    owners = {attention.module for attention in first}
    with without_norms(model, owners), with_noise(model, owners):
        again: dict[tuple[str, int], RecordedAttention] = {}
        for name, arguments in runs:
            run(model, name, arguments, again)
        found = list(again.values())
        saved = in_file(model, [find_entries(model, attention) for attention in found])
    result = [
        TracedAttention(
            a.module,
            a.heads,
            head_bits,
            {role: set(part.tensor.shape[-2:]) for role, part in a.factors.items()},
        )
        for a, head_bits in zip(found, saved, strict=True)
    ]
    return result, runs, failures


def find_entries(model: torch.nn.Module, attention: RecordedAttention) -> HeadBits:
    """Finds the entries of parameters that the queries, keys and values of each head depend on.

    Only the parameters of the module that computes the attention count, or of the nearest module around it with any.
    """
    scope = attention.module
    for _ in range(3):
        named = {n: p for n, p in model.named_parameters() if n.startswith(f"{scope}." if scope else "")}
        if sum(p.numel() for p in named.values()) > _LARGEST_SCOPE:
            return {role: {} for role in ROLES}
        query = _head_bits(named, attention.factors["query"], attention.heads)
        if query or not scope:
            break
        scope = scope.rpartition(".")[0]
    return {
        role: query if role == "query" else _head_bits(named, attention.factors[role], attention.heads)
        for role in ROLES
    }


def _draw(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _head_bits(named: dict[str, torch.nn.Parameter], part: HeadTensor, heads: int) -> dict[str, torch.Tensor]:
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


def in_file(model: Any, attentions: list[HeadBits]) -> list[HeadBits]:
    """Translates entries of parameters into entries of the file that `save_pretrained` writes.

    The model is saved with the integers instead of its weights, once for all attentions that share no parameter. A
    second save, with the number of the attention as the integer, tells which attention an entry of the file belongs to.
    """
    groups: list[list[int]] = []
    for number, head_bits in enumerate(attentions):
        names = {name for by_name in head_bits.values() for name in by_name}
        for group in groups:
            if not any(names & set(by_name) for other in group for by_name in attentions[other].values()):
                group.append(number)
                break
        else:
            groups.append([number])
    result: list[HeadBits] = [{role: {} for role in ROLES} for _ in attentions]
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
    """Saves integers instead of parameters, and returns the tensors of the file that are not all 0."""
    if not codes:
        return {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_parameter = {id(parameters[name]): code.double() for name, code in codes.items()}
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        known = id(parameters.get(name))  # a parameter may have several names, and only one is saved
        state[name] = by_parameter.setdefault(known, torch.zeros_like(value, dtype=torch.float64))
        if name not in parameters:
            del by_parameter[known]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=state)
        tensors = load_file(Path(folder) / "model.safetensors")
    return {name: value.round().long() for name, value in tensors.items() if value.any()}
