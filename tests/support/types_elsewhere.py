"""Model types whose code is not in transformers: their names and configurations as published, with small sizes.

How each stores its attention was read from the code that its publisher put beside the weights, or from that of an
inference engine. `make models` lists them in `docs/models.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from alps.arguments import Component
from support.checkpoints import Tensors

LAYERS, HIDDEN, HEAD_SIZE = 2, 32, 8
QUERY_HEADS = 4

Matrices = dict[str, torch.Tensor]
"""The matrices "q", "k" and "v" of a layer: one head after the other."""

Store = Callable[[int, Matrices], Tensors]
"""Makes the tensors of a layer from its number and its matrices."""


@dataclass(frozen=True)
class TypeElsewhere:
    """A model type, as one of its checkpoints stores it."""

    model_type: str
    published: str
    """A checkpoint on the hub."""
    store: Store
    config: dict[str, Any]
    groups: int = 2
    """The number of key/value heads."""
    others: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The shapes of attention tensors that are not the decoder's, by name."""
    component: Component = "decoder"


def separate(path: str, names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")) -> Store:
    """Stores one tensor each of queries, keys and values."""
    return lambda layer, matrices: {
        f"{path.format(layer)}.{name}.weight": matrix
        for name, matrix in zip(names, matrices.values(), strict=True)
    }


def concatenated(name: str) -> Store:
    """Stores one tensor of all queries, all keys and all values."""
    return lambda layer, matrices: {f"{name.format(layer)}.weight": torch.cat(list(matrices.values()))}


def transposed(name: str) -> Store:
    """Stores the transpose of all queries, all keys and all values."""
    return lambda layer, matrices: {f"{name.format(layer)}.weight": torch.cat(list(matrices.values())).T}


def by_group(matrices: Matrices, *kinds: str) -> torch.Tensor:
    """Joins the matrices of these kinds group by group."""
    groups = matrices["k"].shape[0] // HEAD_SIZE
    return torch.cat(
        [part for group in range(groups) for kind in kinds for part in [matrices[kind].chunk(groups)[group]]]
    )


def interleaved(name: str) -> Store:
    """Stores the queries, the key and the value of one group after the other."""
    return lambda layer, matrices: {f"{name.format(layer)}.weight": by_group(matrices, "q", "k", "v")}


def query_apart(path: str) -> Store:
    """Stores one tensor of queries, and one of the key and the value of one group after the other."""
    return lambda layer, matrices: {
        f"{path.format(layer)}.query.weight": matrices["q"],
        f"{path.format(layer)}.key_value.weight": by_group(matrices, "k", "v"),
    }


def tower(name: str, *parts: str) -> dict[str, tuple[int, ...]]:
    """Names the projections of a tower of two layers, 16 wide."""
    rows = 48 if len(parts) == 1 else 16
    return {f"{name.format(layer)}.{part}.weight": (rows, 16) for layer in range(2) for part in parts}


def moved_out(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": QUERY_HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
}
MULTI_HEAD = moved_out(LLAMA, "num_key_value_heads")
GPT: dict[str, Any] = {"n_embd": HIDDEN, "n_head": QUERY_HEADS, "n_layer": LAYERS, "vocab_size": 64}
CHATGLM: dict[str, Any] = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "ffn_hidden_size": 48,
    "hidden_size": HIDDEN,
    "kv_channels": HEAD_SIZE,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": QUERY_HEADS,
    "num_layers": LAYERS,
    "original_rope": True,
    "padded_vocab_size": 64,
}
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
DECODER = "model.layers.{}.self_attn"
SIGLIP = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
CLIP_WITHIN = tower(
    "model.vision_tower.vision_tower.vision_model.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE
)
INTERN_VIT = {**SIGLIP, "model_type": "intern_vit_6b", "qkv_bias": False, "qk_normalization": True}
INTERN_VIT_TENSORS = tower("vision_model.encoder.layers.{}.attn", "qkv")


def llama_like(model_type: str, published: str, **more: Any) -> TypeElsewhere:
    """A type with the names of a Llama."""
    return TypeElsewhere(model_type, published, separate(DECODER), LLAMA | more)


TYPES = [
    llama_like("Yi", "01-ai/Yi-34B"),
    llama_like("aquila", "BAAI/AquilaChat2-34B"),
    llama_like("minicpm", "openbmb/MiniCPM-2B-sft-bf16", scale_emb=12, dim_model_base=256),
    llama_like("orion", "OrionStarAI/Orion-14B-Chat"),
    llama_like("hunyuan", "tencent/Tencent-Hunyuan-Large", use_cla=False, attention_head_dim=HEAD_SIZE),
    llama_like("stablelm_epoch", "stabilityai/stablelm-3b-4e1t", rope_pct=0.25),
    llama_like("skywork", "Skywork/Skywork-13B-base"),
    llama_like("solar", "upstage/solar-pro-preview-instruct", bskcn_1=[12, 20, 32, 44]),
    llama_like("deepseek", "deepseek-ai/deepseek-moe-16b-base", n_routed_experts=64, moe_layer_freq=1),
    llama_like(
        "mimo", "XiaomiMiMo/MiMo-7B-RL", attention_bias=True, head_dim=HEAD_SIZE, num_nextn_predict_layers=1
    ),
    llama_like("Dream", "Dream-org/Dream-v0-Instruct-7B", mask_token_id=63),
    llama_like("sdar", "JetLM/SDAR-8B-Chat", head_dim=HEAD_SIZE),
    llama_like("sdar_moe", "JetLM/SDAR-30B-A3B-Chat", head_dim=HEAD_SIZE),
    llama_like("PanguEmbedded", "FreedomIntelligence/openPangu-Embedded-7B", bias=True),
    llama_like("arctic", "Snowflake/snowflake-arctic-instruct", num_local_experts=128),
    llama_like("deci", "Deci/DeciLM-7B", num_key_value_heads_per_layer=[2, 2]),
    llama_like("minimax_text_01", "MiniMaxAI/MiniMax-Text-01", attn_type_list=[1, 1], head_dim=HEAD_SIZE),
    llama_like("minimax_m1", "MiniMaxAI/MiniMax-M1-80k", attn_type_list=[1, 1], head_dim=HEAD_SIZE),
    llama_like(
        "llava_mistral",
        "liuhaotian/llava-v1.6-mistral-7b",
        mm_vision_tower="openai/clip-vit-large-patch14-336",
    ),
    llama_like("llava_mixtral", "llava-mixtral", mm_vision_tower="openai/clip-vit-large-patch14-336"),
    llama_like(
        "nemotron-nas",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
        num_key_value_heads=None,
        block_configs=[{"attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}}]
        * 2,
    ),
    TypeElsewhere("internlm", "internlm/internlm-chat-7b", separate(DECODER), MULTI_HEAD | {"bias": True}, 4),
    TypeElsewhere("xverse", "xverse/XVERSE-13B", separate(DECODER), MULTI_HEAD, 4),
    TypeElsewhere(
        "exaone",
        "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct",
        separate("transformer.h.{}.attn.attention"),
        moved_out(LLAMA, "num_hidden_layers") | {"num_layers": LAYERS, "head_dim": HEAD_SIZE},
    ),
    TypeElsewhere(
        "llada",
        "GSAI-ML/LLaDA-8B-Instruct",
        separate("model.transformer.blocks.{}"),
        {
            "d_model": HIDDEN,
            "n_heads": QUERY_HEADS,
            "n_kv_heads": 2,
            "n_layers": LAYERS,
            "block_type": "llama",
        },
    ),
    TypeElsewhere(
        "baichuan", "baichuan-inc/Baichuan2-7B-Chat", concatenated(f"{DECODER}.W_pack"), MULTI_HEAD, 4
    ),
    TypeElsewhere(
        "qwen",
        "Qwen/Qwen-VL-Chat",
        concatenated("transformer.h.{}.attn.c_attn"),
        MULTI_HEAD | {"kv_channels": HEAD_SIZE, "visual": {"heads": 16, "layers": 48, "width": 1664}},
        4,
        tower("transformer.visual.transformer.resblocks.{}.attn", "in_proj"),
    ),
    TypeElsewhere(
        "codeshell",
        "WisdomShell/CodeShell-7B",
        concatenated("transformer.h.{}.attn.c_attn"),
        GPT | {"group_query_attention": True, "num_query_groups": 2, "n_inner": 48},
    ),
    TypeElsewhere("jais", "inceptionai/jais-13b", transposed("transformer.h.{}.attn.c_attn"), GPT, 4),
    TypeElsewhere(
        "chatglm",
        "THUDM/glm-4-9b-chat",
        concatenated("transformer.encoder.layers.{}.self_attention.query_key_value"),
        CHATGLM,
    ),
    TypeElsewhere(
        "chatglm",
        "THUDM/glm-4v-9b",
        concatenated("transformer.encoder.layers.{}.self_attention.query_key_value"),
        CHATGLM | {"vision_config": {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 2}},
        others=tower("transformer.vision.transformer.layers.{}.attention", "query_key_value"),
    ),
    TypeElsewhere(
        "phi3_v",
        "microsoft/Phi-3.5-vision-instruct",
        concatenated(f"{DECODER}.qkv_proj"),
        LLAMA | {"img_processor": {"name": "clip_vision_model", "num_img_tokens": 144}},
        others=tower(
            "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.{}.self_attn",
            *QUERY_KEY_VALUE,
        ),
    ),
    TypeElsewhere(
        "bailing_moe",
        "inclusionAI/Ling-lite",
        concatenated("model.layers.{}.attention.query_key_value"),
        LLAMA,
    ),
    TypeElsewhere(
        "bailing_moe_v2",
        "inclusionAI/Ling-mini-2.0",
        concatenated("model.layers.{}.attention.query_key_value"),
        LLAMA | {"head_dim": HEAD_SIZE, "use_qk_norm": True},
    ),
    TypeElsewhere(
        "llada2_moe",
        "inclusionAI/LLaDA2.0-mini",
        concatenated("model.layers.{}.attention.query_key_value"),
        LLAMA | {"head_dim": HEAD_SIZE},
    ),
    TypeElsewhere(
        "openelm",
        "apple/OpenELM-3B-Instruct",
        concatenated("transformer.layers.{}.attn.qkv_proj"),
        {
            "head_dim": HEAD_SIZE,
            "model_dim": HIDDEN,
            "num_gqa_groups": 2,
            "num_kv_heads": [2, 2],
            "num_query_heads": [4, 4],
            "num_transformer_layers": LAYERS,
        },
    ),
    TypeElsewhere(
        "molmo",
        "allenai/Molmo-7B-D-0924",
        concatenated("model.transformer.blocks.{}.att_proj"),
        LLAMA | {"qkv_bias": True},
        others=tower("model.vision_backbone.image_vit.transformer.resblocks.{}.attention", "wq", "wk", "wv"),
    ),
    TypeElsewhere(
        "hf_olmo",
        "allenai/OLMo-7B",
        concatenated("model.transformer.blocks.{}.att_proj"),
        {"d_model": HIDDEN, "n_heads": QUERY_HEADS, "n_layers": LAYERS, "multi_query_attention": False},
        4,
    ),
    TypeElsewhere(
        "internlm2", "internlm/internlm2-chat-7b", interleaved("model.layers.{}.attention.wqkv"), LLAMA
    ),
    TypeElsewhere(
        "phi3small",
        "microsoft/Phi-3-small-8k-instruct",
        interleaved(f"{DECODER}.query_key_value"),
        LLAMA | {"blocksparse_block_size": 64, "dense_attention_every_n_layers": 2},
    ),
    TypeElsewhere(
        "RefinedWeb",
        "tiiuae/falcon-40b-instruct",
        interleaved("transformer.h.{}.self_attention.query_key_value"),
        {
            "hidden_size": HIDDEN,
            "n_head": QUERY_HEADS,
            "n_head_kv": 2,
            "n_layer": LAYERS,
            "parallel_attn": True,
        },
    ),
    TypeElsewhere(
        "RefinedWebModel",
        "tiiuae/falcon-7b-instruct",
        interleaved("transformer.h.{}.self_attention.query_key_value"),
        {
            "hidden_size": HIDDEN,
            "n_head": QUERY_HEADS,
            "n_layer": LAYERS,
            "multi_query": True,
            "alibi": False,
        },
        1,
    ),
    TypeElsewhere(
        "telechat",
        "Tele-AI/telechat-7B",
        query_apart("transformer.h.{}.self_attention"),
        {"hidden_size": HIDDEN, "n_head": QUERY_HEADS, "n_layer": LAYERS},
        4,
    ),
    TypeElsewhere(
        "telechat",
        "Tele-AI/TeleChat2-35B-32K",
        query_apart("transformer.h.{}.self_attention"),
        {"hidden_size": HIDDEN, "n_head": QUERY_HEADS, "n_layer": LAYERS, "num_key_value_heads": 2},
    ),
    TypeElsewhere(
        "minicpmv",
        "openbmb/MiniCPM-V-2_6",
        separate("llm.model.layers.{}.self_attn"),
        LLAMA | {"vision_config": {**SIGLIP, "model_type": "siglip"}, "query_num": 64, "slice_mode": True},
        others=tower("vpm.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE),
    ),
    TypeElsewhere(
        "minicpmo",
        "openbmb/MiniCPM-o-2_6",
        separate("llm.model.layers.{}.self_attn"),
        LLAMA
        | {
            "audio_config": {"model_type": "whisper", "d_model": 16, "encoder_attention_heads": 2},
            "tts_config": {"model_type": "conditional_chattts"},
            "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
        },
        others=tower("vpm.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE)
        | tower("apm.layers.{}.self_attn", *QUERY_KEY_VALUE)
        | tower("tts.model.layers.{}.self_attn", *QUERY_KEY_VALUE),
    ),
    TypeElsewhere(
        "internvl_chat",
        "OpenGVLab/InternVL2-8B",
        interleaved("language_model.model.layers.{}.attention.wqkv"),
        {"llm_config": LLAMA | {"model_type": "internlm2"}, "vision_config": INTERN_VIT, "select_layer": -1},
        others=INTERN_VIT_TENSORS,
    ),
    *(
        TypeElsewhere(
            model_type,
            published,
            separate("language_model.model.layers.{}.self_attn"),
            {"llm_config": LLAMA | {"model_type": inner}, "vision_config": INTERN_VIT, "select_layer": -1},
            others=INTERN_VIT_TENSORS,
        )
        for model_type, published, inner in (
            ("internvl_chat", "OpenGVLab/InternVL3-8B", "qwen2"),
            ("h2ovl_chat", "h2oai/h2ovl-mississippi-2b", "mistral"),
            ("skywork_chat", "Skywork/Skywork-R1V-38B", "qwen2"),
            ("NVLM_D", "nvidia/NVLM-D-72B", "qwen2"),
        )
    ),
    TypeElsewhere(
        "internvl_chat",
        "OpenGVLab/InternVL3-8B",
        concatenated("vision_model.encoder.layers.{}.attn.qkv"),
        {
            "llm_config": LLAMA | {"model_type": "qwen2"},
            "vision_config": MULTI_HEAD | {"model_type": "intern_vit_6b"},
        },
        4,
        {
            f"language_model.model.layers.{layer}.self_attn.{name}.weight": (rows, 32)
            for layer in range(2)
            for name, rows in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16))
        },
        "vision",
    ),
    TypeElsewhere(
        "ovis",
        "AIDC-AI/Ovis1.6-Gemma2-9B",
        separate("llm.model.layers.{}.self_attn"),
        {
            "hidden_size": HIDDEN,
            "llm_config": LLAMA | {"model_type": "gemma2", "head_dim": HEAD_SIZE},
            "visual_tokenizer_config": {
                "backbone_config": {**SIGLIP, "model_type": "siglip_vision_model"},
                "model_type": "siglip_visual_tokenizer",
            },
        },
        others=tower("visual_tokenizer.backbone.vision_model.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE),
    ),
    TypeElsewhere(
        "deepseek_vl_v2",
        "deepseek-ai/DeepSeek-OCR",
        separate(DECODER),
        LLAMA
        | {
            "language_config": LLAMA
            | {"model_type": "deepseek_v2", "kv_lora_rank": None, "q_lora_rank": None, "use_mla": False}
            | {"qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0},
            "vision_config": {"model_type": "vision", "image_size": 1024, "mlp_ratio": 3.7362},
        },
        others=tower("model.vision_model.transformer.layers.{}.self_attn", "qkv_proj")
        | tower("model.sam_model.blocks.{}.attn", "qkv"),
    ),
    TypeElsewhere(
        "multi_modality",
        "deepseek-ai/Janus-Pro-7B",
        separate("language_model.model.layers.{}.self_attn"),
        {
            "language_config": MULTI_HEAD | {"model_type": "llama"},
            "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": {}},
            "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": {}},
        },
        4,
        tower("vision_model.vision_tower.blocks.{}.attn", "qkv"),
    ),
    TypeElsewhere(
        "florence2",
        "microsoft/Florence-2-large",
        separate("language_model.model.decoder.layers.{}.self_attn"),
        {
            "projection_dim": HIDDEN,
            "text_config": {
                "model_type": "florence2_language",
                "d_model": HIDDEN,
                "decoder_attention_heads": QUERY_HEADS,
                "decoder_layers": LAYERS,
                "encoder_attention_heads": QUERY_HEADS,
                "encoder_layers": LAYERS,
                "num_hidden_layers": LAYERS,
            },
            "vision_config": {"model_type": "davit", "depths": [1, 1], "num_heads": [8, 16]},
        },
        4,
        {
            f"language_model.model.{path}.{name}.weight": (32, 32)
            for layer in range(2)
            for path in (f"encoder.layers.{layer}.self_attn", f"decoder.layers.{layer}.encoder_attn")
            for name in QUERY_KEY_VALUE
        }
        | tower("vision_tower.blocks.{}.0.spatial_block.window_attn.fn", "qkv"),
    ),
    TypeElsewhere(
        "dots_ocr",
        "rednote-hilab/dots.ocr",
        separate(DECODER),
        LLAMA | {"vision_config": {"model_type": "dots_vit", "embed_dim": 16, "num_attention_heads": 2}},
        others=tower("vision_tower.blocks.{}.attn", "qkv"),
    ),
    TypeElsewhere(
        "GOT",
        "stepfun-ai/GOT-OCR2_0",
        separate(DECODER),
        LLAMA | {"im_patch_token": 60, "image_token_len": 256, "use_im_start_end": True},
        others=tower("model.vision_tower_high.blocks.{}.attn", "qkv"),
    ),
    TypeElsewhere(
        "Keye",
        "Kwai-Keye/Keye-VL-8B-Preview",
        separate(DECODER),
        LLAMA | {"head_dim": HEAD_SIZE, "vision_config": {**SIGLIP, "model_type": "Keye"}},
        others=tower("visual.vision_model.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE),
    ),
    TypeElsewhere(
        "KeyeVL1_5",
        "Kwai-Keye/Keye-VL-1_5-8B",
        separate(DECODER),
        LLAMA | {"head_dim": HEAD_SIZE, "vision_config": {**SIGLIP, "model_type": "KeyeVL1_5"}},
        others=tower("visual.vision_model.encoder.layers.{}.self_attn", *QUERY_KEY_VALUE),
    ),
    *(
        TypeElsewhere(
            model_type,
            published,
            separate(DECODER),
            LLAMA | {"mm_hidden_size": 1024, "mm_vision_tower": tower_id, "mm_projector_type": "mlp2x_gelu"},
            others=CLIP_WITHIN,
        )
        for model_type, published, tower_id in (
            ("llava_llama", "liuhaotian/llava-v1.5-7b", "openai/clip-vit-large-patch14-336"),
            ("llava_qwen", "lmms-lab/llava-onevision-qwen2-7b-ov", "google/siglip-so400m-patch14-384"),
            ("llava_qwen2", "apple/FastVLM-7B", "mobileclip_l_1024"),
        )
    ),
    TypeElsewhere(
        "new",
        "Alibaba-NLP/gte-large-en-v1.5",
        concatenated("new.encoder.layer.{}.attention.qkv_proj"),
        MULTI_HEAD | {"pack_qkv": True, "position_embedding_type": "rope"},
        4,
        component="encoder",
    ),
    TypeElsewhere(
        "nomic_bert",
        "nomic-ai/nomic-embed-text-v1.5",
        concatenated("encoder.layers.{}.attn.Wqkv"),
        GPT | {"n_inner": 48, "causal": False, "rotary_emb_fraction": 1.0},
        4,
        component="encoder",
    ),
    TypeElsewhere(
        "nvembed",
        "nvidia/NV-Embed-v2",
        separate("embedding_model.layers.{}.self_attn"),
        {
            "text_config": LLAMA | {"model_type": "bidir_mistral"},
            "latent_attention_config": {"model_type": "latent_attention", "num_latents_value": 512},
        },
        others=tower("latent_attention_model.cross_attend_blocks.{}.fn", "to_q", "to_k", "to_v"),
        component="encoder",
    ),
]
"""Types of which queries, keys and values can be stored from any matrices."""

LATENT: dict[str, Any] = {
    **MULTI_HEAD,
    "kv_lora_rank": 10,
    "num_key_value_heads": QUERY_HEADS,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
NO_QUERY_RANK = LATENT | {"q_lora_rank": None}
LATENT_TYPES: dict[str, tuple[str, dict[str, Any], str, dict[str, tuple[int, ...]]]] = {
    "kimi_k2": ("moonshotai/Kimi-K2-Instruct", LATENT, "model.layers", {}),
    "kimi_vl": (
        "moonshotai/Kimi-VL-A3B-Instruct",
        {
            "text_config": NO_QUERY_RANK | {"model_type": "deepseek_v3"},
            "vision_config": {**SIGLIP, "model_type": "moonvit"},
        },
        "language_model.model.layers",
        tower("vision_tower.encoder.blocks.{}", "wqkv"),
    ),
    "deepseek_vl_v2": (
        "deepseek-ai/deepseek-vl2-small",
        {
            "language_config": NO_QUERY_RANK | {"model_type": "deepseek_v2"},
            "vision_config": {"model_type": "vision", "layers": 27, "width": 16},
        },
        "language.model.layers",
        tower("vision.blocks.{}.attn", "qkv"),
    ),
}
"""Types with the latent attention of DeepSeek-V2: a checkpoint, its configuration, its layers, and other tensors."""


def latent_shapes(config: dict[str, Any], layers: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of latent attention."""
    sizes = config.get("text_config") or config.get("language_config") or config
    rank = sizes["q_lora_rank"]
    own: dict[str, tuple[int, ...]] = {"kv_a_proj_with_mqa": (14, HIDDEN), "kv_b_proj": (48, 10)}
    own |= {"q_proj": (32, HIDDEN)} if rank is None else {"q_a_proj": (rank, HIDDEN), "q_b_proj": (32, rank)}
    return {
        f"{layers}.{layer}.self_attn.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in own.items()
    }
