"""The paths, links and make targets that the documents name exist."""

import re
from pathlib import Path

import pytest

from support.documents import CONTRIBUTING, DOCUMENTS, MAKE_TARGETS, ROOT

TOP = {path.name for path in ROOT.iterdir()} - {"demo"}
"""What a path in a document begins with; `demo/` is what `make demo` leaves."""
GENERATED = {"target", "build"}
"""Folders that exist once a make target has run."""


def paths(text: str) -> set[str]:
    """What stands in backquotes and is a path from the root of the repository."""
    quoted = (word for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) for word in code.split())
    return {
        word.rstrip(".,;:")
        for word in quoted
        if word.split("/")[0] in TOP - GENERATED and ("/" in word or "." in word)
    }


@pytest.mark.parametrize("document", [CONTRIBUTING, *DOCUMENTS], ids=lambda path: path.name)
def test_the_paths_in_a_document_exist(document: Path) -> None:
    for path in paths(document.read_text(encoding="utf-8")):
        assert list(ROOT.glob(path.rstrip("/"))), f"{document.name} names {path}"
        assert not path.endswith("/") or (ROOT / path).is_dir(), f"{document.name} calls {path} a folder"


def test_contributing_names_the_rooms() -> None:
    named = paths(CONTRIBUTING.read_text(encoding="utf-8"))
    children = [child for parent in ("rust", "python/alps", "tests") for child in (ROOT / parent).iterdir()]
    for folder in filter(Path.is_dir, children):
        # A folder that was renamed leaves its __pycache__ behind.
        if folder.name == "__pycache__" or not any(child.is_file() for child in folder.iterdir()):
            continue
        name = folder.relative_to(ROOT).as_posix()
        assert any(path.rstrip("/") == name or path.startswith(f"{name}/") for path in named), name


def test_the_make_targets_exist() -> None:
    named = {
        target
        for document in (*DOCUMENTS, CONTRIBUTING)
        for target in re.findall(
            r"(?:^|`|3\.\d+ )make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {"demo", "test", "docs"} <= named <= MAKE_TARGETS


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_links_between_the_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
