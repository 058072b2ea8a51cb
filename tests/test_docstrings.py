"""The examples in the docstrings of the public names run, and print what is shown."""

import doctest
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alps
from support.example_pair import write_example

WITH_TORCH = {"Audit", "AlpsConfig", "Restriction", "audit", "grafted", "measure", "release", "restrict"}
"""The names whose examples need torch; `alps.training` has others."""
OF_TRAINING = ("Distillation", "HeadsCallback", "distill", "log_heads")

WITHOUT_EXAMPLE = {"STATISTICS", "__version__"}
"""The names that are no function and no class."""


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
    for name, member in vars(what).items():
        if name.startswith("_"):
            continue
        if isinstance(member, classmethod):
            member = member.__func__
        if inspect.isfunction(member) or isinstance(member, property):
            yield f"{what.__qualname__}.{name}", member.__doc__ or ""


def run_examples(what: Any) -> int:
    """Runs all examples of a function or class; returns how many docstrings have some."""
    count = 0
    for name, docstring in docstrings(what):
        test = doctest.DocTestParser().get_doctest(docstring, {"alps": alps}, name, None, None)
        if not test.examples:
            continue
        count += 1
        printed: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
        failed, _ = runner.run(test, out=printed.append)
        assert not failed, "".join(printed)
    return count


def is_error(name: str) -> bool:
    what = getattr(alps, name) if name not in WITH_TORCH else None
    return isinstance(what, type) and issubclass(what, Exception)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", sorted(set(alps.__all__) - WITH_TORCH - WITHOUT_EXAMPLE))
def test_the_examples_run(name: str) -> None:
    assert run_examples(getattr(alps, name)) or is_error(name), f"alps.{name} has no example"


@pytest.mark.usefixtures("folder")
# PEFT still asks what transformers deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"
)
@pytest.mark.parametrize("name", [*sorted(WITH_TORCH), *OF_TRAINING])
def test_the_examples_with_torch_run(name: str) -> None:
    what = getattr(alps.training if name in OF_TRAINING else alps, name)
    assert run_examples(what) or name == "Distillation", f"{name} has no example"
