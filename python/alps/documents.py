"""The JSON documents that alps writes, read with suspicion."""

import json
import os
from collections.abc import Mapping
from typing import Any

from alps.errors import ArgumentError, CheckpointError
from alps.geometry import Geometry


def parse_json(path: str | os.PathLike[str], text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`, which was read from `path`.

    Raises:
        CheckpointError: `text` is not JSON, not an object, or says something twice.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not a JSON document: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{os.fspath(path)}: expected a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return document


def check_document(
    document: Mapping[str, Any],
    form: str,
    version: int,
    fields: Mapping[str, type[dict[Any, Any]] | type[list[Any]]],
) -> None:
    """Checks that `document` is of format `form` and has exactly these fields, of these types.

    A field "provenance" maps strings to strings.

    Raises:
        ArgumentError: It is not so; names the field.
    """
    if document.get("format") != form:
        raise ArgumentError(f"format: expected {form!r}, found {document.get('format')!r}")
    if document.get("version") != version:
        raise ArgumentError(f"version: this alps reads {version}, found {document.get('version')!r}")
    expected = {"format", "version", *fields}
    for name in sorted(expected ^ set(document)):
        raise ArgumentError(f"{name}: {'missing' if name in expected else 'unknown'} field")
    for name, kind in fields.items():
        if not isinstance(document[name], kind):
            expected_kind = "an object" if kind is dict else "a list"
            raise ArgumentError(f"{name}: expected {expected_kind}, found {document[name]!r}")
    for name, value in document.get("provenance", {}).items():
        if not isinstance(value, str):
            raise ArgumentError(f"provenance.{name}: expected a string, found {value!r}")


def geometry_of(values: Mapping[str, Any]) -> Geometry:
    """The geometry that a document's field "geometry" holds.

    Raises:
        ArgumentError: A field is missing, unknown or out of its domain; names the field.
    """
    try:
        return Geometry.from_fields(values)
    except ArgumentError as error:
        raise ArgumentError(f"geometry.{error}") from None
