"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import typer

from alps.pair import Component

Numbers = TypeVar("Numbers", float | None, list[float] | None)


def refuse_nan(value: Numbers) -> Numbers:
    """Refuses not-a-number, which passes every comparison with a bound."""
    if value is not None and np.isnan(value).any():
        raise typer.BadParameter("nan is not a number.")
    return value


Ratio = typer.Option(min=0, max=1, callback=refuse_nan, help="Share of the heads to select.")
Statistic = typer.Option(metavar="NAME", help="What ranks the heads.")
Top = Annotated[
    int,
    typer.Option("--top", "-n", min=0, metavar="N", help="Rows of the table of the best heads; 0 for none."),
]
TOP = 10
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress, and print warnings and errors alone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
ComponentOption = Annotated[
    Component | None,
    typer.Option(
        help="Whose heads; when not given, the first that the model has of decoder, encoder, vision, audio, cross."
    ),
]
ScoresFile = Annotated[
    Path | None, typer.Option("--scores", "-o", metavar="FILE", help="Write the scores here (.safetensors).")
]
HeadsFile = Annotated[
    Path | None, typer.Option("--heads", metavar="FILE", help="Write the selected heads here (.json).")
]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture here: .png, .svg or .pdf.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a report with pictures here (.html).")
]
Length = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a window of the text; 256 when not given, or what the model takes."),
]
Windows = Annotated[int, typer.Option(min=1, help="Windows of the text, at most.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda; a GPU if there is one.")]
Memory = Annotated[
    int | None,
    typer.Option(min=1, metavar="MIB", help="MiB of remote files to hold at a time; 512 when not given."),
]
LocalFilesOnly = Annotated[
    bool, typer.Option("--local-files-only", help="Ask nothing of the network; take what is on this machine.")
]
MIB = 1 << 20


def part_of(value: str | None) -> tuple[int, int] | None:
    """The numbers in `3/16`: which part, and of how many."""
    if value is None:
        return None
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise typer.BadParameter(f"expected I/N with I from 1 to N, such as 3/16, found {value!r}.")
    return int(first), int(second)
