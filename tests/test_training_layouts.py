"""The rows that train are the rows that a scan reads, in every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import alps
from layouts import coverage_table, proof, training_proof
from support.tiny_models import tiny
from support.training import chosen, projections

STORED = {
    "gpt_neox": "interleaved",
    "bloom": "interleaved",
    "phi3": "concatenated",
    "qwen3_next": "gated",
    "deepseek_v3": "latent",
    "gpt2": "transposed",
}


def hybrid(model_type: str) -> Any:
    """A tiny model of which the second layer has attention."""
    config = transformers.AutoConfig.for_model(
        model_type,
        layer_types=["linear_attention", "full_attention"],
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        hidden_size=48,
        intermediate_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
        vocab_size=96,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model_type", STORED)
def test_the_trained_heads_are_those_that_a_scan_reports(model_type: str, tmp_path: Path) -> None:
    model = hybrid(model_type) if model_type == "qwen3_next" else tiny(model_type)[0]
    model.save_pretrained(tmp_path / "base")
    geometry = alps.geometry(tmp_path / "base")
    assert geometry.layout == STORED[model_type]
    layer = geometry.layers[-1]
    heads = chosen(model, [(layer, 1), (layer, 3)])
    alps.restrict(model, heads)
    with torch.no_grad():
        for projection in projections(model):
            if projection.rows is not None:
                projection.rows.add_(1)
    alps.release(model)
    model.save_pretrained(tmp_path / "tuned")
    moved = alps.scan(tmp_path / "base", tmp_path / "tuned")["changed"]
    groups = heads.key_value_groups
    for row, sizes in enumerate(geometry.sizes):
        per_group = sizes.query_heads // sizes.key_value_heads
        siblings = np.repeat(groups[row, : sizes.key_value_heads], per_group)
        np.testing.assert_array_equal(moved[row, : sizes.query_heads] > 0, siblings)
    np.testing.assert_array_equal(moved == 1, heads.mask)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", ["gpt2", "wavlm", "falcon", "xlnet", "deberta", "cvt", "qwen2_vl", "t5", "zamba"]
)
def test_training_is_as_the_table_of_models_says(model_type: str) -> None:
    """One head of each layer: the same outputs, and the gradients of the same rows of the whole weights.

    Among these are modules that other code reads instead of calling them (WavLM, DeBERTa), a Linear of its own class
    (Falcon), parameters without a module (XLNet), inputs in another memory format (CvT) and shared layers (Zamba).
    """
    known = proof.trace_model(model_type)
    found = training_proof.prove_training(known.model, known.runs)
    assert found
    cell = coverage_table.training_cell(found, found)
    assert cell == coverage_table.read(coverage_table.FILE.read_text())[model_type].training
    if model_type != "zamba":
        assert set(found.values()) == {training_proof.PROVEN}
