"""The commands that say what a checkpoint is."""

import fnmatch
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from alps.cli import interrupts, options
from alps.cli.program import app, examples
from alps.errors import ArgumentError

if TYPE_CHECKING:
    from alps.inspection import Layout


@app.command(
    epilog=examples(
        "alps inspect meta-llama/Llama-3.1-8B",
        "alps inspect ./model --component vision",
        "alps inspect s3://bucket/model --json",
    )
)
def inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A folder, a file, a name on the hub, or an address."),
    ],
    component: options.ComponentOption = None,
    local_files_only: options.LocalFilesOnly = False,
    as_json: options.Json = False,
) -> None:
    """Say what a scan would read of a checkpoint, and what it would leave out and why."""
    with interrupts.ending_at_once():
        from alps.cli import json_output, printing, tables
        from alps.inspection import inspect as inspect_checkpoint

    found = inspect_checkpoint(path, component=component, local_files_only=local_files_only)
    if as_json:
        printing.print_json(json_output.document(found))
    else:
        printing.print_lines(tables.inspection_tables(found))


@app.command(epilog=examples("alps layouts llama", "alps layouts 'qwen*_vl*'", "alps layouts --json"))
def layouts(
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="[PATTERN]",
            show_default=False,
            help="List the model types with this text in their names, or those that match it, where it has * or ?.",
        ),
    ] = "*",
    as_json: options.Json = False,
) -> None:
    """List the model types that are known, one a line, each with its component and its layout."""
    with interrupts.ending_at_once():
        from alps import inspection
        from alps.cli import printing, tables

    every = inspection.layouts()
    found = _matching(every, pattern)
    if as_json:
        printing.print_json({"layouts": [asdict(layout) for layout in found]})
        return
    for line in tables.layout_lines(found):
        typer.echo(line)
    typer.echo(f"{len(_types(found))} of {len(_types(every))} model types")


def _matching(layouts: "Iterable[Layout]", pattern: str) -> "list[Layout]":
    """The layouts of the model types that match, with these types alone.

    Raises:
        ArgumentError: There are none.
    """
    wanted = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    found = []
    for layout in layouts:
        chosen = {
            component: matching
            for component, types in layout.model_types.items()
            if (matching := tuple(fnmatch.filter(types, wanted)))
        }
        if chosen:
            found.append(replace(layout, model_types=chosen))
    if not found:
        raise ArgumentError(f"no model type matches {pattern!r}; `alps layouts` lists all that are known")
    return found


def _types(layouts: "Iterable[Layout]") -> set[str]:
    return {name for layout in layouts for types in layout.model_types.values() for name in types}
