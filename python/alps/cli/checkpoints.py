"""The commands that say what a checkpoint is."""

from dataclasses import asdict
from typing import Annotated

import typer

import alps
from alps.cli import json_output, options, printing, tables
from alps.cli.app import app


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint: folder, file, name on the hub or URL.")],
    component: options.ComponentOption = None,
    local_files_only: options.LocalFilesOnly = False,
    as_json: options.Json = False,
) -> None:
    """Say what a scan would read of a checkpoint, and what it leaves out and why."""
    found = alps.inspect(path, component=component, local_files_only=local_files_only)
    if as_json:
        printing.print_json(json_output.document(found))
    else:
        printing.print_lines(tables.inspection_tables(found))


@app.command()
def layouts(as_json: options.Json = False) -> None:
    """List the layouts that are known, and the model types that have them."""
    layouts = alps.layouts()
    if as_json:
        printing.print_json({"layouts": [asdict(layout) for layout in layouts]})
    else:
        printing.print_lines(tables.layout_list(layouts))
