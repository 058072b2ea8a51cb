"""Audits of a choice of heads, on pairs of which it is known what the heads carry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

import alps
from alps.cli import app
from alps.draws import random_like
from alps.live import texts
from support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def llama(**sizes: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=sizes.get("layers", 4),
        num_attention_heads=8,
        num_key_value_heads=sizes.get("groups", 4),
        head_dim=4,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def geometry_of(model: nn.Module) -> alps.Geometry:
    from alps.live.grafting import LiveHeads

    return LiveHeads(model).geometry


def moved(model: Any, heads: alps.HeadSet | None, seed: int, size: float = 0.1) -> Any:
    """A copy with random changes of the Q/K/V rows of these heads, or of all."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if any(f"{kind}_proj" in key for kind in "qkv"):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    if heads is None:
        return tuned
    result = copy.deepcopy(model)
    with alps.grafted(result, tuned, heads):
        return copy.deepcopy(result)


class Direction:
    """A loss that is linear in the attention weights: a measure of a pair without any structure."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._weights = {
            key: torch.randn(parameter.shape, generator=generator)
            for key, parameter in model.named_parameters()
            if any(f"{kind}_proj" in key for kind in "qkv")
        }

    def __call__(self, model: nn.Module) -> float:
        parameters = dict(model.named_parameters())
        return float(sum((parameters[key].detach() * it).sum() for key, it in self._weights.items()))


def heads_of(geometry: alps.Geometry, seed: int, groups: int = 3) -> alps.HeadSet:
    chosen = np.random.default_rng(seed).choice(16, groups, replace=False)
    mask = np.zeros(16, dtype=bool)
    mask[chosen] = True
    return alps.HeadSet(mask.reshape(4, 4).repeat(2, axis=1), geometry)


def test_p_values_are_uniform_where_there_is_no_structure() -> None:
    model = llama()
    geometry = geometry_of(model)
    found = []
    for seed in range(75):
        tuned = moved(model, None, seed)
        audit = alps.audit(model, tuned, heads_of(geometry, seed), Direction(model, seed), draws=4, seed=seed)
        found.append([audit.sufficiency.p_value, audit.necessity.p_value, audit.sufficiency.p_within_layers])
    # Five values are possible, each as likely as the others: chi-squared with four degrees of freedom.
    for p_values in np.array(found).T[:2]:
        counts = np.bincount(np.round(p_values * 5).astype(int) - 1, minlength=5)
        assert ((counts - 15) ** 2 / 15).sum() < 18.5  # one in a thousand
    # A set within the same layers may be the chosen one itself, so ties make these p-values larger, never smaller.
    for level in (0.2, 0.4, 0.6):
        assert (np.array(found)[:, 2] <= level).mean() < level + 0.13


def test_p_values_are_small_where_only_the_chosen_heads_were_tuned() -> None:
    model = llama(layers=4, groups=4)
    geometry = geometry_of(model)
    for seed in range(3):
        heads = heads_of(geometry, seed)
        tuned = moved(model, heads, seed)
        audit = alps.audit(model, tuned, heads, Direction(model, seed), draws=60, seed=seed)
        assert audit.sufficiency.chosen == pytest.approx(1, abs=1e-3)
        assert audit.necessity.chosen == pytest.approx(1, abs=1e-3)
        assert audit.all_heads == pytest.approx(1, abs=1e-3)
        # Three groups, some of which a random set may hit; a linear loss can share in both directions.
        assert audit.sufficiency.p_value < 0.2
        other = heads_of(geometry, seed + 50) - heads
        if other:
            nothing = alps.audit(model, tuned, other, Direction(model, seed), draws=5)
            assert nothing.sufficiency.chosen == pytest.approx(0, abs=1e-3)


def test_a_loss_that_counts_heads_gives_the_smallest_p_value() -> None:
    model = llama()
    geometry = geometry_of(model)
    heads = heads_of(geometry, 1)
    tuned = moved(model, heads, 1)
    parameters = {key: it.detach().clone() for key, it in tuned.named_parameters()}

    def distance(of: nn.Module) -> float:
        return sum(float((it.detach() - parameters[key]).square().sum()) for key, it in of.named_parameters())

    audit = alps.audit(model, tuned, heads, distance, draws=99)
    assert audit.sufficiency.rank == audit.necessity.rank == 1
    assert audit.sufficiency.p_value == 0.01
    assert "rank 1 of 100, p = 0.01" in str(audit)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_next", "gemma3n_text", "mimo_v2_flash"])
@pytest.mark.parametrize("within", [False, True])
def test_random_sets_have_the_size_of_the_chosen_one(model_type: str, within: bool) -> None:
    geometry = geometry_of(tiny(model_type)[0])
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros(geometry.shape, dtype=bool)
        for row, sizes in enumerate(geometry.sizes):
            mask[row, : sizes.query_heads] = generator.random(sizes.query_heads) < 0.3
        heads = alps.HeadSet(mask, geometry)
        drawn = random_like(heads, generator, within_layers=within)
        assert drawn.report == heads.report
        if within:
            np.testing.assert_array_equal(drawn.mask.sum(axis=1), heads.mask.sum(axis=1))


def test_random_sets_are_equally_likely() -> None:
    geometry = geometry_of(llama())
    heads = heads_of(geometry, 0)
    generator = np.random.default_rng(0)
    masks = [random_like(heads, generator, within_layers=False).mask for _ in range(3200)]
    counts = np.sum(masks, axis=0)
    assert abs(counts - 600).max() < 110  # 3 of 16 groups; five standard deviations


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A pair of checkpoints, their tokenizer, heads and a text."""
    tokenizers = pytest.importorskip("tokenizers")
    model = llama()
    model.save_pretrained(tmp_path / "base")
    heads = heads_of(geometry_of(model), 1)
    moved(model, None, 1).save_pretrained(tmp_path / "tuned")
    heads.save(tmp_path / "heads.json")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "base")
    text = " ".join(f"w{n}" for n in np.random.default_rng(0).integers(0, 64, 500))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    pair = [str(folder / "base"), str(folder / "tuned")]
    files = ["--heads", str(folder / "heads.json"), "--text", str(folder / "text.txt")]
    return ["audit", *pair, *files, "--length", "32", "--windows", "4", "--draws", "9", *more]


def test_the_command(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alps.cli.progress_bar._LONG", 0.0)
    wanted = {name: str(files / name) for name in ("audit.json", "audit.png", "audit.html")}
    output = [
        "--output",
        wanted["audit.json"],
        "--plot",
        wanted["audit.png"],
        "--report",
        wanted["audit.html"],
    ]
    ran = CliRunner().invoke(app, arguments(files, *output))
    assert ran.exit_code == 0, ran.output
    assert "sufficiency:" in ran.stdout
    assert "41 evaluations of about" in ran.stderr
    document = json.loads((files / "audit.json").read_text())
    assert len(document["necessity"]["random"]) == 9
    assert (files / "audit.png").read_bytes().startswith(b"\x89PNG")
    page = (files / "audit.html").read_text()
    assert "How much of the tuning the chosen heads carry" in page
    assert f"{document['base_loss']:.4g}" in page
    printed = CliRunner().invoke(app, arguments(files, "--json"))
    assert json.loads(printed.stdout)["sufficiency"] == document["sufficiency"]

    # The same numbers from Python, on the models in memory.
    ids = [int(word[1:]) for word in (files / "text.txt").read_text().split()]
    starts = torch.linspace(0, len(ids) - 32, 4).long().tolist()
    windows = [torch.tensor([ids[at : at + 32]]) for at in starts]
    heads = alps.HeadSet.load(files / "heads.json")
    batches = [{"input_ids": it, "labels": it} for it in windows]
    live = alps.audit(files / "base", files / "tuned", heads, batches, draws=9)
    assert live.sufficiency.chosen == pytest.approx(document["sufficiency"]["chosen"], rel=1e-5)
    model = transformers.LlamaForCausalLM.from_pretrained(files / "base").eval()
    with alps.grafted(model, files / "tuned", heads), torch.no_grad():
        graft = float(np.mean([float(model(**batch).loss) for batch in batches]))
    share = (live.base_loss - graft) / (live.base_loss - live.tuned_loss)
    assert live.sufficiency.chosen == pytest.approx(share, rel=1e-4)


def test_windows_are_what_the_model_takes(files: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(files / "base")
    assert [it["input_ids"].shape for it in texts.windows(files / "text.txt", files / "base")] == [(1, 256)]
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(files / "base")
    shapes = [it["input_ids"].shape for it in texts.windows(files / "text.txt", files / "base")]
    assert shapes == 7 * [(1, 64)]
    with pytest.raises(alps.ArgumentError, match=r"base: expected windows of at most 64 .* found 65"):
        texts.windows(files / "text.txt", files / "base", length=65)


def test_the_models_are_as_they_were(files: Path) -> None:
    model = llama().train()
    tuned = moved(model, None, 1)
    before = {key: it.clone() for key, it in model.state_dict().items()}
    alps.audit(model, tuned, heads_of(geometry_of(model), 1), Direction(model, 0), draws=3)
    assert model.training
    assert all(torch.equal(before[key], it) for key, it in model.state_dict().items())


def test_bad_input_is_one_clear_error(files: Path) -> None:
    model = llama()
    tuned = moved(model, None, 1)
    heads = alps.HeadSet.load(files / "heads.json")
    ids = torch.zeros(1, 20, dtype=torch.int64)
    batch = {"input_ids": ids, "labels": ids}
    other = geometry_of(llama(layers=2))
    others = alps.HeadSet(np.ones(other.shape, dtype=bool), other)
    bare = transformers.LlamaModel(model.config)
    bare.load_state_dict(model.model.state_dict())
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (alps.ArgumentError, "the heads are not those", (model, tuned, others, [batch]), {}),
        (alps.ArgumentError, "at least one head", (model, tuned, heads - heads, [batch]), {}),
        (alps.ArgumentError, "draws", (model, tuned, heads, [batch]), {"draws": 0}),
        (alps.ArgumentError, "at least one batch", (model, tuned, heads, []), {}),
        (alps.ArgumentError, "batch 0: expected what the model takes", (model, tuned, heads, [ids]), {}),
        (
            alps.ArgumentError,
            "returned no loss",
            (bare, moved(bare, None, 1), heads, [{"input_ids": ids}]),
            {},
        ),
        (alps.ArgumentError, "finite number, found nan", (model, tuned, heads, lambda _: float("nan")), {}),
        (alps.ArgumentError, "no tuning to divide", (model, tuned, heads, lambda _: 1.0), {}),
        (alps.UnchangedError, "no head has moved", (model, copy.deepcopy(model), heads, [batch]), {}),
        (alps.ArgumentError, "function of the model or batches", (model, tuned, heads, "text"), {}),
    ]
    for error, message, positional, options in cases:
        with pytest.raises(error, match=message):
            alps.audit(*positional, **options)
    (files / "short.txt").write_text("w1 w2 w3")
    (files / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for text, message in (("short.txt", "expected at least 32 tokens"), ("bytes.txt", "UTF-8")):
        ran = CliRunner().invoke(app, [*arguments(files), "--text", str(files / text)])
        assert ran.exit_code == 1
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
