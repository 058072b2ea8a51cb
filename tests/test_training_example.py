"""The example and the benchmark that users start from."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from support import text_model
from support.training import chosen, masks, tokens

pytestmark = [
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer, and heads chosen."""
    text_model.make(tmp_path)
    return tmp_path / "base"


# A stand-in for a package that transformers reports to.
TENSORBOARD = """
class SummaryWriter:
    def __init__(self, *args, **kwargs): self.file = open("reported.txt", "a")
    def add_scalar(self, name, value, step): print(name, step, file=self.file, flush=True)
    def __getattr__(self, name): return lambda *args, **kwargs: None
"""


@pytest.mark.parametrize("adapter", [False, True])
def test_the_example(adapter: bool, base: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "examples/finetune.py"), str(base), str(tmp_path / "heads.json"),
        str(tmp_path / ("plain.txt" if adapter else "alpaca.jsonl")), "--output", str(tmp_path / "out"),
        "--steps", "3", "--batch", "4", "--device-batch", "2", "--length", "64", "--dtype", "float32", "--cpu",
        "--learning-rate", "1e-3", *(["--adapter"] if adapter else []), "--report-to", "tensorboard", "--log-every", "1",
    ]  # fmt: skip
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "tensorboardX.py").write_text(TENSORBOARD)
    path = os.pathsep.join([str(tmp_path / "fake"), *sys.path])
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    reported = (tmp_path / "reported.txt").read_text().splitlines()
    assert {"train/loss 1", "train/loss 2", "train/loss 3"} <= set(reported)
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
