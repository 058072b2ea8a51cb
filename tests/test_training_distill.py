"""The loss for continual learning, against its formula written out entry by entry."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch

import alps
from alps.training import distill
from support.training import Model, chosen, tiny_model, tokens

pytestmark = pytest.mark.filterwarnings("ignore")


def pair(model_type: str = "llama") -> tuple[Model, Model]:
    """A model, and what it was before some noise."""
    teacher = tiny_model(model_type)
    teacher.set_attn_implementation("eager")
    model = copy.deepcopy(teacher)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, teacher.eval()


def divergence(old: torch.Tensor, new: torch.Tensor) -> float:
    """KL(old || new) of two distributions."""
    pairs = zip(old.tolist(), new.tolist(), strict=True)
    return math.fsum(p * (math.log(p) - math.log(q)) for p, q in pairs if p > 0)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_formula(model_type: str, padded: bool, temperature: float) -> None:
    model, teacher = pair(model_type)
    heads = chosen(teacher)
    ids = tokens(batch=2, length=6)
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    batch["labels"][:, 1] = -100
    if padded:
        batch["attention_mask"][1, 4:] = 0
        batch["labels"][1, 4:] = -100
    found = distill(
        model,
        teacher,
        heads,
        batch,
        task_weight=0.3,
        logits_weight=0.7,
        attention_weight=11,
        temperature=temperature,
    )
    with torch.no_grad():
        new, old = (it(**batch, output_attentions=True) for it in (model, teacher))
    of_tokens = [
        divergence(
            (old.logits[row, at] / temperature).softmax(-1), (new.logits[row, at] / temperature).softmax(-1)
        )
        for row in range(2)
        for at in range(5)
        if batch["labels"][row, at + 1] != -100
    ]
    of_heads = []
    for layer, head in heads.pairs():
        rows = [
            divergence(old.attentions[layer][row, head, at], new.attentions[layer][row, head, at])
            for row in range(2)
            for at in range(6)
            if batch["attention_mask"][row, at]
        ]
        of_heads.append(sum(rows) / len(rows))
    assert float(found.task) == pytest.approx(float(new.loss), rel=1e-9)
    assert float(found.logits) == pytest.approx(temperature**2 * sum(of_tokens) / len(of_tokens), rel=1e-7)
    assert float(found.attention) == pytest.approx(sum(of_heads) / len(of_heads), rel=1e-7)
    total = 0.3 * float(found.task) + 0.7 * float(found.logits) + 11 * float(found.attention)
    assert float(found.loss) == pytest.approx(total, rel=1e-6)  # the model returns its loss in float32


def test_a_model_like_its_teacher_has_no_divergence() -> None:
    _, teacher = pair()
    ids = tokens(batch=2, length=6)
    found = distill(teacher, copy.deepcopy(teacher), chosen(teacher), {"input_ids": ids, "labels": ids})
    assert float(found.logits) == float(found.attention) == 0
    assert float(found.loss) == pytest.approx(0.5 * float(found.task))


def test_restricted_rows_have_the_gradient_and_the_teacher_none() -> None:
    model, teacher = pair()
    alps.restrict(model, chosen(model), others="freeze")
    ids = tokens(batch=2, length=6)
    found = distill(model, teacher, chosen(teacher), {"input_ids": ids, "labels": ids})
    found.attention.backward()
    trained = [it for it in model.parameters() if it.requires_grad]
    assert trained
    assert any(it.grad is not None and it.grad.any() for it in trained)
    assert all(it.grad is None for it in teacher.parameters())


def test_it_holds_the_attention() -> None:
    """Training against the attention loss brings the maps back."""
    model, teacher = pair()
    heads = chosen(teacher)
    ids = tokens(batch=2, length=6)
    batch = {"input_ids": ids, "labels": ids}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        found = distill(model, teacher, heads, batch, task_weight=0, logits_weight=0)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(found.attention))
    assert losses[-1] < 0.1 * losses[0]


def test_bad_input_is_one_clear_error() -> None:
    model, teacher = pair()
    heads = chosen(teacher)
    ids = tokens(batch=2, length=6)
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids}
    none = alps.HeadSet.from_pairs([], heads.geometry)
    with pytest.raises(alps.ArgumentError, match="at least one head"):
        distill(model, teacher, none, batch)
    with pytest.raises(alps.ArgumentError, match="above 0"):
        distill(model, teacher, heads, batch, temperature=0)
    with pytest.raises(alps.ArgumentError, match="no loss"):
        distill(model, teacher, heads, {"input_ids": ids})
    one = dataclasses.replace(heads.geometry, layers=heads.geometry.layers[:1])
    with pytest.raises(alps.ModelError, match=r"attention map of each of 1 layers, found \d"):
        distill(model, teacher, alps.HeadSet.from_pairs([(one.layers[0], 0)], one), batch)
    model.set_attn_implementation("sdpa")
    with pytest.raises(alps.ModelError, match="eager"):
        distill(model, teacher, heads, batch)
