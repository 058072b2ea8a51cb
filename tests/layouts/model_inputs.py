"""Guesses arguments that a model or one of its attention modules may run with, to be tried one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

Arguments = dict[str, Any]
TOKENS = 12
STATES = 16
ENCODED = 9
"""The lengths of text, of hidden states and of encoder states. They differ, so that a wrong axis shows."""

_PIXELS = ("pixel_values", "pixel_values_videos", "images", "x", "hidden_states", "image")
_GRIDS = {  # the numbers of frames, rows and columns of patches
    **dict.fromkeys(("grid_thw", "image_grid_thw", "grid_thws"), (1, 8, 8)),
    **dict.fromkeys(("grid_hw", "image_grid_hws", "target_sizes"), (8, 8)),
}
_PICTURE_MASKS = ("pixel_attention_mask", "attention_mask")
_SOUNDS = ("input_features", "audio_mel", "hidden_states", "input_values", "spectrogram")
_SOUND_MASKS = ("input_features_mask", "audio_mel_mask")
_VECTORS = (
    *("past_values", "x", "inputs", "inputs_embeds", "hidden_states", "sequence", "query_embeds", "states"),
)
_ATTENDED = {  # names of the other sequence of cross-attention
    *(
        "encoder_hidden_states",
        "key_value_states",
        "key",
        "value",
        "k",
        "v",
        "key_states",
        "value_states",
        "kv",
    ),
    *("context", "cross_attention_states", "encoder_states", "latents", "cross_hidden_states"),
}


def _parameters(module: torch.nn.Module) -> dict[str, bool]:
    """Returns the names of the parameters of `forward`, and whether each is required."""
    return {
        name: parameter.default is parameter.empty
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _size(config: Any, *names: str, default: int) -> int:
    """Returns the first of these sizes that a configuration has."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and value > 0:
            return value
    return default


def of_model(module: torch.nn.Module) -> Iterator[Arguments]:
    """Yields arguments for a model: text first, then pictures, sound and other inputs."""
    torch.manual_seed(0)
    names = _parameters(module)
    width = _size(module.config, "hidden_size", "d_model", "embed_dim", "dim", default=48)
    encoded_width = _size(module.config, "encoder_hidden_size", "cross_attention_hidden_size", default=width)
    encoded = {"encoder_hidden_states": torch.randn(1, ENCODED, encoded_width)}
    words = min(_size(getattr(module.config, "text_config", module.config), "vocab_size", default=90), 90)
    tokens = torch.randint(3 if words > 8 else 0, words, (1, TOKENS))
    always: Arguments = {}
    if "decoder_input_ids" in names:
        always["decoder_input_ids"] = tokens[:, :7]
    if names.get("encoder_hidden_states"):
        always |= encoded
    if "bbox" in names:
        always["bbox"] = torch.zeros(1, TOKENS, 4, dtype=torch.long)
    if names.get("attention_mask"):
        always["attention_mask"] = torch.ones(1, TOKENS, dtype=torch.long)
    if "input_ids" in names:
        if "encoder_hidden_states" in names:
            yield {"input_ids": tokens, **always, **encoded}
        yield {"input_ids": tokens, **always}
    also_text = {"input_ids": tokens} if names.get("input_ids") else {}
    for arguments in _pictures(module.config, names):
        yield {**also_text, **always, **arguments}
    for arguments in (*_sounds(module.config, names), *_vectors(module.config, names, width)):
        yield {**always, **arguments}
    if "query_embeds" in names:
        yield {"query_embeds": torch.randn(1, 6, width), **encoded}


def _pictures(config: Any, names: dict[str, bool]) -> Iterator[Arguments]:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or 28
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = _size(config, "num_channels", "in_channels", "in_chans", default=3)
    patch = _size(config, "patch_size", default=14)
    frames = _size(config, "temporal_patch_size", default=2)
    entries = channels * patch * patch
    image = torch.randn(1, channels, height, width)
    for name in filter(names.__contains__, _PIXELS):
        for grid in filter(names.__contains__, _GRIDS):
            for shape in (
                (64, entries * frames),
                (64, entries),
                (64, channels, patch, patch),
                (1, 64, entries),
            ):
                yield {name: torch.randn(shape), grid: torch.tensor([_GRIDS[grid]])}
        yield {name: image}
        for number in (8, 16, 4, 2, 1):
            yield {name: image[:, None].expand(-1, number, -1, -1, -1)}
        if "spatial_shapes" in names:
            arguments: Arguments = {
                name: torch.randn(1, 16, entries),
                "spatial_shapes": torch.tensor([[4, 4]]),
            }
            arguments |= {mask: torch.ones(1, 16) for mask in _PICTURE_MASKS if mask in names}
            yield arguments
        for side in (224, 64):
            yield {name: torch.randn(1, channels, side, side)}


def _sounds(config: Any, names: dict[str, bool]) -> Iterator[Arguments]:
    bands = _size(
        config,
        *("num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "feature_dim", "input_dim"),
        "input_channels",
        default=16,
    )
    positions = _size(config, "max_source_positions", default=32)
    mask = (
        "attention_mask"
        if names.get("attention_mask")
        else next(filter(names.__contains__, _SOUND_MASKS), None)
    )
    for name in filter(names.__contains__, _SOUNDS):
        for shape in (
            *((1, bands, 2 * positions), (1, 64, bands), (1, bands, 200), (bands, 200), (1, bands, 3000)),
            *((1, 1, bands, 200), (1, 1, 1001, 64)),
        ):
            arguments: Arguments = {name: torch.randn(shape)}
            if "feature_lens" in names:
                arguments["feature_lens"] = torch.tensor([shape[-1]])
            if "aftercnn_lens" in names:
                arguments["aftercnn_lens"] = torch.tensor([shape[-1] // 2])
            if mask is not None:
                frames = max(shape[1:]) if len(shape) == 3 else shape[-1]
                arguments[mask] = torch.ones(1, frames, dtype=torch.bool)
            yield arguments
        yield {name: torch.randn(1, 4000)}
        yield {name: torch.randn(1, 1, 4000)}


def _vectors(config: Any, names: dict[str, bool], width: int) -> Iterator[Arguments]:
    context = _size(config, "context_length", default=32)
    series = _size(config, "num_input_channels", "input_size", default=1)
    features = _size(config, "input_dim", "feat_dim", default=width)
    for name in filter(names.__contains__, _VECTORS):
        for shape in ((1, context, series), (1, STATES, width), (1, STATES, features), (STATES, width)):
            yield {name: torch.randn(shape)}


def of_attention(module: torch.nn.Module) -> Iterator[Arguments]:
    """Yields arguments for one attention module: hidden states as wide as its linear layers, and rotary embeddings."""
    torch.manual_seed(0)
    names = list(_parameters(module))
    widths = dict.fromkeys(width for child in module.modules() if (width := _width(child)))
    keys = ("head_dim", "attention_head_size", "qk_rope_head_dim")
    size = next((value for key in keys if isinstance(value := getattr(module, key, None), int)), 8)
    for width in widths if names else ():
        yield from _states(names, width, (size, size // 2, width // 4))


def _width(module: torch.nn.Module) -> Any:
    if isinstance(module, torch.nn.Linear):
        return module.in_features
    if isinstance(module, torch.nn.MultiheadAttention):
        return module.embed_dim
    if isinstance(module, torch.nn.Conv2d):
        return module.in_channels
    return module.nx if isinstance(module, Conv1D) else None


def _states(names: list[str], width: int, rotary_sizes: tuple[int, ...]) -> Iterator[Arguments]:
    first, *others = names
    states, flat = torch.randn(1, STATES, width), torch.randn(STATES, width)
    masks: Arguments = {"attention_mask": None} if "attention_mask" in names else {}
    lengths = {"cu_seqlens": torch.tensor([0, STATES], dtype=torch.int32)} if "cu_seqlens" in names else {}
    attended = {name: torch.randn(1, ENCODED, width) for name in others if name in _ATTENDED}
    if "position_embeddings" not in names:
        for arguments in ({first: states, **attended}, {first: states}, {first: torch.randn(1, 4, 4, width)}):
            yield {**arguments, **masks}
        yield {first: flat, **masks, **lengths}
    for size in rotary_sizes if "position_embeddings" in names else ():
        table = torch.randn(STATES, size)
        for arguments in ({first: states, **attended}, {first: states}, {first: torch.randn(1, 4, 4, width)}):
            yield {**arguments, **masks, "position_embeddings": (table[None], table[None])}
        yield {first: flat, **masks, **lengths, "position_embeddings": (table[None], table[None])}
        yield {first: flat, **masks, **lengths, "position_embeddings": (table, table)}
        for positions in (table, torch.randn(1, STATES, width)):
            yield {first: states, **attended, **masks, "position_embeddings": positions}
    yield {first: torch.randn(1, width, 4, 4)}
