"""The links and make targets that the documents name exist."""

import re

import pytest

from support.documents import CONTRIBUTING, DOCUMENTS, MAKE_TARGETS, ROOT


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
