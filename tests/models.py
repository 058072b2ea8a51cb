"""Tiny models of transformers with random weights, and what their attention heads do when they run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

LAYERS = 3
HEADS = 6
GROUPS = 2
HEAD_SIZE = 16
"""The size of a head where the configuration states it; not `HIDDEN_SIZE / HEADS`."""
HIDDEN_SIZE = 48
VOCABULARY = 96

_SIZES: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "max_window_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head"), HEADS),
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD_SIZE,
    **dict.fromkeys(
        ("hidden_size", "n_embd", "embedding_size", "input_embedding_size", "word_embed_proj_dim"),
        HIDDEN_SIZE,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
            "prefix_dense_intermediate_size",
            "ffn_dim",
            "output_embedding_size",
        ),
        32,
    ),
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_key_value_groups"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1),
    "sliding_window": 8,
    **dict.fromkeys(("n_group", "topk_group", "mamba_d_conv"), 1),
}
_TOWER_SIZES: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "depth"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("hidden_size", "embed_dim", "vision_output_dim", "projector_output_dim"), 32),
    **dict.fromkeys(("out_hidden_size", "projection_dim"), HIDDEN_SIZE),
    **dict.fromkeys(("intermediate_size", "projector_input_dim"), 32),
    "image_size": 28,
    "patch_size": 14,
    "head_dim": 8,
}
_ROTARY_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_SPECIAL: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "helium": {"head_dim": HIDDEN_SIZE // HEADS},  # its output projection takes no other
    "qwen2_vl_text": {"rope_parameters": _ROTARY_SECTIONS},
    "qwen2_5_vl_text": {"rope_parameters": _ROTARY_SECTIONS},
}
_OUTPUT_PROJECTION = re.compile(r"(o_proj|out_proj|c_proj|dense)$")
_BEFORE_OUTPUT = "attn_sub_norm"  # BitNet's, which mixes the heads before the output projection does


def _shrunk(model_type: str, sizes: dict[str, int]) -> dict[str, Any]:
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    return {key: size for key, size in sizes.items() if key in known} | _SPECIAL.get(model_type, {})


def tiny(model_type: str) -> tuple[transformers.PreTrainedModel, transformers.PretrainedConfig]:
    """A model of this type, with random weights: 3 layers, 6 heads, where the type has groups 2 of them.

    A model of several towers gets a small one of each.
    """
    default = transformers.AutoConfig.for_model(model_type)
    towers = {
        name: {
            "model_type": getattr(default, name).model_type,
            **_shrunk(getattr(default, name).model_type, _SIZES if name == "text_config" else _TOWER_SIZES),
        }
        for name in default.sub_configs
        if getattr(default, name) is not None
    }
    config = transformers.AutoConfig.for_model(
        model_type, **towers, **({} if "text_config" in towers else _shrunk(model_type, _SIZES))
    )
    torch.manual_seed(0)
    for auto in (
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForMaskedLM,
        transformers.AutoModel,
    ):
        if type(config) in auto._model_mapping:
            model: Any = auto.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
            break
    else:
        raise ValueError(f"transformers has no model of type {model_type}")
    for parameter in model.parameters():  # larger than at the start of a training: every head must matter
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    return model, config


def text_config(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    """The part of the configuration that is about the text model."""
    part: transformers.PretrainedConfig = getattr(config, "text_config", config)
    return part


def attention_modules(model: torch.nn.Module, layer: int) -> dict[str, torch.nn.Linear | Conv1D]:
    """The modules that compute queries, keys and values of the text model's self-attention in one layer."""
    pattern = re.compile(
        rf"^(?!.*(vision|visual|image)).*\b(layers|layer|h)\.{layer}\."
        r"(self_attn|attention\.self|attn)\.(q_proj|k_proj|v_proj|query|key|value|c_attn)$"
    )
    return {name: module for name, module in model.named_modules() if pattern.match(name)}


@contextmanager
def _recorded(model: torch.nn.Module, layer: int) -> Iterator[list[torch.Tensor]]:
    """Collects what the heads of one layer put out, side by side in the last dimension, in every run of the model."""
    attention = {re.sub(r"(\.self)?\.\w+$", "", name) for name in attention_modules(model, layer)}
    assert len(attention) == 1, attention
    (prefix,) = attention
    inner = {name: module for name, module in model.named_modules() if name.startswith(prefix + ".")}
    output = [module for name, module in inner.items() if name.endswith(_BEFORE_OUTPUT)] or [
        module for name, module in inner.items() if _OUTPUT_PROJECTION.search(name)
    ]
    assert len(output) == 1, list(inner)
    seen: list[torch.Tensor] = []
    handle = output[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def head_outputs(model: torch.nn.Module, heads: int, layer: int) -> torch.Tensor:
    """What every head of one layer puts out for the same random tokens: float [tokens, heads, value size]."""
    tokens = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _recorded(model, layer) as seen:
        model(input_ids=tokens)
    assert len(seen) == 1
    return seen[0].reshape(tokens.numel(), heads, -1)


def flip(folder: Path, copy: Path, tensor: str, axis: int, first: int, size: int) -> None:
    """Copies a checkpoint, with the opposite sign in rows (axis 0) or columns (axis 1) of one tensor.

    Other than noise, that leaves norms over all heads (OLMo 2) as they are.
    """
    copy.mkdir()
    for file in folder.glob("*.json"):
        (copy / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].narrow(axis, first, size).neg_()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def moved_heads(
    base: transformers.PreTrainedModel, tuned: transformers.PreTrainedModel, heads: int, layer: int
) -> list[int]:
    """The heads of one layer that put out something else in `tuned`, if all before that layer is the same."""
    before, after = (head_outputs(model, heads, layer) for model in (base, tuned))
    change = (after - before).abs().amax(dim=(0, 2)) / before.abs().max()
    assert ((change < 1e-5) | (change > 1e-3)).all(), change
    return [int(head) for head in (change > 1e-3).nonzero()]
