"""Writes docs/command-line.md from the commands themselves.

python tools/command_line_page.py
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from alps.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"

HEAD = """# Command line

`tools/command_line_page.py` writes this page from `alps --help`; do not edit it.

Results go to standard output, as one JSON document with `--json`. Progress, warnings and errors go to standard error.
A file is written whole or not at all.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | refused: one line on standard error says which file or tensor, what was expected and what was found |
| 2 | the command was called in a wrong way |
| 3 | no head has moved, so that none can be selected |
| 130 | interrupted |

`alps --install-completion` makes the shell complete commands, options, statistics and files.
"""


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *(section(command) for command in group.commands.values())])


def section(command: Any) -> str:
    """What a command does, its examples, its arguments and its options."""
    context = command.make_context(command.name, [], resilient_parsing=True)
    usage = " ".join(["alps", command.name, *command.collect_usage_pieces(context)])
    parts = [f"## `alps {command.name}`", command.help.strip(), f"```text\n{usage}\n```"]
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    for panel, parameters in groupby(shown, key=heading):
        parts.append("\n".join([f"| {panel} | |", "|---|---|", *rows(parameters, context)]))
    if command.epilog:
        parts.append(command.epilog.strip())
    return "\n\n".join(parts) + "\n"


def heading(parameter: Any) -> str:
    """The panel of the help that a parameter is in."""
    kind = "argument" if parameter.param_type_name == "argument" else "option"
    return getattr(parameter, "rich_help_panel", None) or kind


def rows(parameters: Any, context: Any) -> Iterator[str]:
    """A row of a table for each parameter."""
    for parameter in parameters:
        name, text = parameter.get_help_record(context)
        yield f"| `{escape(name)}` | {escape(' '.join(text.split()))} |"


def escape(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
