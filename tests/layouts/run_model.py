"""Runs a model with the arguments that work, and records its softmax attention."""

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
from layouts.attention_recorder import AttentionRecorder, HeadTensor, RecordedAttention

NO_ATTENTION = "it ran without attention"
_SECONDS = 6
"""For all runs of one model. After that, no other arguments are tried."""
_SOFTMAX_CALLS = (
    *("softmax(", "softmax.apply(", "attention_interface(", "scaled_dot_product_attention("),
    *("eager_attention_forward(", "multi_head_attention"),
)
_NOT_ATTENTION = re.compile(
    r"^(?!.*(attention|attn)).*(rout|gate|expert|moe|quantiz|pooler|head$|hyperconnection)", re.IGNORECASE
)


Run = tuple[str, model_inputs.Arguments]
"""The name of a module, and arguments that it runs with."""


def record_attention(model: torch.nn.Module) -> tuple[list[RecordedAttention], list[Run], dict[str, str]]:
    """Records every attention that can be made to run, once for each module that computes it.

    The whole model runs first, then the submodels that did not take part, then the attention modules that are left.

    Returns:
        The attentions, the runs that recorded them, and the errors of modules that did not run, by name.
    """
    found: dict[tuple[str, int], RecordedAttention] = {}
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
            failures[name] = " || ".join(sorted(errors, key=lambda error: error != NO_ATTENTION))[:1500]

    for name, module in model.named_modules():
        took_part = name and any(owner.startswith(f"{name}.") for owner, _ in found)
        if isinstance(module, transformers.PreTrainedModel) and not took_part:
            attempt(name, model_inputs.of_model(module))
    given_up: set[str] = set()
    for name in attention_not_run(model, {owner for owner, _ in found}):
        if split_numbers(name)[0] not in given_up:
            attempt(name, model_inputs.of_attention(model.get_submodule(name)))
            if name in failures:
                given_up.add(split_numbers(name)[0])
    return list(found.values()), runs, failures


def output_of(model: torch.nn.Module, runs: list[Run], module: str) -> HeadTensor:
    """Returns the outputs of the heads of one attention, in the first of these runs that records it."""
    for name, arguments in runs:
        part = model.get_submodule(name)
        with AttentionRecorder(part) as recorder, contextlib.suppress(Exception):
            part(**arguments)
        for attention in recorder.found:
            if ".".join(filter(None, (name, attention.module))) == module:
                return attention.output
    raise ValueError(f"{module} did not run")


def run(
    model: torch.nn.Module,
    name: str,
    arguments: model_inputs.Arguments,
    found: dict[tuple[str, int], RecordedAttention],
) -> tuple[bool, str | None]:
    """Runs a module and adds its attention to `found`. Returns whether any was new, and the error if the run failed."""
    module = model.get_submodule(name)
    error = None
    with AttentionRecorder(module) as recorder:
        try:
            module(**arguments)
        except Exception as raised:  # a model may raise anything for unsuitable arguments
            shapes = {
                key: tuple(value.shape) for key, value in arguments.items() if isinstance(value, torch.Tensor)
            }
            error = f"{shapes}: {type(raised).__name__}: {str(raised)[:150]}"
    fresh = False
    counted: dict[str, int] = {}
    for attention in recorder.found:
        if attention.call or attention.heads < 1 or not attention.output.tensor.requires_grad:
            continue  # a second call depends on all that came before it
        owner = ".".join(part for part in (name, attention.module) if part)
        index = counted[owner] = counted.get(owner, -1) + 1
        if (owner, index) not in found:
            found[owner, index] = replace(attention, module=owner)
            fresh = True
    if error is None and not recorder.found:
        error = NO_ATTENTION
    return fresh, error


@contextlib.contextmanager
def without_norms(model: torch.nn.Module, attention: set[str]) -> Iterator[None]:
    """Turns off the norms inside attention modules, because some mix the heads (OLMo 2)."""
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
def with_noise(model: torch.nn.Module, attention: set[str]) -> Iterator[None]:
    """Adds noise to the inputs of the linear layers in attention modules, since an input of zeros gives no gradient."""

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


def split_numbers(name: str) -> tuple[str, list[int]]:
    """Splits a name into its pattern and its numbers: `model.layers.{}.self_attn`, [3]."""
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
    return any(call in source for call in _SOFTMAX_CALLS)


def looks_like_attention(model: torch.nn.Module) -> list[str]:
    """Returns the innermost modules whose code mentions a softmax, except routers: attention that may not have run."""
    found = [
        name
        for name, module in model.named_modules()
        if _mentions_softmax(module.__class__) and any(True for _ in module.parameters())
    ]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def attention_not_run(model: torch.nn.Module, ran: set[str]) -> list[str]:
    """Returns the modules that look like attention and are not in `ran`, nor inside or around a module in `ran`."""
    return [
        name
        for name in looks_like_attention(model)
        if not any(f"{r}.".startswith(f"{name}.") or name.startswith(f"{r}.") for r in ran)
    ]
