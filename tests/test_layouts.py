"""The heads that a scan says have moved are those that move when transformers runs the model."""

from pathlib import Path
from typing import Any

import pytest

import coverage_table
import oracle
import proof
from coverage_table import Row

# Of transformers' own making: these models warn of this and that when they are made and run.
pytestmark = pytest.mark.filterwarnings("ignore")

TABLE = coverage_table.read(coverage_table.FILE.read_text())
LANGUAGE_MODELS = [
    "afmoe",
    "apertus",
    "arcee",
    "beam",
    "biogpt",
    "bitnet",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "eurobert",
    "exaone4",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "hyperclovax",
    "idefics3",
    "internlm3",
    "iquestcoder",
    "jais2",
    "kolibri1",
    "llama",
    "llama4",
    "llama4_text",
    "llava",
    "llava_next",
    "mellum",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "paligemma",
    "phi",
    "phimoe",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "seed_oss",
    "smollm3",
    "smolvlm",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "bert",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "esm",
    "layoutlm",
    "megatron-bert",
    "rembert",
    "roberta",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "gpt2",
    "imagegpt",
    "openai-gpt",
]
"""Models that can be run on text alone, and trained."""
OTHERS = [
    "albert",
    "bamba",
    "bart",
    "beit",
    "bloom",
    "clip",
    "codegen",
    "convbert",
    "deberta",
    "deberta-v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "diffllama",
    "distilbert",
    "falcon",
    "falcon_h1",
    "fsmt",
    "gemma3n_text",
    "gemma4_text",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "hrm_text",
    "jamba",
    "kimi_linear",
    "lfm2",
    "longcat_flash",
    "longt5",
    "m2m_100",
    "marian",
    "mimo_v2_flash",
    "minicpm3",
    "mistral4",
    "modernbert",
    "mpt",
    "nemotron_h",
    "nomic_bert",
    "olmo_hybrid",
    "pegasus",
    "persimmon",
    "phi3",
    "prophetnet",
    "qwen3_5_text",
    "qwen3_next",
    "sam",
    "siglip",
    "step3p5",
    "swin",
    "t5",
    "vit",
    "wav2vec2",
    "whisper",
    "xlm",
    "xlnet",
    "zamba",
    "zamba2",
]
"""One or two of every other way to store attention, and of every component."""


def reloaded(model: Any, folder: Path) -> Any:
    """The model of this class that transformers makes of a checkpoint."""
    return type(model).from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()


def first_of_each_kind(known: list[proof.Truth]) -> list[proof.Truth]:
    """The first of the attentions whose names differ by their numbers alone."""
    return list({truth.pattern: truth for truth in reversed(known)}.values())


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS + OTHERS)
def test_exactly_the_heads_that_run_differently_have_moved(model_type: str, tmp_path: Path) -> None:
    understood = proof.understand(model_type)
    model, known, runs = understood.model, understood.truths, understood.runs
    base = tmp_path / "base"
    model.save_pretrained(base)

    found = proof.prove(base, known, tmp_path / "changed")
    assert not [verdict.problem for verdict in found.verdicts.values() if verdict.problem]
    assert TABLE.get(model_type, Row.of(found)) == Row.of(found)

    checkpoint = proof.Checkpoint(base)
    changes = [change for truth in first_of_each_kind(known) for change in list(proof.changes(truth))[:1]]
    assert changes
    for number, change in enumerate(changes):
        tensors = checkpoint.flipped(change)
        tuned = checkpoint.changed(tmp_path / str(number), tensors)
        loaded = reloaded(model, tuned)
        assert (
            proof.heads_that_differ(reloaded(model, base), loaded, runs, change.truth.module) == change.moved
        )

        scans = proof.Scans.of(base, tuned)
        component, row = found.verdicts[change.truth.pattern].component, None
        if component is None:
            continue
        ((row, _),) = scans.moved()[component].items()
        head = min(change.moved)
        before, after = checkpoint.theta(change.truth, head), checkpoint.theta(change.truth, head, tensors)
        for name, expected in oracle.statistics(before, after, digits=40).items():
            if name in scans.scores[component].statistics:
                assert scans.scores[component][name][row, head] == pytest.approx(expected, rel=1e-6), name

        # However transformers writes the tuned model, its heads are found in it.
        for way, names in (("again", {}), ("runtime", {"save_original_format": False})):
            loaded.save_pretrained(tmp_path / f"{number}-{way}", **names)
            assert proof.Scans.of(base, tmp_path / f"{number}-{way}").moved() == scans.moved(), way
