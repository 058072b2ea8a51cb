"""A folder with all that an example of training needs: a model with a tokenizer, a tuned one, chosen heads, texts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from support.tiny_models import VOCABULARY
from support.training import chosen, masks, tiny_model


def make(folder: Path) -> None:
    """Makes `base`, `tuned`, which moved by the heads in `heads.json`, `alpaca.jsonl`, `plain.txt` and `data/train.jsonl`."""
    model = tiny_model(dtype=torch.float32)
    heads = chosen(model)
    heads.save(folder / "heads.json")
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, entries in masks(model, heads).items():
            model.get_parameter(name)[entries] += 0.1
    model.save_pretrained(folder / "tuned")
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder / "base")
    rows = [
        {"instruction": f"w{row} w{row + 1}", "input": "w3" if row % 2 else "", "output": "w5 w6 w7"}
        for row in range(16)
    ]
    (folder / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "plain.txt").write_text("w1 w2 w3 w4\nw5 w6 w7 w8\n" * 8)
    (folder / "data").mkdir()
    texts = [{"text": "w1 w2 w3 w4"}, {"text": "w5 w6 w7 w8"}] * 4
    (folder / "data" / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))


def check_trained(folder: Path, saved: Path, others: str = "train") -> None:
    """Checks that of the Q, K and V of `base` only the chosen heads moved."""
    base, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "base", saved))
    old, new = base.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, entries in masks(base, chosen(base)).items():
        assert torch.equal(old[name][~entries], new[name][~entries]), name
        assert not entries.any() or (old[name] != new[name])[entries].float().mean() > 0.9, name
    assert torch.equal(old["lm_head.weight"], new["lm_head.weight"]) == (others == "freeze")
