"""The example and the benchmark that users start from."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from support.tiny_models import VOCABULARY
from support.training import chosen, masks, tiny_model, tokens

pytestmark = [
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer, and heads chosen."""
    model = tiny_model(dtype=torch.float32)
    chosen(model).save(tmp_path / "heads.json")
    model.save_pretrained(tmp_path / "base")
    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "base")
    rows = [
        {"instruction": f"w{row} w{row + 1}", "input": "w3" if row % 2 else "", "output": "w5 w6 w7"}
        for row in range(16)
    ]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "plain.txt").write_text("w1 w2 w3 w4\nw5 w6 w7 w8\n" * 8)
    return tmp_path / "base"


@pytest.mark.parametrize("adapter", [False, True])
def test_the_example(adapter: bool, base: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "examples/finetune.py"), str(base), str(tmp_path / "heads.json"),
        str(tmp_path / ("plain.txt" if adapter else "alpaca.jsonl")), "--output", str(tmp_path / "out"),
        "--steps", "3", "--batch", "4", "--device-batch", "2", "--length", "64", "--dtype", "float32", "--cpu",
        "--learning-rate", "1e-3", *(["--adapter"] if adapter else []),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        after = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").merge_and_unload()
    else:
        assert "layer 0: heads 1, 3; key/value groups 0, 1" in run.stdout
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    old, new = before.state_dict(), after.state_dict()
    mask = masks(before, chosen(before))
    for name, entries in mask.items():
        assert torch.equal(old[name][~entries], new[name][~entries])
        assert not entries.any() or (old[name] != new[name])[entries].float().mean() > 0.9
    assert torch.equal(old["lm_head.weight"], new["lm_head.weight"]) == adapter
    with torch.no_grad():
        assert after(input_ids=tokens()).logits.isfinite().all()


def test_the_benchmark_runs_and_little_memory_is_needed() -> None:
    bench = runpy.run_path(str(ROOT / "benches/training.py"))
    bench["METHODS"]["LoRA"] = bench["lora"](43)  # about as many parameters as restrict(freeze) trains
    measured = {
        way: bench["measure"](way, bench["SMALL"], torch.float32, batch=2, length=64, steps=1)
        for way in ("full", "restrict(train)", "restrict(freeze)", "LoRA")
    }
    peaks = {way: peak for way, (_, peak, _) in measured.items()}
    assert peaks["restrict(freeze)"] <= 0.5 * peaks["full"]
    assert peaks["restrict(train)"] < peaks["full"]
    assert measured["LoRA"][2] == pytest.approx(measured["restrict(freeze)"][2], rel=0.02)
    projection = 4 * bench["SMALL"]["hidden_size"] ** 2
    assert peaks["restrict(freeze)"] <= peaks["LoRA"] + projection


def test_the_example_of_continual_learning(base: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("w1 w2 w3 w4 " * 80)
    second.write_text("w9 w8 w7 w6 " * 80)
    command = [
        sys.executable, str(ROOT / "examples/continual.py"), str(base), str(first), str(second),
        "--steps", "30", "--batch", "4", "--length", "16", "--learning-rate", "1e-2",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [line.rsplit(maxsplit=2) for line in run.stdout.splitlines()[2:]]
    losses = {name: (float(first), float(second)) for name, first, second in lines}
    assert losses["first"][0] < losses["before"][0]
    assert losses["second"][1] < losses["first"][1]
    assert losses["first"][0] < losses["second, held"][0] < losses["second"][0]  # less is forgotten
