"""The examples of the README and of the documentation run, and print what is shown, except for the numbers."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import alps
from alps.cli import app
from alps.demo import Settings, run
from alps.demo.experiment import METHODS
from support.documents import DOCUMENTS, MAKE_TARGETS, README, ROOT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\b\d+(,\d{3})*(\.\d+)?(e[-+]\d+)?")
MAP = re.compile(r"[·░▒▓█]+")


@dataclass
class Example:
    """Something to run, and what it is said to print."""

    language: str
    code: str
    shown: str = ""


def examples(document: Path) -> list[Example]:
    found: list[Example] = []
    for language, content in FENCE.findall(document.read_text(encoding="utf-8")):
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `alps demo demo` leaves, in less time."""
    folder = tmp_path_factory.mktemp("made") / "demo"
    run(folder, Settings(seeds=1, base_steps=2, steps=2, batch=2, measured=2), Console(quiet=True))
    return folder


@pytest.fixture
def demo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with the demo's folder in it."""
    shutil.copytree(made, tmp_path / "demo")
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
@pytest.mark.parametrize(
    ("document", "left"),
    [
        (
            "README.md",
            {
                *(
                    "heads.json",
                    "scores.safetensors",
                    "heads.png",
                    "report.html",
                    "tasks.svg",
                    "out",
                    "adapter",
                ),
                *("scores.json", "groups.json", "shown.json", "ranks.pdf", "groups.html", "selected.txt"),
                "compared.png",
                "grafted",
            },
        ),
        (
            "docs/tutorial.md",
            {
                *("scores.safetensors", "scan.txt", "shown.txt", "selected.txt", "heads.png", "report.html"),
                *(
                    "heads.json",
                    "checkpoints",
                    "out",
                    "adapter",
                    "merged",
                    "audit.txt",
                    "grafted",
                    "graft.txt",
                ),
            },
        ),
    ],
)
def test_the_examples_print_what_the_page_shows(document: str, left: set[str], demo: Path) -> None:
    names: dict[str, Any] = {}
    for example in examples(ROOT / document):
        if example.language == "python":
            printed = run_python(example.code, names)
        elif example.language == "console":
            printed = run_command(example.code)
        else:
            continue
        if example.shown:
            assert shape(printed) == shape(example.shown), example.code
    assert {path.name for path in demo.iterdir()} == {"demo"} | left


def test_no_example_is_left_out() -> None:
    for document in DOCUMENTS:
        languages = {example.language for example in examples(document)}
        if document.name == "remote.md":
            assert "console" not in languages  # test_spread.py runs its Python
        elif document.name == "recipes.md":
            assert "console" not in languages  # test_recipes.py runs its Python
        elif document.name not in ("README.md", "tutorial.md"):
            assert not languages & {"python", "console"}, document


def test_the_commands_of_a_shell_exist() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    lines = [
        line.partition("#")[0].split()
        for document in DOCUMENTS
        for example in examples(document)
        if example.language == "sh"
        for line in example.code.splitlines()
    ]
    assert ["alps", "demo"] in lines
    for program, what, *_ in lines:
        if program == "alps":
            assert what in commands
        elif program == "python" and what != "-c":
            assert (ROOT / "examples" / what).is_file()
        elif program in ("axolotl", "python"):
            pass  # docs/recipes.md says how these were tried
        else:
            assert (program, what) == ("pip", "install") or (program == "make" and what in MAKE_TARGETS)


def test_the_readme_shows_the_table_of_the_demo() -> None:
    results = (ROOT / "docs" / "demo-results.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in results.splitlines() if line.startswith("|"))
    assert table.count("\n") == 1 + 1 + len(METHODS)
    assert table in README.read_text(encoding="utf-8")


def test_the_documentation_builds_without_warnings_and_names_everything(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in set(alps.__all__) - {"STATISTICS", "__version__"}:
        what = getattr(alps, name)
        assert f'id="{what.__module__}.{what.__qualname__}"' in page, name
