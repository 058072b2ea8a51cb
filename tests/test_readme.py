"""The README's examples run, and print what it shows, but for the numbers."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from checkpoints import Shape, name, random_weights, write

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\b\d+(,\d{3})*(\.\d+)?(e[-+]\d+)?")
MAP = re.compile(r"[·░▒▓█]+")


@dataclass
class Example:
    """Something to run, and what it is said to print."""

    language: str
    code: str
    shown: str = ""


def examples() -> list[Example]:
    found: list[Example] = []
    for language, content in FENCE.findall(README):
        if language == "text":
            found[-1].shown = content
        elif language == "console":
            for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                code, _, shown = part.partition("\n")
                found.append(Example(language, code, shown))
        else:
            found.append(Example(language, content))
    return found


def shape(text: str) -> list[str]:
    """The lines, without their numbers and without what the numbers decide."""
    lines = (MAP.sub("#", NUMBER.sub("0", line)) for line in text.splitlines())
    lines = (re.sub(r"[ ─]+", " ", line).strip() for line in lines)
    # A list of heads is as long as it happens to be, and a mark may stand beside any of the top heads.
    lines = (
        re.sub(r"^(0( 0){6})( #)?$", r"\1", re.sub(r"(\(0, 0\)|0)(, \1)+", r"\1", line)) for line in lines
    )
    # So are the layers that have some.
    return [line for line, _ in groupby(lines)]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with what `make demo` leaves: a pair of the same shape."""
    of_demo = Shape(layers=4, query_heads=8, key_value_heads=4, head_size=16, hidden_size=128)
    weights = random_weights(of_demo, seed=0)
    noise = random_weights(of_demo, seed=1, scale=0.005)
    for number, layer in enumerate(range(of_demo.layers), start=1):
        noise[name(layer, "q")] *= number
    write(tmp_path / "demo" / "base", of_demo.config(), weights)
    tuned = {key: weight + noise[key] for key, weight in weights.items()}
    write(tmp_path / "demo" / "tuned", of_demo.config(), tuned)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), names)
    return printed.getvalue()


def run_command(line: str) -> str:
    command, _, file = line.partition(" > ")
    program, *arguments = shlex.split(command)
    assert program == "alps", line
    ran = subprocess.run(
        [sys.executable, "-m", "alps.cli", *arguments],
        capture_output=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "COLUMNS"}
        | {"PYTHONIOENCODING": "utf-8"},
    )
    assert (ran.returncode, ran.stderr) == (0, b""), line
    if file:
        Path(file).write_bytes(ran.stdout)
        return ""
    return ran.stdout.decode()


# PEFT still asks what transformers deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_examples_print_what_they_are_said_to(demo: Path) -> None:
    names: dict[str, Any] = {}
    languages = []
    for example in examples():
        if example.language == "python":
            printed = run_python(example.code, names)
        elif example.language == "console":
            printed = run_command(example.code)
        else:
            continue
        languages.append(example.language)
        if example.shown or example.language == "python":
            assert shape(printed) == shape(example.shown), example.code
    assert {"python", "console"} == set(languages)
    of_python = {
        "heads.json",
        "scores.safetensors",
        "heads.png",
        "report.html",
        "tasks.svg",
        "out",
        "adapter",
    }
    of_commands = {
        "scores.json",
        "groups.json",
        "shown.json",
        "ranks.pdf",
        "groups.html",
        "selected.txt",
        "compared.png",
    }
    assert {path.name for path in demo.iterdir()} == {"demo"} | of_python | of_commands


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [
        target
        for text in (README, contributing())
        for target in re.findall(r"(?:^|`|3\.\d+ )make ([a-z]+)", text, re.MULTILINE)
    ]
    assert {"demo", "test"} <= set(named) <= set(targets)


def contributing() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_links_between_the_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
