"""The examples of the README and of the documentation run, and print what is shown, except for the numbers."""

import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import alps
import command_line_page
from alps.cli import app
from alps.demo import Settings, run
from alps.demo.experiment import METHODS
from support.documents import DOCUMENTS, MAKE_TARGETS, README, ROOT
from support.examples import examples

NUMBER = re.compile(r"-?\b\d+(,\d{3})*(\.\d+)?(e[-+]\d+)?")
MAP = re.compile(r"[·░▒▓█]+")


def shape(text: str) -> list[str]:
    """The lines, without their numbers and without what the numbers decide."""
    lines = (re.sub(r"\b(\d+)-\d+\b", r"\1", line) for line in text.splitlines())
    lines = (MAP.sub("#", NUMBER.sub("0", line)) for line in lines)
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


# PEFT still asks what transformers deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("document", "left"),
    [
        ("README.md", "heads.json out"),
        ("docs/scores.md", "scores.safetensors heads.json heads.png report.html tasks.svg"),
        (
            "docs/tutorial.md",
            "scores.safetensors heads.png report.html heads.json checkpoints out adapter merged grafted",
        ),
    ],
)
def test_the_examples_print_what_the_page_shows(document: str, left: str, demo: Path) -> None:
    names: dict[str, Any] = {}
    for example in examples(ROOT / document):
        if example.language not in ("python", "console"):
            continue
        printed = example.run(names)
        if example.shown:
            assert shape(printed) == shape(example.shown), example.code
    assert {path.name for path in demo.iterdir()} == {"demo", *left.split()}


def test_no_example_is_left_out() -> None:
    for document in DOCUMENTS:
        languages = {example.language for example in examples(document)}
        if document.name == "remote.md":
            assert "console" not in languages  # test_spread.py runs its Python
        elif document.name == "recipes.md":
            assert "console" not in languages  # test_recipes.py runs its Python
        elif document.name not in ("README.md", "scores.md", "tutorial.md"):
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


def test_the_readme_is_short() -> None:
    assert 100 <= README.read_text(encoding="utf-8").count("\n") <= 200


def test_the_page_of_the_demo_has_its_table() -> None:
    results = (ROOT / "docs" / "demo-results.md").read_text(encoding="utf-8")
    table = [line for line in results.splitlines() if line.startswith("|")]
    assert len(table) == 1 + 1 + 1 + len(METHODS)
    assert '--8<-- "docs/demo-results.md"' in (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")


def test_the_page_of_the_command_line_is_that_of_the_commands() -> None:
    text = command_line_page.PAGE.read_text(encoding="utf-8")
    assert text == command_line_page.page(), "run: python tools/command_line_page.py"


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
    pages = "".join(it.read_text(encoding="utf-8") for it in (tmp_path / "site" / "api").rglob("*.html"))
    assert 'id="alps.statistics.STATISTICS"' in pages
    for package in (alps, alps.training):
        for name in set(package.__all__) - {"STATISTICS", "__version__"}:
            what = getattr(package, name)
            assert f'id="{what.__module__}.{what.__qualname__}"' in pages, name


def test_each_page_of_the_api_begins_with_a_table_of_its_entries() -> None:
    for document in sorted((ROOT / "docs" / "api").glob("*.md")):
        table, _, entries = document.read_text(encoding="utf-8").partition("\n::: ")
        linked = re.findall(r"\]\[(alps[\w.]+)\]", "".join(re.findall(r"^\|.*$", table, re.MULTILINE)))
        shown = set(re.findall(r"^::: (\S+)", f"::: {entries}", re.MULTILINE)) if entries else set()
        assert linked, document.name
        assert shown <= set(linked), document.name
