"""What the commands print, draw and report."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from alps.audits import Audit
from alps.cli import tables
from alps.compare import Comparison
from alps.escaping import escape
from alps.files import check_writable, suffix_of
from alps.heads import HeadSet
from alps.report import check_report, write_report
from alps.scores import HeadScores
from alps.visual import image_file
from alps.visual.terminal_map import head_map, set_map


def check_outputs(
    *,
    scores: Path | None = None,
    heads: Path | None = None,
    audit: Path | None = None,
    plot: Path | None = None,
    report: Path | None = None,
) -> None:
    """Refuses, before the work, files that could not be written, and pictures and reports that could not be made.

    Raises:
        ArgumentError: The name of a file does not say what is in it.
        MissingPackageError: jinja2 or matplotlib is not installed.
        OSError: A file could not be written.
    """
    for what, file, suffix in (
        ("score file", scores, ".safetensors"),
        ("head set", heads, ".json"),
        ("JSON file", audit, ".json"),
    ):
        if file is not None:
            suffix_of(file, what, (suffix,))
            check_writable(file)
    if plot is not None:
        image_file.check_picture(plot)
    if report is not None:
        check_report(report)


def draw(
    plot: Path | None,
    report: Path | None,
    content: HeadScores | HeadSet | Comparison | Audit,
    heads: HeadSet | None = None,
    statistic: str | None = None,
) -> None:
    """Writes the picture and the report that are asked for."""
    if plot is not None:
        figure = (
            content.plot(heads, statistic=statistic) if isinstance(content, HeadScores) else content.plot()
        )
        image_file.save(figure, plot)
    if report is not None:
        write_report(report, content, heads, statistic=statistic)


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON document."""
    typer.echo(json.dumps(document, allow_nan=False))


def print_scores(scores: HeadScores, statistic: str, heads: HeadSet | None, top: int) -> None:
    """Prints the `top` best heads, a map, and the size of the selection if there is one."""
    console = standard_output()
    console.print(Text(str(scores.geometry)))
    for note in tables.quantisation_notes(scores):
        console.print(Text(note, style="yellow"))
    console.print()
    if top:
        console.print(Text(f"Top heads by {statistic}", style="bold"))
        console.print(tables.top_table(console, scores, statistic, heads, top))
    console.print(head_map(console, scores.geometry, scores[statistic], heads))
    _print_summary(console, heads)


def print_heads(heads: HeadSet) -> None:
    """Prints a map of a head set, and its size."""
    console = standard_output()
    console.print(Text(str(heads.geometry)))
    console.print()
    console.print(set_map(console, heads))
    _print_summary(console, heads)


def _print_summary(console: Console, heads: HeadSet | None) -> None:
    if heads is not None:
        console.print()
        console.print(Text(heads.report.summary, style="bold"))


def print_sources(provenance: dict[str, str]) -> None:
    """Prints which files were read, and what is to be noted of them."""
    typer.echo(escape(f"base read from {provenance['base_files']}, tuned from {provenance['tuned_files']}"))
    for name in ("base", "tuned"):
        if over := provenance.get(f"{name}_adapter_over"):
            trained_on = provenance.get(f"{name}_adapter_trained_on", over)
            named = f"; its configuration names {trained_on}" if trained_on != over else ""
            kind = provenance[f"{name}_adapter"]
            typer.echo(escape(f"{name} is an adapter ({kind}) over {over}{named}"))
        if note := provenance.get(f"{name}_note"):
            typer.echo(escape(f"note on {name}: {note}"))


def print_written(**files: Path | None) -> None:
    """Prints the files that were written."""
    for what, path in files.items():
        if path is not None:
            typer.echo(f"{what} written to {path}")


def print_lines(lines: Iterable[RenderableType]) -> None:
    """Prints tables and texts."""
    console = standard_output()
    for line in lines:
        console.print(line)


def standard_output() -> Console:
    """Standard output, as rich prints on it."""
    return Console(highlight=False)
