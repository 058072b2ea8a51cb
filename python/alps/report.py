"""Writing reports, whole or not at all."""

import os
from pathlib import Path

from alps.compare import Comparison
from alps.errors import ArgumentError
from alps.files import check_writable, write_whole
from alps.heads import HeadSet
from alps.optional import PICTURES, needed
from alps.scores import HeadScores

_SUFFIXES = (".html", ".htm")


def write_report(
    path: str | os.PathLike[str],
    content: HeadScores | HeadSet | Comparison,
    heads: HeadSet | None = None,
    *,
    statistic: str | None = None,
) -> None:
    """Writes a report with tables, pictures and provenance as one HTML file that refers to no other.

    The same content gives the same bytes.

    Args:
        path: The file, named .html or .htm.
        content: Scores, a head set, or what `compare` returned.
        heads: With scores, the heads to mark and to list; without them the report lists the best.
        statistic: With scores, what ranks and colours the heads; "wasserstein" unless it is not there and only one
            other is.

    Raises:
        ArgumentError: The file is named otherwise, there is no such statistic, `heads` are of another geometry, or
            an argument has no meaning beside `content`.
        MissingPackageError: jinja2 or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    check_report(path)
    from alps import report_document

    write_whole(path, report_document.document(content, heads, statistic=statistic).encode())


def check_report(path: str | os.PathLike[str]) -> None:
    """Finds out before long work whether a report can be made and written to `path`.

    Raises:
        ArgumentError: The name does not end in .html or .htm.
        MissingPackageError: jinja2 or matplotlib is not installed.
        OSError: The file could not be written.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in _SUFFIXES:
        raise ArgumentError(
            f"{os.fspath(path)}: a report's name ends in {' or '.join(_SUFFIXES)}; found {suffix or 'no suffix'}"
        )
    check_writable(path)
    with needed("a report", PICTURES):
        from alps import report_document  # noqa: F401
