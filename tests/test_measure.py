"""Measures with data, against their formulas written out for one head at a time."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import alps
from alps.cli import app
from alps.live.grafting import LiveHeads
from support.tiny_models import tiny
from test_audit import arguments as audit_arguments
from test_audit import files as files
from test_audit import llama, moved

pytestmark = pytest.mark.filterwarnings("ignore")

HEADS, GROUPS, SIZE, WIDTH = 8, 4, 4, 32


def batches(count: int = 3, rows: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, 64, (rows, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in drawn]


def rows_of(layer: Any, head: int) -> list[torch.nn.Parameter | torch.Tensor]:
    """The slices of Q, K and V of a head: of the weights or of what lies beside them."""
    group = head // (HEADS // GROUPS)
    places = ((layer.q_proj, head), (layer.k_proj, group), (layer.v_proj, group))
    return [module.weight[index * SIZE : (index + 1) * SIZE] for module, index in places]


def map_gradient(model: Any, layer: Any, batch: Any, attention: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss by an attention map, which takes the place of the layer's own."""
    leaf = attention.detach().clone().requires_grad_()
    taken: list[torch.Tensor] = []

    def take(_module: Any, _inputs: Any, named: dict[str, torch.Tensor]) -> None:
        taken.append(named["hidden_states"])

    def replace(_module: Any, _inputs: Any, _output: Any) -> Any:
        values = layer.v_proj(taken[0]).unflatten(-1, (GROUPS, SIZE)).transpose(1, 2)
        mixed = leaf @ values.repeat_interleave(HEADS // GROUPS, dim=1)
        return layer.o_proj(mixed.transpose(1, 2).flatten(-2)), leaf

    hooks = [
        layer.register_forward_pre_hook(take, with_kwargs=True),
        layer.register_forward_hook(replace),
    ]
    (gradient,) = torch.autograd.grad(model(**batch).loss, leaf)
    for hook in hooks:
        hook.remove()
    return gradient


def plain(model: Any, tuned: Any, statistic: str) -> np.ndarray[Any, Any]:
    """The definition, with a pass for each batch and a gate for each head."""
    layers = [layer.self_attn for layer in model.model.layers]
    expected = np.zeros((len(layers), HEADS))
    if statistic == "lift":
        for row, layer in enumerate(layers):
            parts = []
            for module in (layer.q_proj, layer.k_proj, layer.v_proj):
                left, values, right = torch.linalg.svd(module.weight.detach().double(), full_matrices=False)
                parts.append(left[:, :128] * values[:128] @ right[:128])
            for head in range(HEADS):
                group = head // 2
                rows = [parts[0][head * SIZE : (head + 1) * SIZE]]
                rows += [part[group * SIZE : (group + 1) * SIZE] for part in parts[1:]]
                expected[row, head] = torch.cat(rows).norm()
        return expected
    if statistic == "seekr":
        for it in (model, tuned):
            it.set_attn_implementation("eager")
        sensitivity, change = np.zeros_like(expected), np.zeros_like(expected)
        for batch in batches():
            for row, layer in enumerate(layers):
                own, other = (it(**batch, output_attentions=True).attentions[row] for it in (model, tuned))
                gradient = map_gradient(model, layer, batch, own)
                sensitivity[row] += gradient.square().sum(dim=(0, 2, 3)).numpy() / 3
                change[row] += (other - own).detach().square().sum(dim=(0, 2, 3)).numpy() / 3
        expected += sensitivity / sensitivity.sum(axis=1, keepdims=True) * change
        return expected
    if statistic.startswith("michel"):
        for row, layer in enumerate(layers):
            for head in range(HEADS):
                for batch in batches():
                    gate = torch.ones(HEADS, dtype=torch.float64, requires_grad=True)

                    def gated(_module: Any, inputs: Any, gate: Any = gate) -> Any:
                        return ((inputs[0].unflatten(-1, (HEADS, SIZE)) * gate[:, None]).flatten(-2),)

                    hook = layer.o_proj.register_forward_pre_hook(gated)
                    loss = model(**batch).loss
                    hook.remove()
                    (gradient,) = torch.autograd.grad(loss, gate)
                    expected[row, head] += float(gradient[head].abs()) / 3
        if statistic == "michel_layer":
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        return expected
    weights = [module.weight for layer in layers for module in (layer.q_proj, layer.k_proj, layer.v_proj)]
    gradients = [torch.autograd.grad(model(**batch).loss, weights) for batch in batches()]
    for row in range(len(layers)):
        for head in range(HEADS):
            for place, index in ((0, head), (1, head // 2), (2, head // 2)):
                chosen = slice(index * SIZE, (index + 1) * SIZE)
                own = [of_batch[3 * row + place][chosen] for of_batch in gradients]
                mean = torch.stack(own).mean(dim=0)
                weight = weights[3 * row + place][chosen].detach()
                other = getattr(tuned.model.layers[row].self_attn, f"{'qkv'[place]}_proj").weight[chosen]
                value = {
                    "fisher": torch.stack(own).square().mean(dim=0),
                    "gradient": mean.abs(),
                    "saliency": (mean * weight).abs(),
                    "taylor": (mean * (other.detach() - weight)).abs(),
                }[statistic]
                expected[row, head] += float(value.sum())
    return expected


@pytest.mark.parametrize(
    "statistic", ["fisher", "gradient", "saliency", "taylor", "michel", "michel_layer", "seekr", "lift"]
)
def test_the_formulas(statistic: Any) -> None:
    model = llama(layers=2).double()
    tuned = moved(model, None, 1)
    scores = alps.measure(model, batches(), tuned=tuned, statistics=[statistic])
    np.testing.assert_allclose(scores[statistic], plain(model, tuned, statistic), rtol=1e-9)


def test_the_model_is_as_it_was() -> None:
    model = llama(layers=2).train()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = {key: (it.clone(), it.requires_grad, it.grad) for key, it in model.named_parameters()}
    scores = alps.measure(model, batches())
    assert scores.statistics == ("fisher", "gradient", "saliency", "michel")
    for key, parameter in model.named_parameters():
        value, required, gradient = before[key]
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required
        assert parameter.grad is gradient
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert scores.select(ratio=0.25, statistic="fisher")


def test_seekr_of_a_checkpoint_and_beside_others(tmp_path: Path) -> None:
    model = llama(layers=2)
    tuned = moved(model, None, 1)
    tuned.save_pretrained(tmp_path)
    implementation = model.config._attn_implementation
    model.gradient_checkpointing_enable()
    model.train()
    found = alps.measure(model, iter(batches()), tuned=tmp_path, statistics=["seekr", "fisher"])
    np.testing.assert_allclose(found["seekr"], plain(llama(layers=2), tuned, "seekr"), rtol=1e-3)
    np.testing.assert_allclose(found["fisher"], plain(llama(layers=2), tuned, "fisher"), rtol=1e-3)
    assert model.config._attn_implementation == implementation != "eager"
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_and_bfloat16(dtype: torch.dtype) -> None:
    model = llama(layers=2).to(dtype)
    expected = alps.measure(model, batches())
    model.gradient_checkpointing_enable()
    model.train()
    found = alps.measure(model, batches())
    for statistic in expected:
        np.testing.assert_allclose(found[statistic], expected[statistic], rtol=1e-5)
    exact = alps.measure(llama(layers=2).double(), batches())
    for statistic in expected:
        np.testing.assert_allclose(
            found[statistic], exact[statistic], rtol=1e-3 if dtype == torch.float32 else 0.2
        )


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "gemma3_text", "mimo_v2_flash", "qwen3_next"])
def test_other_layouts(model_type: str, tmp_path: Path) -> None:
    model, _ = tiny(model_type)
    model.save_pretrained(tmp_path)
    causal: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(3, 30, (2, 8), generator=torch.Generator().manual_seed(0))
    batch = [{"input_ids": ids, "labels": ids}]
    scores = alps.measure(causal, batch, statistics=["gradient", "lift"])
    heads = LiveHeads(causal)
    (loss,) = (causal.eval()(**it).loss for it in batch)
    names = {(it.module, it.parameter) for it in heads.attention.matrices}
    weights = {name: causal.get_submodule(name[0]).get_parameter(name[1]) for name in names}
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    first = next(it for it in heads.attention.matrices if it.role == "query")
    gradient = gradients[first.module, first.parameter].flatten(1)
    total = gradient.narrow(first.axis, first.first, first.count).abs().sum()
    for role in ("key", "value"):
        it = next(
            it for it in heads.attention.matrices if (it.layer_index, it.role, it.index) == (0, role, 0)
        )
        total += gradients[it.module, it.parameter].flatten(1).narrow(it.axis, it.first, it.count).abs().sum()
    assert scores["gradient"][0, 0] == pytest.approx(float(total), rel=1e-4)
    assert np.isfinite(scores["lift"][scores.geometry.shape[0] - 1, 0])


def test_bad_input_is_one_clear_error() -> None:
    model = llama(layers=2)
    bare = transformers.LlamaModel(model.config)
    nan = copy.deepcopy(model)
    nan.lm_head.weight.data[:] = float("nan")
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (
            alps.ArgumentError,
            "there is no 'wasserstein'",
            (model, batches()),
            {"statistics": ["wasserstein"]},
        ),
        (alps.ArgumentError, "at least one, found none", (model, []), {}),
        (alps.ArgumentError, "needs the model after tuning", (model, batches()), {"statistics": ["taylor"]}),
        (alps.ArgumentError, "needs the model after tuning", (model, batches()), {"statistics": ["seekr"]}),
        (
            alps.UnchangedError,
            "no head",
            (model, batches()),
            {"statistics": ["seekr"], "tuned": copy.deepcopy(model)},
        ),
        (alps.ArgumentError, "loss that is finite, found nan", (nan, batches()), {}),
        (alps.ArgumentError, "returned no loss", (bare, [{"input_ids": batches()[0]["input_ids"]}]), {}),
        (
            alps.UnchangedError,
            "no head",
            (model, batches()),
            {"statistics": ["taylor"], "tuned": copy.deepcopy(model)},
        ),
        (
            alps.ArgumentError,
            "two states",
            (model, batches()),
            {"statistics": ["taylor"], "tuned": llama(layers=3)},
        ),
    ]
    for error, message, positional, options in cases:
        with pytest.raises(error, match=message):
            alps.measure(*positional, **options)


def test_the_command(files: Path) -> None:
    base = audit_arguments(files)[1]
    text = ["--text", str(files / "text.txt"), "--length", "32", "--windows", "4"]
    output = str(files / "scores.safetensors")
    options = [
        "--statistic",
        "taylor",
        "--statistic",
        "fisher",
        "--tuned",
        str(files / "tuned"),
        "--scores",
        output,
    ]
    ran = CliRunner().invoke(app, ["measure", base, *text, *options])
    assert ran.exit_code == 0, ran.output
    assert "Top heads by taylor" in ran.stdout
    scores = alps.HeadScores.load(output)
    assert scores.statistics == ("taylor", "fisher")
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    ids = [int(word[1:]) for word in (files / "text.txt").read_text().split()]
    starts = torch.linspace(0, len(ids) - 32, 4).long().tolist()
    windows = [torch.tensor([ids[at : at + 32]]) for at in starts]
    expected = alps.measure(
        model,
        [{"input_ids": it, "labels": it} for it in windows],
        tuned=files / "tuned",
        statistics=["taylor"],
    )
    np.testing.assert_allclose(scores["taylor"], expected["taylor"], rtol=1e-4)
    ran = CliRunner().invoke(app, ["measure", base, "--statistic", "lift", "--json"])
    assert ran.exit_code == 0, ran.output
    assert "lift" in json.dumps(json.loads(ran.stdout))
    ran = CliRunner().invoke(app, ["measure", base])
    assert ran.exit_code == 1
    assert "--text" in ran.stderr
