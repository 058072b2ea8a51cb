"""The results as a table, to read in a terminal and to paste into a document."""

import io
from collections.abc import Iterable

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from compare.result import Bar, Result


def table(results: Iterable[Result]) -> str:
    """A table in Markdown, a line for each result."""
    columns = Table("scanned", "against", "alps", "other", "median (range)", "bar", "met", box=MARKDOWN)
    for result in results:
        columns.add_row(
            result.what,
            result.against,
            result.ours,
            result.theirs,
            _figure(result),
            _bar(result.bar),
            _met(result),
        )
    text = io.StringIO()
    Console(file=text, width=1000, color_system=None).print(columns)
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines()) + "\n"


def _figure(result: Result) -> str:
    median, low, high = (_number(it) for it in result.figure)
    spread = "" if low == high else f" ({low} to {high})"
    return f"{median}{result.unit}{spread}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}"


def _bar(bar: Bar | None) -> str:
    return "" if bar is None else f"{'at least' if bar.least else 'at most'} {bar.limit:g}"


def _met(result: Result) -> str:
    if result.bar is None:
        return ""
    return "yes" if result.bar.met(result.figure.median) else "no"
