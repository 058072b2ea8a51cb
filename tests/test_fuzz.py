"""Malformed saved files, drawn by hypothesis from the seeds of the fuzzer; `tests/rust/fuzz.rs` has what the core reads."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.saved_files import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 64, 10**400, 0.5, 1e308, float("inf"), float("nan"), "", "0", "1", "01", "-1",
    "decoder", "x" * 300, "\x1b[31m", "\ud800", "\u0000", [], [0], [0, 0], [[0]], ["kl"], [0, "0"], {}, {"0": []}, {"0": [0, 0]},
]  # fmt: skip


def seeds(target: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    assert found, f"{target} has no seeds"
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_fails(target: str) -> None:
    for content in seeds(target):
        TARGETS[target](content)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every list or object within a document, with each of its keys."""
    if isinstance(document, dict):
        keys: list[Any] = list(document)
    else:
        keys = list(range(len(document))) if isinstance(document, list) else []
    return [(document, key) for key in keys] + [place for key in keys for place in places(document[key])]


@st.composite
def damaged_documents(draw: st.DrawFn, target: str) -> bytes:
    """A seed with values changed, left out, renamed, or within the document in the metadata."""
    header = json.loads(draw(st.sampled_from([seed for seed in seeds(target) if seed.startswith(b"{")])))
    metadata = header.get("__metadata__", {})
    document = json.loads(metadata["alps"]) if isinstance(metadata, dict) and "alps" in metadata else header
    for _ in range(draw(st.integers(1, 3))):
        inner = draw(st.sampled_from([document, header]))
        found = places(inner)
        if not found:
            continue
        container, key = draw(st.sampled_from(found))
        change = draw(st.sampled_from(["value", "value", "absent", "renamed"]))
        if change == "value":
            container[key] = deepcopy(draw(st.sampled_from(VALUES)))  # a later change may be within it
        elif change == "absent":
            del container[key]
        elif isinstance(container, dict):
            container[str(draw(st.sampled_from(VALUES)))] = container.pop(key)
    if document is not header and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["alps"] = json.dumps(document)
    return json.dumps(header).encode()


@st.composite
def damaged_bytes(draw: st.DrawFn, target: str) -> bytes:
    """A seed with bytes changed, left out or doubled."""
    content = draw(st.sampled_from(seeds(target)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 2, 8, 100])))
        middle = draw(
            st.one_of(
                st.just(content[start:end] * 2),
                st.binary(max_size=4),
                st.sampled_from([b'"', b"\\u0000", b"1e999"]),
            )
        )
        content = content[:start] + middle + content[end:]
    return content


@pytest.mark.parametrize("damage", [damaged_documents, damaged_bytes])
@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_refused_or_read_as_it_is(target: str, damage: Any) -> None:
    @settings(max_examples=300)
    @given(damage(target))
    def check(content: bytes) -> None:
        TARGETS[target](content)

    check()
