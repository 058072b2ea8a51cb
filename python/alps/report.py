"""Writes reports of scores, head sets and comparisons."""

import os

from alps.audits import Audit
from alps.compare import Comparison
from alps.files import check_writable, suffix_of, write_whole
from alps.heads import HeadSet
from alps.optional import visual
from alps.scores import HeadScores

_SUFFIXES = (".html", ".htm")


def write_report(
    path: str | os.PathLike[str],
    content: HeadScores | HeadSet | Comparison | Audit,
    heads: HeadSet | None = None,
    *,
    statistic: str | None = None,
) -> None:
    """Writes a report with tables, pictures and provenance as one HTML file that refers to no other.

    The page fits a phone, a wide screen and paper, in a light and a dark scheme. Its maps say the number of the head under
    the pointer or the arrow keys, and its tables sort; without scripts everything is there but that. The same content
    gives the same bytes.

        scores = alps.scan("base", "tuned")
        alps.write_report("report.html", scores, scores.select(ratio=0.1))

    Examples:
        >>> scores = alps.scan("base", "tuned")
        >>> heads = scores.select(ratio=0.1)
        >>> alps.write_report("report.html", scores, heads)

    Args:
        path: The file, named .html or .htm.
        content: Scores, a head set, or what `compare` or `audit` returned.
        heads: With scores, the heads to mark and to list; without them the report lists the best.
        statistic: With scores, the statistic that ranks and colours the heads; "relative_delta" unless it is not there
            and only one other is.

    Raises:
        ArgumentError: The file is named otherwise, there is no such statistic, `heads` are of another geometry, or
            an argument has no meaning beside `content`.
        MissingPackageError: jinja2 or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    check_report(path)
    html: str = visual("html_report", "a report").document(content, heads, statistic=statistic)
    write_whole(path, html.encode())


def check_report(path: str | os.PathLike[str]) -> None:
    """Checks, before long work, that a report can be made and written to `path`.

    Raises:
        ArgumentError: The name does not end in .html or .htm.
        MissingPackageError: jinja2 or matplotlib is not installed.
        OSError: The file could not be written.
    """
    suffix_of(path, "report", _SUFFIXES)
    check_writable(path)
    visual("html_report", "a report")
