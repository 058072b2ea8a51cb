"""The examples in the docstrings that the pages of the API show run, and print what is shown."""

import doctest
import inspect
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import alps
import alps.training
from support.documents import ROOT
from support.example_pair import write_example

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md"))}
ENTRIES = [entry for page in PAGES.values() for entry in re.findall(r"^::: (\S+)", page, re.MULTILINE)]
"""What the pages show, by module and name."""

PUBLIC = {id(getattr(package, name)) for package in (alps, alps.training) for name in package.__all__}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "example"
    folder.mkdir()
    write_example(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what the examples read."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def docstrings(what: Any) -> Iterator[tuple[str, str]]:
    """The docstrings of a function, or of a class and its public members, by name."""
    yield what.__qualname__, what.__doc__ or ""
    if not isinstance(what, type):
        return
    own = [cls for cls in what.__mro__ if cls.__module__.startswith("alps.")]
    for name, member in [member for cls in own for member in vars(cls).items()]:
        if name.startswith("_"):
            continue
        if isinstance(member, classmethod):
            member = member.__func__
        if inspect.isfunction(member) or isinstance(member, property):
            yield f"{what.__qualname__}.{name}", member.__doc__ or ""


def run_examples(name: str, text: str) -> bool:
    """Runs the examples in a text; returns whether there are some."""
    test = doctest.DocTestParser().get_doctest(text, {"alps": alps}, name, None, None)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    failed, _ = runner.run(test, out=printed.append)
    assert not failed, "".join(printed)
    return bool(test.examples)


@pytest.mark.usefixtures("folder")
# PEFT still asks what transformers deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_examples_run(entry: str) -> None:
    module, _, name = entry.rpartition(".")
    what = getattr(import_module(module), name)
    if not isinstance(what, type) and not inspect.isfunction(what):
        return  # a constant, or the type of an argument
    found = [run_examples(*docstring) for docstring in docstrings(what)]
    is_error = isinstance(what, type) and issubclass(what, Exception)
    assert any(found) or is_error or id(what) not in PUBLIC, f"{entry} has no example"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str) -> None:
    fences = re.findall(r"^```pycon\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    run_examples(page, "\n".join(fences))
