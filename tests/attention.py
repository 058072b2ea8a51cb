"""Watches softmax attention while a model runs, and finds which stored weights each head's numbers come from.

Nothing here knows how a model names or lays out its weights. What is watched is the arithmetic: a product of two tensors, which
goes through a softmax, whose result is multiplied with a third tensor. Those three are the queries, the keys and the values; the
gradient of one head's part of them says which entries of which parameters that head is made of; and `save_pretrained` itself
carries these to the names and the order of the file.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
import transformers
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

_PRODUCTS = {"matmul", "bmm", "__matmul__", "__rmatmul__", "baddbmm", "einsum"}
_SOFTMAX = {"softmax", "_softmax"}
_ENDS = {
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "embedding",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "batch_norm",
    "addmm",
}
_LARGEST_SCOPE = 4_000_000
"""Parameters of a module that still counts as one attention."""
NONE = "it ran without attention"
MOST_HEADS = 52
"""Bits of the integers that a float64 holds; later heads of an attention are left out."""
_HEAD_COUNTS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "heads",
    "nheads",
    "num_key_value_heads",
)
ROLES = ("query", "key", "value")


Marks = dict[str, dict[str, torch.Tensor]]
"""By role and tensor: an integer for every entry, whose bit h says that head h needs it."""


@dataclass
class Part:
    """One of the factors of an attention, with the axis that counts its heads."""

    tensor: torch.Tensor
    axis: int

    @property
    def heads(self) -> int:
        return self.tensor.shape[self.axis]

    def head(self, index: int) -> torch.Tensor:
        return self.tensor.select(self.axis, index)


@dataclass
class Attention:
    """One softmax attention that was computed."""

    module: str
    parts: dict[str, Part]
    output: Part
    call: int
    """How often the module had run before."""

    @property
    def heads(self) -> int:
        return self.output.heads


def _axes(equation: str, operands: list[torch.Tensor]) -> tuple[int, int, int] | None:
    """Which axis of both operands and of the result of an einsum counts the heads."""
    left, _, out = equation.replace(" ", "").partition("->")
    first, _, second = left.partition(",")
    if not out or "." in equation or len(operands) != 2:
        return None
    shared = [letter for letter in out if letter in first and letter in second]
    sizes = dict(zip(first, operands[0].shape, strict=True))
    shared = [letter for letter in shared if sizes[letter] > 1] or shared
    if not shared:
        return None
    letter = shared[-1]
    return first.index(letter), second.index(letter), out.index(letter)


class Watch(TorchFunctionMode):
    """Collects the softmax attention of everything that runs inside it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self._stack: list[str] = []
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        self._model = model

    def __enter__(self) -> Watch:
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

    def _record(self, query: Part, key: Part, value: Part, output: Part) -> None:
        name = self._stack[-1] if self._stack else ""
        parts = [query, key, value, output]
        if not all(part.heads in self._counts(name) for part in parts[::3]):
            for axis in range(
                output.tensor.dim() - 2
            ):  # windows or blocks may come between the heads and the rest
                sizes = {
                    part.tensor.shape[axis] for part in parts if part.tensor.dim() == output.tensor.dim()
                }
                if len(sizes) == 1 and sizes <= self._counts(name):
                    parts = [Part(part.tensor, axis) for part in parts]
                    break
        self.found.append(
            Attention(name, dict(zip(ROLES, parts, strict=False)), parts[3], self._calls.get(name, 0))
        )

    def _counts(self, name: str) -> set[int]:
        """What a module, or one of the two around it, says of the number of its heads."""
        names = [name, name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]]
        values = (getattr(self._model.get_submodule(n), key, None) for n in names for key in _HEAD_COUNTS)
        return {value for value in values if isinstance(value, int)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            out = func(*args, **kwargs)
            query, key, value = (
                (*args[:3],) if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
            )
            self._record(Part(query, -3), Part(key, -3), Part(value, -3), Part(out, -3))
            return out
        if name == "multi_head_attention_forward":
            return self._torch_attention(func, args, kwargs)
        out = func(*args, **kwargs)
        if not isinstance(out, (torch.Tensor, tuple, list)) or name in _ENDS or name.startswith("__get__"):
            return out
        if name in _PRODUCTS and isinstance(out, torch.Tensor):
            return self._product(name, args, kwargs, out)
        tag = next(filter(None, map(_tag, _tensors((*args, *kwargs.values())))), None)
        if tag is not None:
            kind, parts = tag
            if kind == "scores" and name in _SOFTMAX:
                tag = ("weights", parts)
            for t in _tensors((out,)):
                if t.dim() >= 3:
                    _set_tag(t, tag)
        return out

    def _product(self, name: str, args: Any, kwargs: Any, out: torch.Tensor) -> torch.Tensor:
        if name == "einsum":
            equation, *operands = args
            if operands and isinstance(operands[0], (list, tuple)):
                operands = list(operands[0])
            if not isinstance(equation, str):
                return out
            axes = _axes(equation, operands)
            if axes is None:
                return out
        else:
            operands = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            operands = operands[-2:]
            if len(operands) != 2 or min(t.dim() for t in operands) < 3:
                return out
            axes = (-3, -3, -3)
        for index, other in ((0, 1), (1, 0)):
            tag = _tag(operands[index])
            if tag is not None and tag[0] == "weights":
                self._record(*tag[1], Part(operands[other], axes[other]), Part(out, axes[2]))
                return out
        _set_tag(out, ("scores", (Part(operands[0], axes[0]), Part(operands[1], axes[1]))))
        return out

    def _torch_attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        bound = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs)
        bound.apply_defaults()
        a = bound.arguments
        heads, width = a["num_heads"], a["embed_dim_to_check"]
        if a["use_separate_proj_weight"]:
            weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
        else:
            weights = a["in_proj_weight"].chunk(3)
        biases = a["in_proj_bias"].chunk(3) if a["in_proj_bias"] is not None else (None, None, None)
        parts = []
        for role, weight, bias in zip(ROLES, weights, biases, strict=True):
            inputs = a[role]
            projected = functional.linear(inputs, weight, bias)  # [positions, batch, width]
            parts.append(projected.reshape(*projected.shape[:-1], heads, width // heads).movedim(-2, 0))
        queries, keys, values = (part if part.dim() == 4 else part[:, :, None] for part in parts)
        shares = torch.softmax(torch.einsum("htbd,hsbd->hbts", queries, keys), -1)
        out = torch.einsum("hbts,hsbd->htbd", shares, values)
        query, key, value = (Part(part, 0) for part in parts)
        self._record(query, key, value, Part(out, 0))
        return func(*args, **kwargs)


_Tag = tuple[str, tuple[Part, Part]]
"""What a tensor is, "scores" or the "weights" that a softmax makes of them, and the queries and keys it comes from."""


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


# ---------------------------------------------------------------------------------------------------------------------------


def _size(config: Any, *names: str, default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and value > 0:
            return value
    return default


def candidates(module: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """Keyword arguments that this model might run with."""
    config = module.config
    torch.manual_seed(0)
    parameters = inspect.signature(module.forward).parameters
    required = {
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    names = set(parameters)
    text = getattr(config, "text_config", config)
    vocabulary = _size(text, "vocab_size", default=96)
    vocabulary = min(vocabulary, 90)
    tokens = torch.randint(3 if vocabulary > 8 else 0, vocabulary, (1, 12))
    hidden = _size(config, "hidden_size", "d_model", "embed_dim", "dim", default=48)
    encoder_hidden = _size(config, "encoder_hidden_size", "cross_attention_hidden_size", default=hidden)

    def extra() -> dict[str, Any]:
        more: dict[str, Any] = {}
        if "decoder_input_ids" in names:
            more["decoder_input_ids"] = tokens[:, :7]
        if "encoder_hidden_states" in required:
            more["encoder_hidden_states"] = torch.randn(1, 9, encoder_hidden)
        if "bbox" in names:
            more["bbox"] = torch.zeros(1, 12, 4, dtype=torch.long)
        if "attention_mask" in required:
            more["attention_mask"] = torch.ones(1, 12, dtype=torch.long)
        return more

    if "input_ids" in names:
        if "encoder_hidden_states" in names and "encoder_hidden_states" not in required:
            yield {"input_ids": tokens, **extra(), "encoder_hidden_states": torch.randn(1, 9, encoder_hidden)}
        if "pixel_values" in names and "image_size" in vars(config):
            pass
        yield {"input_ids": tokens, **extra()}
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 28
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    channels = _size(vision, "num_channels", "in_channels", "in_chans", default=3)
    patch = _size(vision, "patch_size", default=14)
    temporal = _size(vision, "temporal_patch_size", default=2)
    image = torch.randn(1, channels, height, width)
    for name in ("pixel_values", "pixel_values_videos", "images", "x", "hidden_states", "image"):
        if name not in names:
            continue
        grids = [
            n
            for n in ("grid_thw", "image_grid_thw", "grid_hw", "grid_thws", "image_grid_hws", "target_sizes")
            if n in names
        ]
        flat = torch.randn(64, channels * temporal * patch * patch)
        single = torch.randn(64, channels * patch * patch)
        for grid in grids:
            value = (
                torch.tensor([[1, 8, 8]])
                if grid not in ("grid_hw", "image_grid_hws", "target_sizes")
                else torch.tensor([[8, 8]])
            )
            for pixels in (flat, single, torch.randn(64, channels, patch, patch), single[None]):
                yield {name: pixels, grid: value, **extra()}
        both = {"input_ids": tokens} if "input_ids" in required else {}
        yield {name: image, **both, **extra()}
        yield {name: image[:, None].expand(-1, 8, -1, -1, -1), **both, **extra()}
        for n in (16, 4, 2, 1):
            yield {name: image[:, None].expand(-1, n, -1, -1, -1), **both, **extra()}
        if "spatial_shapes" in names:
            yield (
                {
                    name: torch.randn(1, 16, channels * patch * patch),
                    "spatial_shapes": torch.tensor([[4, 4]]),
                    "pixel_attention_mask": torch.ones(1, 16),
                    "attention_mask": torch.ones(1, 16),
                }
                if "pixel_attention_mask" in names
                else {
                    name: torch.randn(1, 16, channels * patch * patch),
                    "spatial_shapes": torch.tensor([[4, 4]]),
                    **({"attention_mask": torch.ones(1, 16)} if "attention_mask" in names else {}),
                }
            )
        for side in (224, 64):
            yield {name: torch.randn(1, channels, side, side), **both, **extra()}
    mel = _size(
        config,
        "num_mel_bins",
        "n_mels",
        "feature_size",
        "input_feat_per_channel",
        "feature_dim",
        "input_dim",
        "input_channels",
        default=16,
    )
    positions = _size(config, "max_source_positions", default=32)
    for name in ("input_features", "audio_mel", "hidden_states", "input_values", "spectrogram"):
        if name not in names:
            continue
        for shape in (
            (1, mel, 2 * positions),
            (1, 64, mel),
            (1, mel, 200),
            (mel, 200),
            (1, mel, 3000),
            (1, 1, mel, 200),
            (1, 1, 1001, 64),
        ):
            more = {}
            if "feature_lens" in names:
                more["feature_lens"] = torch.tensor([shape[-1]])
            if "aftercnn_lens" in names:
                more["aftercnn_lens"] = torch.tensor([shape[-1] // 2])
            if "attention_mask" in required or "input_features_mask" in names or "audio_mel_mask" in names:
                mask = (
                    "attention_mask"
                    if "attention_mask" in required
                    else "input_features_mask"
                    if "input_features_mask" in names
                    else "audio_mel_mask"
                )
                frames = max(shape[1:]) if len(shape) == 3 else shape[-1]
                more[mask] = torch.ones(1, frames, dtype=torch.bool)
            yield {name: torch.randn(*shape), **extra(), **more}
        yield {name: torch.randn(1, 4000), **extra()}
        yield {name: torch.randn(1, 1, 4000), **extra()}
    for name in (
        "past_values",
        "x",
        "inputs",
        "inputs_embeds",
        "hidden_states",
        "sequence",
        "query_embeds",
        "states",
    ):
        if name not in names:
            continue
        context = _size(config, "context_length", default=32)
        inputs = _size(config, "num_input_channels", "input_size", default=1)
        yield {name: torch.randn(1, context, inputs), **extra()}
        yield {name: torch.randn(1, 16, hidden), **extra()}
        yield {name: torch.randn(1, 16, _size(config, "input_dim", "feat_dim", default=hidden)), **extra()}
        yield {name: torch.randn(16, hidden), **extra()}
        if "position_ids" in names or "position_embeddings" in names:
            pass
    if "query_embeds" in names:
        yield {
            "query_embeds": torch.randn(1, 6, hidden),
            "encoder_hidden_states": torch.randn(1, 9, encoder_hidden),
        }


Run = tuple[str, dict[str, Any]]
"""A part of a model and arguments that it runs with."""


def observe(model: torch.nn.Module, seconds: float = 6) -> tuple[list[Attention], list[Run], dict[str, str]]:
    """Every attention that could be made to run, once for each module that computes it.

    A model is run with whatever arguments work, then those of its parts that did not take part, and last the single attention
    modules that are still left.

    Returns:
        The attentions, the runs that showed them, and why other parts did not run.
    """
    found: dict[tuple[str, int], Attention] = {}
    runs: list[Run] = []
    failures: dict[str, str] = {}
    end = time.process_time() + seconds

    def attempt(name: str, tries: Iterator[dict[str, Any]]) -> None:
        errors = []
        for arguments in tries:
            if time.process_time() > end:
                errors.append("out of time")
                break
            fresh, error = _run(model, name, arguments, found)
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
            attempt(name, candidates(module))
    given_up: set[str] = set()
    for name in not_run(model, {owner for owner, _ in found}):
        if layered(name)[0] not in given_up:
            attempt(name, alone(model.get_submodule(name)))
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


def _run(
    model: torch.nn.Module, name: str, arguments: dict[str, Any], found: dict[tuple[str, int], Attention]
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


def alone(module: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """Arguments that a single attention module might run with."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    widths = [child.in_features for child in module.modules() if isinstance(child, torch.nn.Linear)]
    widths += [
        child.embed_dim for child in module.modules() if isinstance(child, torch.nn.MultiheadAttention)
    ]
    widths += [child.nx for child in module.modules() if isinstance(child, Conv1D)]
    widths += [child.in_channels for child in module.modules() if isinstance(child, torch.nn.Conv2d)]
    if not widths or not names:
        return
    size = next(
        (
            getattr(module, n)
            for n in ("head_dim", "attention_head_size", "qk_rope_head_dim")
            if isinstance(getattr(module, n, None), int)
        ),
        8,
    )
    for width in dict.fromkeys(widths):
        states = torch.randn(1, 16, width)
        more = {
            name: torch.randn(1, 9, width)
            for name in names[1:]
            if name
            in {
                "encoder_hidden_states",
                "key_value_states",
                "key",
                "value",
                "k",
                "v",
                "key_states",
                "context",
                "value_states",
                "cross_attention_states",
                "encoder_states",
                "kv",
                "latents",
                "cross_hidden_states",
            }
        }
        for half in (size, size // 2, width // 4):
            rotary: dict[str, Any] = {}
            if "position_embeddings" in names:
                rotary["position_embeddings"] = (torch.randn(1, 16, half), torch.randn(1, 16, half))
            masks: dict[str, Any] = {"attention_mask": None} if "attention_mask" in names else {}
            for extra in (more, {}):
                yield {names[0]: states, **extra, **rotary, **masks}
            yield {names[0]: torch.randn(1, 4, 4, width), **rotary, **masks}
            yield {
                names[0]: torch.randn(16, width),
                **rotary,
                **masks,
                **({"cu_seqlens": torch.tensor([0, 16], dtype=torch.int32)} if "cu_seqlens" in names else {}),
            }
            if "position_embeddings" in names:
                flat = (torch.randn(16, half), torch.randn(16, half))
                yield {
                    names[0]: torch.randn(16, width),
                    "position_embeddings": flat,
                    **masks,
                    **(
                        {"cu_seqlens": torch.tensor([0, 16], dtype=torch.int32)}
                        if "cu_seqlens" in names
                        else {}
                    ),
                }
                yield {names[0]: states, **more, "position_embeddings": torch.randn(16, half), **masks}
                yield {names[0]: states, **more, "position_embeddings": torch.randn(1, 16, width), **masks}
            if not rotary:
                break
        yield {names[0]: torch.randn(1, width, 4, 4)}


def _draw(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def entries(model: torch.nn.Module, attention: Attention) -> Marks:
    """Which entries of which parameters each head's queries, keys and values are made of.

    By role and parameter: an integer for every entry, whose bit h says that head h of the factor needs it. Only the parameters
    of the module that computes the attention count (or of the nearest one around it that has any).
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


def layered(name: str) -> tuple[str, list[int]]:
    """A module's or tensor's name with its numbers taken out: `model.layers.{}.self_attn`, [3]."""
    numbers = [int(n) for n in re.findall(r"(?<=\.)\d+(?=\.|$)", name)]
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "{}", name), numbers


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
            _run(model, name, arguments, again)
        found = list(again.values())
        saved = in_file(model, [entries(model, attention) for attention in found])
    result = [
        Traced(
            a.module, a.heads, marks, {role: set(part.tensor.shape[-2:]) for role, part in a.parts.items()}
        )
        for a, marks in zip(found, saved, strict=True)
    ]
    return result, runs, failures


_SIGNS = (
    "softmax(",
    "softmax.apply(",
    "attention_interface(",
    "scaled_dot_product_attention(",
    "eager_attention_forward(",
    "multi_head_attention",
)
_NOT_ATTENTION = re.compile(
    r"^(?!.*(attention|attn)).*(rout|gate|expert|moe|quantiz|pooler|head$|hyperconnection)", re.IGNORECASE
)


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
