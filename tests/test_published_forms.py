"""Models within models, in the forms in which their configurations were published."""

from pathlib import Path
from typing import Any

import pytest
import torch

import alps
from layouts import published_forms
from support import tiny_models
from support.checkpoints import Tensors, write

pytestmark = pytest.mark.filterwarnings("ignore")

FORMS = {
    "qwen2_vl": {"parts without types", "a part of the type of the whole", "flat"},
    "qwen2_5_vl": {"parts without types", "a part of the type of the whole", "flat"},
    "paddleocr_vl": {"parts without types", "a part of the type of the whole", "flat"},
    "hunyuan_vl": {"parts without types", "a part of the type of the whole", "flat"},
    "fuyu": {"parts without types", "flat"},
    "qwen3_vl": {"parts without types", "a part of the type of the whole"},
    "glm4v": {"parts without types", "a part of the type of the whole"},
    "idefics3": {"parts without types", "a part of the type of the whole"},
    "llava": {"parts without types", "a part of the type of the whole"},
}
"""The forms of which transformers reads the same sizes. `make models` checks those of all types."""


@pytest.mark.parametrize("model_type", FORMS)
def test_every_form_has_the_attention_of_the_saved_one(model_type: str, tmp_path: Path) -> None:
    tiny_models.build(model_type).save_pretrained(tmp_path)
    assert published_forms.read_forms(tmp_path) == dict.fromkeys(FORMS[model_type], "read")


# The keys of the configuration of Qwen/Qwen2.5-VL-7B-Instruct as it was published, with small sizes.
QWEN_VL: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 128000,
    "max_window_layers": 2,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "vision_config": {
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 32,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vocab_size": 64,
}


def qwen_vl(decoder: str, vision: str, changed: str = "") -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"{vision}.blocks.{layer}.attn.qkv.weight": (48, 16) for layer in range(2)}
    for layer in range(2):
        for name, rows in (("q", 32), ("k", 16), ("v", 16)):
            shapes[f"{decoder}.{layer}.self_attn.{name}_proj.weight"] = (rows, 32)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if changed:
        tensors = {name: it + 0.01 if name.startswith(changed) else it for name, it in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    ("decoder", "vision"),
    [("model.layers", "visual"), ("model.language_model.layers", "model.visual")],
)
def test_a_flat_configuration_names_the_decoder(decoder: str, vision: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", QWEN_VL, qwen_vl(decoder, vision))
    tuned = write(tmp_path / "tuned", QWEN_VL, qwen_vl(decoder, vision, decoder))
    scores = alps.scan(base, tuned)
    assert scores.geometry.component == "decoder"
    assert scores.geometry.shape == (2, 4)
    assert (scores["changed"] == 1).all()
    towers = alps.scan(base, write(tmp_path / "tower", QWEN_VL, qwen_vl(decoder, vision, vision)))
    assert (towers["changed"] == 0).all()
    assert alps.geometry(base, component="vision").shape == (2, 2)


def test_a_tower_alone_is_read_only_when_it_is_named(tmp_path: Path) -> None:
    tensors = {name: it for name, it in qwen_vl("model.layers", "visual").items() if "visual" in name}
    base = write(tmp_path, QWEN_VL, tensors)
    with pytest.raises(alps.ModelError, match=r"should have an attention stack `decoder`.* there is vision"):
        alps.geometry(base)
    assert alps.geometry(base, component="vision").component == "vision"
