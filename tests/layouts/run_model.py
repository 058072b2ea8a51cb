"""Finds the softmax attention of a model by running it, whatever it takes to run."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from layouts import model_inputs
from layouts.attention_recorder import Attention, Part, Watch

NONE = "it ran without attention"
_SECONDS = 6
"""For all runs of one model, after which no other arguments are tried."""
_SIGNS = (
    *("softmax(", "softmax.apply(", "attention_interface(", "scaled_dot_product_attention("),
    *("eager_attention_forward(", "multi_head_attention"),
)
_NOT_ATTENTION = re.compile(
    r"^(?!.*(attention|attn)).*(rout|gate|expert|moe|quantiz|pooler|head$|hyperconnection)", re.IGNORECASE
)


Run = tuple[str, model_inputs.Arguments]
"""A part of a model and arguments that it runs with."""


def observe(model: torch.nn.Module) -> tuple[list[Attention], list[Run], dict[str, str]]:
    """Every attention that could be made to run, once for each module that computes it.

    A model is run with whatever arguments work, then those of its parts that did not take part, and last the single attention
    modules that are still left.

    Returns:
        The attentions, the runs that showed them, and why other parts did not run.
    """
    found: dict[tuple[str, int], Attention] = {}
    runs: list[Run] = []
    failures: dict[str, str] = {}
    end = time.process_time() + _SECONDS

    def attempt(name: str, tries: Iterator[model_inputs.Arguments]) -> None:
        errors = []
        for arguments in tries:
            if time.process_time() > end:
                errors.append("out of time")
                break
            fresh, error = run(model, name, arguments, found)
            if fresh:
                runs.append((name, arguments))
            if error is None:
                return
            errors.append(error)
        if errors:
            failures[name] = " || ".join(sorted(errors, key=lambda error: error != NONE))[:1500]

    for name, module in model.named_modules():
        took_part = name and any(owner.startswith(f"{name}.") for owner, _ in found)
        if isinstance(module, transformers.PreTrainedModel) and not took_part:
            attempt(name, model_inputs.of_model(module))
    given_up: set[str] = set()
    for name in not_run(model, {owner for owner, _ in found}):
        if layered(name)[0] not in given_up:
            attempt(name, model_inputs.of_attention(model.get_submodule(name)))
            if name in failures:
                given_up.add(layered(name)[0])
    return list(found.values()), runs, failures


def output_of(model: torch.nn.Module, runs: list[Run], module: str) -> Part:
    """What the heads of one attention put out in the first of these runs that has it."""
    for name, arguments in runs:
        part = model.get_submodule(name)
        with Watch(part) as watch, contextlib.suppress(Exception):
            part(**arguments)
        for attention in watch.found:
            if ".".join(filter(None, (name, attention.module))) == module:
                return attention.output
    raise ValueError(f"{module} did not run")


def run(
    model: torch.nn.Module,
    name: str,
    arguments: model_inputs.Arguments,
    found: dict[tuple[str, int], Attention],
) -> tuple[bool, str | None]:
    """Runs a part of a model; adds the attention it shows to `found`. Whether there was any, and the error if it failed."""
    module = model.get_submodule(name)
    error = None
    with Watch(module) as watch:
        try:
            module(**arguments)
        except Exception as raised:  # whatever a model makes of our arguments
            shapes = {
                key: tuple(value.shape) for key, value in arguments.items() if isinstance(value, torch.Tensor)
            }
            error = f"{shapes}: {type(raised).__name__}: {str(raised)[:150]}"
    fresh = False
    counted: dict[str, int] = {}
    for attention in watch.found:
        if attention.call or attention.heads < 1 or not attention.output.tensor.requires_grad:
            continue  # what a module computes a second time depends on all it computed before
        owner = ".".join(part for part in (name, attention.module) if part)
        index = counted[owner] = counted.get(owner, -1) + 1
        if (owner, index) not in found:
            found[owner, index] = replace(attention, module=owner)
            fresh = True
    if error is None and not watch.found:
        error = NONE
    return fresh, error


@contextlib.contextmanager
def without_norms(model: torch.nn.Module, attention: set[str]) -> Iterator[None]:
    """Turns off the norms inside attention modules, some of which mix the heads (OLMo 2)."""
    changed = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{owner}.") for owner in attention)
        if inside and "norm" in type(module).__name__.lower() and not list(module.children()):
            module.forward = _same
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@contextlib.contextmanager
def stirred(model: torch.nn.Module, attention: set[str]) -> Iterator[None]:
    """Adds noise to what goes into the products of attention modules: nothing has a gradient where they are fed zeros."""

    def noisy(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *rest = inputs
        return (torch.nan_to_num(first) + 0.1 * torch.randn_like(first), *rest)

    handles = [
        module.register_forward_pre_hook(noisy)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and any(name.startswith(f"{owner}.") for owner in attention)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same(inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return inputs


def layered(name: str) -> tuple[str, list[int]]:
    """A module's or tensor's name with its numbers taken out: `model.layers.{}.self_attn`, [3]."""
    numbers = [int(n) for n in re.findall(r"(?<=\.)\d+(?=\.|$)", name)]
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "{}", name), numbers


@functools.cache
def _mentions_softmax(kind: type) -> bool:
    if kind is torch.nn.MultiheadAttention:
        return True
    if issubclass(kind, transformers.PreTrainedModel) or kind.__module__.startswith("torch."):
        return False
    if _NOT_ATTENTION.search(kind.__name__):
        return False
    try:
        source = inspect.getsource(kind).lower()
    except (OSError, TypeError):
        return False
    return any(sign in source for sign in _SIGNS)


def looks_like_attention(model: torch.nn.Module) -> list[str]:
    """The innermost modules whose code mentions a softmax, other than routers: what may be attention that did not run."""
    found = [
        name
        for name, module in model.named_modules()
        if _mentions_softmax(module.__class__) and any(True for _ in module.parameters())
    ]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def not_run(model: torch.nn.Module, ran: set[str]) -> list[str]:
    """What looks like attention but is none of the modules in `ran`, nor in one of them or around one of them."""
    return [
        name
        for name in looks_like_attention(model)
        if not any(f"{r}.".startswith(f"{name}.") or name.startswith(f"{r}.") for r in ran)
    ]
