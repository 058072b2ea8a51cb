"""The heads that a scan says have moved are those that move when transformers runs the model."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

import alps
from models import LAYERS, attention_modules, flip, moved_heads, text_config, tiny

LAYER = 1
"""The layer that is changed: neither the first nor the last."""

SEPARATE = """
    afmoe apertus arcee beam biogpt bitnet cohere cohere2 cohere2_moe cwm dots1 ernie4_5 ernie4_5_moe eurobert
    exaone4 exaone_moe flex_olmo flint gemma gemma2 gemma3 gemma3_text glm glm4 glm4_moe gpt_oss granite
    granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax idefics3 internlm3 iquestcoder jais2 kolibri1 llama llama4 llama4_text llava llava_next mellum
    minimax_m2 ministral ministral3 mistral mistral3 mixtral nanochat nemotron olmo olmo2 olmo3 olmoe opt
    paligemma phi phimoe qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe seed_oss
    smollm3 smolvlm solar_open stablelm starcoder2 vaultgemma
"""
BERT = """
    bert camembert data2vec-text electra ernie esm layoutlm megatron-bert rembert roberta roformer xlm-roberta
    xlm-roberta-xl
"""
GPT2 = "gpt2 imagegpt openai-gpt"
FAMILY = {
    model_type: family
    for family, model_types in (("separate", SEPARATE), ("separate", BERT), ("transposed", GPT2))
    for model_type in model_types.split()
}


def saved_tensors(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """The saved tensors, with their shapes, whose names end in the same five parts as one of `names`.

    What stands before those differs between a running model and its file.
    """
    ends = {tuple(f"{name}.weight".split(".")[-5:]) for name in names}
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return {
            name: list(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118 (not a dictionary)
            if tuple(name.split(".")[-5:]) in ends and "vision" not in name
        }


@pytest.mark.parametrize("model_type", FAMILY)
def test_exactly_the_heads_that_run_differently_have_moved(model_type: str, tmp_path: Path) -> None:
    created, config = tiny(model_type)
    base = tmp_path / "base"
    created.save_pretrained(base)
    load = type(created).from_pretrained
    model = load(base, attn_implementation="eager")

    text = text_config(config)
    heads: int = text.num_attention_heads
    groups: int = getattr(text, "num_key_value_heads", None) or heads
    modules = attention_modules(model, LAYER)
    axis = 1 if any(isinstance(module, Conv1D) for module in modules.values()) else 0
    saved = saved_tensors(base, list(modules))
    assert len(saved) == len(modules)
    rows = sum(shape[axis] for shape in saved.values())
    size, remainder = divmod(rows, heads + 2 * groups)
    assert remainder == 0

    geometry = alps.geometry(base)
    assert (geometry.model_type, geometry.family) == (model_type, FAMILY[model_type])
    assert list(geometry.layers) == list(range(LAYERS))
    assert (geometry.query_heads, geometry.key_value_heads) == (heads, groups)
    assert (geometry.head_size, geometry.value_size) == (size, size)

    seen: list[list[int]] = []
    for name, shape in saved.items():
        parts = 3 if len(saved) == 1 else 1
        part = shape[axis] // size // parts
        # The first and the last of the heads or groups in each part.
        for block in sorted({start + end for start in range(0, parts * part, part) for end in (0, part - 1)}):
            tuned = tmp_path / f"{name}-{block}"
            flip(base, tuned, name, axis, block * size, size)
            truth = moved_heads(model, load(tuned, attn_implementation="eager"), heads, LAYER)
            moved = np.zeros((LAYERS, heads), dtype=bool)
            moved[LAYER, truth] = True
            np.testing.assert_array_equal(alps.scan(base, tuned)["delta_norm"] > 0, moved, f"{name}, {block}")
            seen.append(truth)
    # One head for a query, all heads of its group for a key or a value.
    assert {len(truth) for truth in seen} == {1, heads // groups}
