"""Formats results as a Markdown table, for a terminal and for documents."""

import io
from collections.abc import Iterable

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from compare.result import Result, Target


def table(results: Iterable[Result]) -> str:
    """Returns a Markdown table with a row for each result."""
    columns = Table("scanned", "against", "alps", "other", "median (range)", "target", "met", box=MARKDOWN)
    for result in results:
        columns.add_row(
            result.what,
            result.against,
            result.ours,
            result.theirs,
            _figure(result),
            _target(result.target),
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


def _target(target: Target | None) -> str:
    return "" if target is None else f"{'at least' if target.least else 'at most'} {target.limit:g}"


def _met(result: Result) -> str:
    if result.target is None:
        return ""
    return "yes" if result.target.met(result.figure.median) else "no"
