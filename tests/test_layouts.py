"""The heads that a scan reports are those that change when transformers runs the model."""

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import alps
from layouts import coverage_table, proof
from layouts.coverage_table import Row
from support import oracle, tiny_models, types_elsewhere

# Of transformers' own making: these models warn of this and that when they are made and run.
pytestmark = pytest.mark.filterwarnings("ignore")

TABLE = coverage_table.read(coverage_table.FILE.read_text())
OTHERS = tiny_models.words(
    """
    albert bamba bart beit bloom clip codegen convbert deberta deberta-v2 deepseek_v3 deepseek_v32
    deepseek_v4 distilbert falcon falcon_h1 fsmt gemma3n_text gemma4_text gpt_bigcode gpt_neo
    gpt_neox gptj jamba kimi_linear lfm2 longcat_flash longt5 m2m_100 marian mimo_v2_flash minicpm3
    mistral4 modernbert mpt nemotron_h nomic_bert olmo_hybrid pegasus persimmon phi3 prophetnet qwen3_5_text
    qwen3_next sam siglip step3p5 swin t5 vit wav2vec2 whisper xlm xlnet zamba zamba2
    """
)
"""One or two of every other way to store attention, and of every component."""


def reloaded(model: Any, folder: Path) -> Any:
    """The model of this class that transformers makes of a checkpoint."""
    return type(model).from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()


def first_of_each_kind(known: list[proof.ComputedAttention]) -> list[proof.ComputedAttention]:
    """The first of the attentions whose names differ by their numbers alone."""
    return list({attention.pattern: attention for attention in reversed(known)}.values())


@pytest.mark.parametrize("model_type", tiny_models.LANGUAGE_MODELS + OTHERS)
def test_a_scan_reports_exactly_the_heads_whose_outputs_change(model_type: str, tmp_path: Path) -> None:
    known = proof.trace_model(model_type)
    base = tmp_path / "base"
    known.model.save_pretrained(base)
    found = proof.prove(base, known.attentions, tmp_path / "changed")
    assert not [verdict.problem for verdict in found.verdicts.values() if verdict.problem]
    assert Row.of(found) == TABLE[model_type]

    checkpoint = proof.SavedModel(base)
    model = reloaded(known.model, base)
    read = [
        attention
        for attention in first_of_each_kind(known.attentions)
        if found.verdicts[attention.pattern].component
    ]
    assert read
    for number, attention in enumerate(read):
        change = next(proof.changes(attention))
        tensors = checkpoint.flip(change)
        tuned = checkpoint.write_changed(tmp_path / str(number), tensors)
        loaded = reloaded(known.model, tuned)
        assert proof.heads_that_differ(model, loaded, known.runs, attention.module) == change.moved

        scans = proof.ComponentScans.of(base, tuned)
        ((component, rows),) = scans.moved().items()
        head = min(change.moved)
        values = oracle.statistics(
            checkpoint.theta(attention, head), checkpoint.theta(attention, head, tensors), digits=30
        )
        for name in scans.scores[component]:
            if name in values:
                score = scans.scores[component][name][min(rows), head]
                assert score == pytest.approx(values[name], rel=1e-6), name

        # However transformers names what it writes, the same heads are found to have moved.
        loaded.save_pretrained(tmp_path / f"{number}-again")
        loaded.save_pretrained(tmp_path / f"{number}-runtime", save_original_format=False)
        for way in ("again", "runtime"):
            assert proof.ComponentScans.of(base, tmp_path / f"{number}-{way}").moved() == scans.moved(), way


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "qwen2_vl"])
def test_the_prefix_of_the_base_model_may_be_missing(model_type: str, tmp_path: Path) -> None:
    known = proof.trace_model(model_type)
    base = tmp_path / "base"
    known.model.save_pretrained(base)
    known.model.base_model.save_pretrained(tmp_path / "bare")
    assert set(proof.SavedModel(base).tensors) - set(proof.SavedModel(tmp_path / "bare").tensors)
    for first, second in ((base, tmp_path / "bare"), (tmp_path / "bare", base)):
        scans = proof.ComponentScans.of(first, second)
        assert scans.scores
        assert not scans.moved()


UNREADABLE = [model_type for model_type, row in TABLE.items() if row.status in ("refused", "none")]


@pytest.mark.parametrize("model_type", UNREADABLE[::8])
def test_model_types_listed_as_refused_are_refused(model_type: str, tmp_path: Path) -> None:
    tiny_models.build(model_type).save_pretrained(tmp_path / "base")
    with pytest.raises(alps.ModelError) as refusal:
        alps.geometry(tmp_path / "base")
    assert model_type in str(refusal.value) or "configuration" in str(refusal.value)


def test_the_table_has_every_model_type() -> None:
    page = coverage_table.FILE.read_text()
    if f"of transformers {transformers.__version__}, " in page:
        assert set(TABLE) == set(CONFIG_MAPPING.keys())
    statuses = [row.status for row in TABLE.values()]
    assert "wrong" not in statuses
    assert statuses.count("read") >= 0.9 * (statuses.count("read") + statuses.count("refused"))


def test_the_page_lists_the_types_from_outside_transformers() -> None:
    page = coverage_table.FILE.read_text()
    known = {one.model_type for one in types_elsewhere.TYPES} | set(types_elsewhere.LATENT_TYPES)
    listed = page.split("## From outside transformers")[1]
    assert set(re.findall(r"^\| `([^`]+)` \| `", listed, re.MULTILINE)) == known
