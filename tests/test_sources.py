"""Checkpoints in the cache of the Hugging Face hub, as huggingface_hub lays it out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from support.checkpoints import Shape, name, random_weights

FIRST, SECOND = "1" * 40, "2" * 40
SHAPE = Shape(layers=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two revisions of a model, in shards, whose files are links to blobs; and nothing else."""
    model = tmp_path / "models--owner--model"
    (model / "blobs").mkdir(parents=True)
    for commit, seed in ((FIRST, 1), (SECOND, 2)):
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        weights = random_weights(SHAPE, seed)
        weight_map = {key: f"model-{int('.1.' in key)}.safetensors" for key in weights}
        for shard in sorted(set(weight_map.values())):
            save_file(
                {key: weights[key] for key in weights if weight_map[key] == shard},
                model / "blobs" / f"{commit}{shard}",
            )
            (snapshot / shard).symlink_to(f"../../blobs/{commit}{shard}")
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (snapshot / "config.json").write_text(json.dumps(SHAPE.config()))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(FIRST)
    (model / "refs" / "tuned").write_text(SECOND)
    return tmp_path


def scan(cache: Path, base: str, tuned: str) -> subprocess.CompletedProcess[str]:
    """Runs the command, since the place of the cache is fixed once huggingface_hub is imported."""
    command = [sys.executable, "-m", "alps.cli", "scan", base, tuned, "--json"]
    environment = os.environ | {"HF_HUB_CACHE": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tuned", ["owner/model@tuned", f"owner/model@{SECOND}"])
def test_revisions_are_found_by_their_names_and_by_their_commits(cache: Path, tuned: str) -> None:
    result = scan(cache, "owner/model", tuned)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)["scores"]
    assert document["provenance"]["base_commit"] == FIRST
    assert document["provenance"]["tuned_commit"] == SECOND
    assert document["provenance"]["tuned"] == tuned
    assert document["provenance"]["tuned_files"] == "model.safetensors.index.json"


def test_the_message_of_a_missing_revision_says_how_to_fetch_it(cache: Path) -> None:
    result = scan(cache, "owner/model", "owner/model@v2")
    assert result.returncode == 1
    assert "hf download owner/model --revision v2" in result.stderr


@pytest.mark.parametrize("lost", ["the link", "what it leads to"])
def test_a_shard_that_was_not_fetched_is_named(cache: Path, lost: str) -> None:
    shard = cache / "models--owner--model" / "snapshots" / SECOND / "model-1.safetensors"
    (shard if lost == "the link" else shard.resolve()).unlink()
    result = scan(cache, "owner/model", "owner/model@tuned")
    assert result.returncode == 1
    for said in ("shard `model-1.safetensors` is missing", name(1, "k"), "hf download", SECOND):
        assert said in result.stderr


def test_files_that_are_not_read_may_be_missing(cache: Path) -> None:
    """A snapshot that huggingface_hub knows to be incomplete."""
    model = cache / "models--owner--model"
    (model / ".no_exist" / FIRST).mkdir(parents=True)
    (model / ".no_exist" / FIRST / "adapter_config.json").touch()
    assert scan(cache, "owner/model", "owner/model").returncode == 0


def test_an_adapter_in_the_cache_over_its_base_there(cache: Path) -> None:
    snapshot = cache / "models--owner--adapter" / "snapshots" / FIRST
    snapshot.mkdir(parents=True)
    refs = cache / "models--owner--adapter" / "refs"
    refs.mkdir()
    (refs / "main").write_text(FIRST)
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "base_model_name_or_path": "owner/model",
        "revision": "tuned",
    }
    (snapshot / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, snapshot / "adapter_model.safetensors")
    result = scan(cache, "owner/adapter", "owner/model@tuned")
    assert result.returncode == 0, result.stderr
    provenance = json.loads(result.stdout)["scores"]["provenance"]
    assert provenance["base_adapter_over"] == "owner/model@tuned"
    assert provenance["base_commit"] == FIRST


def test_models_without_an_owner_are_found(cache: Path, tmp_path: Path) -> None:
    """gpt2, bert-base-uncased and other models of the hub's first days: models--gpt2."""
    model = cache / "models--owner--model"
    (cache / "models--gpt2").symlink_to(model)
    result = scan(cache, "gpt2", "gpt2@tuned")
    assert result.returncode == 0, result.stderr
    provenance = json.loads(result.stdout)["scores"]["provenance"]
    assert (provenance["base_commit"], provenance["tuned_commit"]) == (FIRST, SECOND)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "gpt2"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, adapter / "adapter_model.safetensors")
    result = scan(cache, "gpt2@tuned", str(adapter))
    assert result.returncode == 0, result.stderr
    result = scan(cache, "gpt3", "gpt2")
    assert result.returncode == 1
    assert result.stderr == "alps: error: gpt3: there is no such file or folder\n"
