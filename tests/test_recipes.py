"""The Python of docs/recipes.md and the scripts that it names train the chosen heads."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from support import text_model
from support.documents import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what the recipes name."""
    text_model.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


@pytest.mark.parametrize("recipe", RECIPES, ids=[f"recipe {number}" for number in range(len(RECIPES))])
def test_the_recipes_run(recipe: str, folder: Path) -> None:
    Path("recipe.py").write_text(recipe)
    runpy.run_path("recipe.py")
    [saved] = [it for it in folder.iterdir() if it.name.startswith(("out", "start"))]
    if saved.name == "start":
        assert (saved / "adapter_config.json").is_file()
    else:
        text_model.check_trained(folder, saved, "freeze" if 'others="freeze"' in recipe else "train")


def test_the_command_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = re.findall(r"^python (trl_sft\.py .*)$", PAGE, re.MULTILINE)
    script, *arguments = shlex.split(line)
    on_a_cpu = "--learning_rate", "1e-3", "--bf16", "false", "--use_cpu", "--report_to", "none"
    run_example(monkeypatch, script, *arguments, *on_a_cpu)
    text_model.check_trained(folder, folder / "out-command")
    assert (folder / "out-command" / "heads.json").is_file()


def test_the_example_of_the_trainer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(
        monkeypatch, "trainer.py", "base", "tuned", "plain.txt", "--output", "out", "--ratio", "0.16", "--steps", "3",
        "--learning-rate", "1e-3", "--cpu",
    )  # fmt: skip
    assert "layer 0: heads 1, 3; key/value groups 0, 1" in capsys.readouterr().out
    text_model.check_trained(folder, folder / "out")


def test_the_examples_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"examples/(\w+\.\w+)", PAGE))
    assert {"axolotl.yaml", "finetune.py", "trainer.py", "trl_sft.py"} == named
    assert all((ROOT / "examples" / name).is_file() for name in named)
