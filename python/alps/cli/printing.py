"""What the commands print."""

import json
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.text import Text

from alps.cli import json_output, tables
from alps.compare import Comparison
from alps.escaping import escape
from alps.files import finite
from alps.heads import HeadSet
from alps.remote import store
from alps.scores import HeadScores
from alps.visual.terminal_map import head_map, set_map, task_map


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON document, with null for what is no finite number."""
    typer.echo(json.dumps(finite(document), allow_nan=False))


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
    """Prints a map of a head set, its heads layer by layer, and its size."""
    console = standard_output()
    console.print(Text(str(heads.geometry)))
    console.print()
    console.print(set_map(console, heads))
    console.print()
    console.print(tables.head_list(heads))
    _print_summary(console, heads)


def print_comparison(comparison: Comparison, ratio: float) -> None:
    """Prints by what heads are compared, how alike each two tasks are, and a map of whose each head is."""
    console = standard_output()
    console.print(Text(str(comparison.geometry)))
    if comparison.statistic is not None:
        console.print(Text(f"of scores, the best {100 * ratio:g} % of the heads by {comparison.statistic}"))
    console.print(tables.comparison_table(comparison))
    console.print(task_map(console, comparison.heads))


def print_provenance(provenance: dict[str, str]) -> None:
    """Prints where something comes from, a line for each field."""
    for name, value in provenance.items():
        typer.echo(escape(f"{name}: {value}"))


def _print_summary(console: Console, heads: HeadSet | None) -> None:
    if heads is not None:
        console.print()
        console.print(Text(heads.report.summary, style="bold"))


def print_sources(provenance: dict[str, str]) -> None:
    """Prints which files were read, and what is to be noted of them."""
    for name in ("base", "tuned"):
        if over := provenance.get(f"{name}_adapter_over"):
            trained_on = provenance.get(f"{name}_adapter_trained_on", over)
            named = f"; its configuration names {trained_on}" if trained_on != over else ""
            kind = provenance[f"{name}_adapter"]
            typer.echo(escape(f"{name} is an adapter ({kind}) over {over}{named}"))
        if note := provenance.get(f"{name}_note"):
            typer.echo(escape(f"note on {name}: {note}"))
    typer.echo(escape(f"read {_source(provenance, 'base')} and {_source(provenance, 'tuned')}{_fetched()}"))


def _source(provenance: dict[str, str], role: str) -> str:
    """The file of a checkpoint, or its folder where there are several, and their size."""
    fields = json_output.with_numbers(provenance)
    path, files = fields.get(role, role), fields.get(f"{role}_files", "")
    count, size = fields.get(f"{role}_file_count"), fields.get(f"{role}_bytes")
    if count == 1 and not path.endswith(files):
        path = f"{path.rstrip('/')}/{files}"
    facts = [f"{count} files"] if isinstance(count, int) and count > 1 else []
    if isinstance(size, int):
        facts.append(decimal(size))
    return f"{path} ({', '.join(facts)})" if facts else path


def _fetched() -> str:
    """What this process has fetched, if anything."""
    fetched = store.TOTAL
    return f"; fetched {decimal(fetched.bytes)} by {fetched.requests:,} requests" if fetched.requests else ""


def print_lines(lines: Iterable[RenderableType]) -> None:
    """Prints tables and texts."""
    console = standard_output()
    for line in lines:
        console.print(line)


def standard_output() -> Console:
    """Standard output, as rich prints on it."""
    return Console(highlight=False)
