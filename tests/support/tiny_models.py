"""Builds tiny random models of every model type of transformers, with the structure of the real ones."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def words(text: str) -> list[str]:
    """Splits a text into words, so that a long list is easy to read."""
    return text.split()


LANGUAGE_MODELS = words(
    """
    afmoe apertus arcee beam biogpt bitnet cohere cohere2 cohere2_moe cwm dots1 ernie4_5 ernie4_5_moe
    eurobert exaone4 exaone_moe flex_olmo flint gemma gemma2 gemma3 gemma3_text glm glm4 glm4_moe gpt_oss
    granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hyperclovax idefics3 internlm3 iquestcoder jais2 kolibri1 llama llama4 llama4_text llava
    llava_next mellum minimax_m2 ministral ministral3 mistral mistral3 mixtral nanochat nemotron olmo olmo2
    olmo3 olmoe opt paligemma phi phimoe qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl
    qwen3_vl_moe seed_oss smollm3 smolvlm solar_open stablelm starcoder2 vaultgemma bert camembert
    data2vec-text electra ernie esm layoutlm megatron-bert rembert roberta roformer xlm-roberta
    xlm-roberta-xl gpt2 imagegpt openai-gpt
    """
)
"""Models that can be run on text alone, and trained."""

LAYERS = 3
HEADS = 6
GROUPS = 2
HEAD_SIZE = 16
"""The size of a head where the configuration states it; not `HIDDEN_SIZE / HEADS`."""
HIDDEN_SIZE = 48
VOCABULARY = 96
_LARGEST = 64_000_000
"""The largest number of parameters of a tiny model."""
_MOST_LAYERS = 8

_LAYER_KEYS = words(
    """
    num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth layers
    num_decoder_layers num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers
    max_window_layers l_layers x_layers r_layers decoder_num_layers speech_encoder_layers t2u_encoder_layers
    t2u_decoder_layers num_layers_per_stack n_layer_per_stack num_blocks num_spatial_layers
    num_temporal_layers num_global_layers conf_num_hidden_layers memory_attention_num_layers
    perceiver_resampler_num_layers mit_num_hidden_layers resampler_depth folding_trunk_num_hidden_layers
    query_dec_layers text_encoder_num_layers num_attention_layers pred_num_hidden_layers
    speech_decoder_prenet_layers
    """
)
_HEAD_KEYS = words(
    """
    num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
    attention_heads num_encoder_attention_heads num_decoder_attention_heads encoder_num_attention_heads
    decoder_num_heads decoder_num_attention_heads swa_num_attention_heads num_sliding_attention_heads
    t2u_encoder_attention_heads t2u_decoder_attention_heads speech_encoder_attention_heads
    conf_num_attention_heads mit_num_attention_heads pred_num_attention_heads decoder_self_attention_heads
    decoder_cross_attention_heads
    """
)
_GROUP_KEYS = words(
    """
    num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads encoder_num_key_value_heads
    decoder_num_key_value_heads num_key_value_attention_heads multi_query_group_num num_query_groups
    num_global_key_value_heads num_attention_groups n_head_kv
    """
)
_HEAD_SIZE_KEYS = words(
    """
    head_dim d_kv attention_head_dim swa_head_dim global_head_dim kv_channels d_head dim_head
    """
)
_WIDTH_KEYS = words(
    """
    hidden_size n_embd d_model embed_dim dim embedding_size emb_dim hidden_dim encoder_hidden_size
    decoder_hidden_size input_embedding_size word_embed_proj_dim dim_model cross_attention_hidden_size
    encoder_hidden_dim decoder_hidden_dim text_hidden_size hidden_size_global projection_dim out_hidden_size
    output_hidden_size vision_hidden_size audio_hidden_size vision_output_dim projector_output_dim
    projector_input_dim pooler_hidden_size encoder_embed_dim decoder_embed_dim proj_codevector_dim
    codevector_dim shared_embedding_dim lru_width projector_hidden_size adapter_out_dim
    speech_encoder_hidden_size hidden_size_per_layer_input descriptor_dim output_dim vit_dim mm_embed_dim
    output_proj_dims ple_embed_dim memory_attention_hidden_size encoder_output_dim backbone_hidden_size
    fpn_hidden_size mask_feature_size feature_size conv_dim_ class_embed_dim text_projection_in_dim
    text_projection_out_dim task_encoder_hidden_dim adapter_input_size adapter_in_dim d_latents
    text_encoder_width mask_dim projection_size pooler_output_size
    """
)
_INNER_KEYS = words(
    """
    intermediate_size moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
    intermediate_size_mlp prefix_dense_intermediate_size ffn_dim output_embedding_size encoder_ffn_dim
    decoder_ffn_dim d_ff mlp_dim ffn_hidden_size dim_ff n_inner d_inner feed_forward_size
    moe_shared_expert_intermediate_size dense_intermediate_size share_expert_dim expert_ffn_hidden_size
    ffn_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim speech_encoder_intermediate_size
    encoder_feedforward_dim dim_feedforward encoder_dim_feedforward decoder_dim_feedforward hidden_dim_
    projection_intermediate_dim projection_hidden_dim resampler_hidden_dim block_ff_dim block_dim
    adapter_hidden_size projection_hidden_size multi_modal_projector_hidden_size downsample_hidden_size
    moe_latent_size memory_fuser_intermediate_dim dense_ffn_hidden_size block_multiple_of
    decoder_intermediate_size encoder_intermediate_size mlp_hidden_size sparse_intermediate_size
    local_intermediate_size
    """
)
_LAYER_INDICES = words(
    """
    vision_feature_layer vision_feature_layers feature_layer deepstack_visual_indexes global_attn_indexes
    fullatt_block_indexes vit_layers intermediate_layers_indices window_block_indexes
    """
)
_VOCABULARY_KEYS = words(
    """
    vocab_size text_vocab_size codebook_vocab_size audio_vocab_size embd_vocab_size decoder_vocab_size
    src_vocab_size tgt_vocab_size input_vocab_size output_vocab_size vocab_size_per_layer_input
    t2u_vocab_size char_vocab_size unit_hifi_gan_vocab_size n_words entity_vocab_size
    """
)
_POSITION_KEYS = words(
    """
    max_position_embeddings n_positions max_2d_position_embeddings max_source_positions max_target_positions
    n_ctx seq_length max_sequence_length num_position_embeddings max_seq_len
    """
)
_SIZES: dict[str, int] = {
    **dict.fromkeys(_HEAD_KEYS, HEADS),
    **dict.fromkeys(_GROUP_KEYS, GROUPS),
    **dict.fromkeys(_HEAD_SIZE_KEYS, HEAD_SIZE),
    **dict.fromkeys(_WIDTH_KEYS, HIDDEN_SIZE),
    **dict.fromkeys(_INNER_KEYS, 32),
    **dict.fromkeys(_VOCABULARY_KEYS, VOCABULARY),
    **dict.fromkeys(_POSITION_KEYS, 64),
    **dict.fromkeys(
        ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "moe_num_experts_"], 4
    ),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group"], 1),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "o_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 20,
    "v_head_dim": 10,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "swa_v_head_dim": 10,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "conv_kernel_size_": 3,
    "sliding_window": 8,
    "query_pre_attn_scalar": 16,
    "context_size": 16,
    "num_filters": 8,
    "base_channels": 32,
    "upsample_initial_channel": 64,
    "upsample_groups": 48,
    "encoder_hash_byte_group_vocab": 100,
    "num_queries": 6,
    "rotary_dim": 4,
    "hc_mult": 2,
    "num_denoising": 4,
    "codebook_size": 32,
    "num_codebooks": 2,
    "num_mel_bins": 16,
    "n_mels": 16,
}
_TOWER_SIZES: dict[str, int] = {
    **dict.fromkeys(_HEAD_KEYS, 4),
    **dict.fromkeys(_GROUP_KEYS, 4),
    **dict.fromkeys(_HEAD_SIZE_KEYS, 8),
    **dict.fromkeys(
        (
            "hidden_size",
            "embed_dim",
            "d_model",
            "dim",
            "vision_output_dim",
            "projector_output_dim",
            "hidden_dim",
        ),
        32,
    ),
}
_IMAGE_SIZES: dict[str, int] = {"image_size": 28, "patch_size": 14, "pretrain_image_size": 28}

_FILLED = {
    *_HEAD_KEYS,
    *_GROUP_KEYS,
    *_HEAD_SIZE_KEYS,
    *_INNER_KEYS,
    *_VOCABULARY_KEYS,
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "n_shared_experts",
    "num_shared_experts",
    "num_experts_per_tok",
}
"""Keys that some configurations leave empty although their models need them."""

_TIME_SERIES = {"prediction_length": 8, "context_length": 16}
_MAMBA = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 1}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_ROTARY_SECTIONS = {"rope_parameters": {**_ROTARY, "mrope_section": [1, 1, 2]}}
_NO_DROPOUT = {"dropout_rate": 0.0}
_IMAGE_TOKEN = {"vocabulary_map": {"<image>": 3}}
_SPECIAL: dict[str, dict[str, Any]] = {
    "autoformer": _TIME_SERIES,
    "bamba": {**_MAMBA, "attn_layer_indices": [0, 2]},
    "chameleon": _IMAGE_TOKEN,
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": _ROTARY, "full_attention": _ROTARY}},
    "dbrx": {"attn_config": {"kv_n_heads": GROUPS, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "electra": {"num_attention_heads": HEADS},
    "emu3": _IMAGE_TOKEN,
    "ernie4_5_vl_moe_text": {
        "head_dim": HEAD_SIZE,
        "rope_parameters": {**_ROTARY, "mrope_section": [3, 3, 2]},
    },
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": HEADS},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": HIDDEN_SIZE // 4}},
    "glm5_next_text": {"index_kpool": 2},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [1, 1]], "spatial_target_layers": [0, 1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "mamba"]},
    "helium": {"head_dim": HIDDEN_SIZE // HEADS},  # its output projection takes no other
    "informer": _TIME_SERIES,
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "num_hidden_layers": 4,
        "num_dense_layers": 2,
    },
    "mimo_v2_flash": {"num_attention_heads": 8},  # its sliding layers have 4 groups
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "perceiver": {
        "num_latents": 8,
        "qk_channels": HIDDEN_SIZE,
        "v_channels": HIDDEN_SIZE,
        "num_self_attention_heads": HEADS,
        "num_cross_attention_heads": HEADS,
        "num_self_attends_per_block": LAYERS,
    },
    "pix2struct_text_model": {"initializer_range": 0.02},
    "qwen2_5_vl_text": _ROTARY_SECTIONS,
    "qwen2_vl_text": _ROTARY_SECTIONS,
    "qwen3_omni_moe_talker": {"spatial_merge_size": 2},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_SIZE,
        "indexer_compress_ratio": 2,
        "indexer_budget": 8,
    },
    "sapiens2": {"num_key_value_heads_per_layer": [HEADS, GROUPS, HEADS]},
    "t5gemma2_decoder": _NO_DROPOUT,
    "t5gemma2_encoder": _NO_DROPOUT,
    "t5gemma2_text": _NO_DROPOUT,
    "time_series_transformer": _TIME_SERIES,
    "vitmatte": {"fusion_hidden_sizes": [16, 8, 8, 4], "convstream_hidden_sizes": [8, 8, 8]},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
}
"""Values that a type needs beyond the general rules."""


Attempt = tuple[int, bool]
"""A choice of sizes, and whether keys are filled that the default leaves empty.

0: sizes that all differ. 2: heads that fill the hidden size, without groups. 3: powers of two. 4: the sizes of the real
model, with fewer layers.
"""
ATTEMPTS: tuple[Attempt, ...] = tuple(
    (sizes_choice, fill) for sizes_choice in (0, 2, 3, 4) for fill in (False, True)
)


def _sizes(sizes_choice: int, tower: bool) -> dict[str, int]:
    if sizes_choice >= 4:
        return dict.fromkeys(_VOCABULARY_KEYS, VOCABULARY)
    sizes = dict(_SIZES)
    if tower and sizes_choice == 0:
        sizes |= _TOWER_SIZES
    if sizes_choice >= 2:
        sizes |= dict.fromkeys(_HEAD_SIZE_KEYS, HIDDEN_SIZE // HEADS)
        sizes |= dict.fromkeys(_GROUP_KEYS, HEADS)
        sizes |= {"v_head_dim": 8, "qk_nope_head_dim": 8}
    if sizes_choice >= 3:
        sizes |= dict.fromkeys((*_HEAD_KEYS, *_GROUP_KEYS), 4)
        sizes |= dict.fromkeys(_HEAD_SIZE_KEYS, 16)
        sizes |= dict.fromkeys((*_WIDTH_KEYS, *_INNER_KEYS), 64)
    return sizes


def _kinds(config: transformers.PretrainedConfig) -> list[str]:
    """Returns the kinds of layers of a small model that has each kind; empty if the type has no kinds."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    if not all(isinstance(kind, str) for kind in kinds):
        return []
    different = list(dict.fromkeys(kinds))
    if getattr(config, "num_kv_shared_layers", None):
        return different * 3  # the last third uses the keys and values of the second
    start = next((n for n in range(LAYERS, len(kinds)) if len(set(kinds[:n])) == len(different)), len(kinds))
    if start <= _MOST_LAYERS:
        return list(kinds[:start])
    return different if len(different) >= LAYERS else different * 2


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _small_values(config: transformers.PretrainedConfig, attempt: Attempt, tower: bool) -> dict[str, Any]:
    """Returns the arguments of a small configuration of this kind, without its subconfigurations."""
    sizes_choice, fill = attempt
    known = {
        key: value
        for key, value in vars(config).items()
        if not key.startswith("_") and not isinstance(value, transformers.PretrainedConfig)
    }
    sizes = _sizes(sizes_choice, tower)
    kinds = _kinds(config)
    layers = len(kinds) or LAYERS
    if known.get("num_kv_shared_layers"):
        sizes["num_kv_shared_layers"] = layers // 3
    if "kv_lora_rank" in known and sizes_choice < 4:  # latent attention has no groups
        sizes |= dict.fromkeys(_GROUP_KEYS, sizes["num_attention_heads"])
        if known.get("head_dim") == known.get("qk_rope_head_dim"):
            sizes["head_dim"] = sizes["qk_rope_head_dim"]
    before = next(
        (known[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if _is_count(known.get(key))), 0
    )
    values: dict[str, Any] = {}
    for key, value in known.items():
        if key in _LAYER_KEYS and _is_count(value):
            values[key] = value if "depths" in known else min(value, layers)
        elif key in sizes and _is_count(value) and value > 0:
            values[key] = sizes[key] if tower and sizes_choice == 0 else min(sizes[key], value)
        elif key in sizes and value is None and fill and key in _FILLED:
            values[key] = sizes[key]
        elif key in _IMAGE_SIZES and _is_count(value) and sizes_choice < 4:
            values[key] = min(value, _IMAGE_SIZES[key])
        elif key in _LAYER_INDICES and _is_count(value):
            values[key] = min(value, layers - 1)
        elif key in _LAYER_INDICES and isinstance(value, list | tuple) and all(map(_is_count, value)):
            values[key] = sorted({min(index, layers - 1) for index in value})
        elif key == "depths" and isinstance(value, list | tuple):
            values[key] = [min(2, depth) for depth in value]
        elif key in ("layer_types", "layers_block_type") and kinds:
            values[key] = kinds
        elif key.endswith(("token_id", "token_index")) and _is_count(value) and value >= VOCABULARY:
            values[key] = 1 if key.endswith("id") else 4
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and sizes_choice < 4:
            values[key] = _rotary(value, sizes, has_head_size=_is_count(known.get("head_dim")))
        elif (
            before > layers
            and "depths" not in known
            and isinstance(value, list | tuple)
            and len(value) == before
        ):
            values[key] = list(value[:layers])
    return values


def _rotary(value: dict[str, Any], sizes: dict[str, int], has_head_size: bool) -> dict[str, Any]:
    """Scales the sections of rotary parameters to the smaller head."""
    size = sizes["head_dim"] if has_head_size else sizes["hidden_size"] // sizes["num_attention_heads"]
    half = int(size // 2 * value.get("partial_rotary_factor", 1))
    section = value.get("mrope_section")
    if not section:
        return dict(value)
    parts = [max(1, round(part * half / sum(section))) for part in section]
    parts[-1] += half - sum(parts)
    return {**value, "mrope_section": parts}


def _is_text(name: str) -> bool:
    return any(
        word in name
        for word in (
            "text",
            "decoder",
            "llm",
            "language",
            "thinker",
            "talker",
            "generator",
            "adaptor",
            "projector",
        )
    )


def _small(default: transformers.PretrainedConfig, attempt: Attempt, tower: bool = False) -> Any:
    """Makes a small configuration of this kind, with small subconfigurations."""
    values = _small_values(default, attempt, tower)
    parts = {
        name.removeprefix("_"): part
        for name, part in vars(default).items()
        if isinstance(part, transformers.PretrainedConfig)
    }
    has_text = any(map(_is_text, parts))
    for name, part in parts.items():
        small = _small(part, attempt, tower=not _is_text(name) if has_text else not tower)
        values[name] = {**small.to_dict(), "model_type": small.model_type}
    for name, special in _SPECIAL.get(default.model_type, {}).items():
        values[name] = {**values[name], **special} if name in parts else special
    return type(default)(**values)


_AUTO_ORDER = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
)


def model_classes(config: transformers.PretrainedConfig) -> Iterator[type[transformers.PreTrainedModel]]:
    """Yields the classes that take this configuration, the most complete one first."""
    kind = type(config)
    seen: list[Any] = []
    others = [name for name in vars(modeling_auto) if name.startswith("MODEL_") and name.endswith("_MAPPING")]
    for name in (*_AUTO_ORDER, *others):
        mapping = getattr(modeling_auto, name)
        if kind in mapping:
            found = mapping[kind]
            for model in found if isinstance(found, (list, tuple)) else (found,):
                if model not in seen:
                    seen.append(model)
                    yield model
    module = kind.__module__.replace(".configuration_", ".modeling_")
    try:
        __import__(module)
    except ImportError:
        return
    for member in vars(sys.modules[module]).values():
        own = isinstance(member, type) and issubclass(member, transformers.PreTrainedModel)
        if (
            own
            and member.config_class is kind
            and member not in seen
            and member.__name__[-15:] != "PreTrainedModel"
        ):
            yield member


def build(model_type: str, attempts: Iterable[Attempt] = ATTEMPTS) -> Any:
    """Builds a tiny model of this type with the first attempt that works. Its random weights are always the same.

    Raises:
        ValueError: No attempt works. The message has the error of each attempt.
    """
    errors: list[str] = []
    for attempt in attempts:
        try:
            config = _small(CONFIG_MAPPING[model_type](), attempt)
        except Exception as error:  # a configuration class may raise anything for these sizes
            errors.append(f"{attempt}: {_text(error)}")
            continue
        for model_class in model_classes(config):
            try:
                model = _random(model_class, config)
            except ImportError as error:
                raise ValueError(str(error).strip().splitlines()[0]) from None
            except Exception as error:  # so may a model class
                errors.append(f"{attempt}, {model_class.__name__}: {_text(error)}")
                continue
            for parameter in model.parameters():  # larger than initial weights, so that every head matters
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.1)
            return model.eval()
    raise ValueError(" | ".join(errors) or "no model class takes its configuration")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[-300:]}"


def _random(model_class: type[transformers.PreTrainedModel], config: transformers.PretrainedConfig) -> Any:
    with torch.device("meta"):
        try:
            sizes = [
                parameter.numel()
                for parameter in model_class._from_config(copy.deepcopy(config)).parameters()
            ]
        except RuntimeError:  # some models compute with their weights when they are built
            sizes = []
    if sum(sizes) > _LARGEST:
        raise ValueError(f"{sum(sizes):,} parameters are too many")
    torch.manual_seed(0)
    try:
        return model_class._from_config(copy.deepcopy(config), attn_implementation="eager")
    except ValueError:  # the model supports only its own implementation
        return model_class._from_config(copy.deepcopy(config))


def tiny(model_type: str) -> tuple[transformers.PreTrainedModel, transformers.PretrainedConfig]:
    """Builds a tiny model and its configuration: 3 layers, 6 heads, and 2 groups if the type has groups."""
    model = build(model_type)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, model.config
