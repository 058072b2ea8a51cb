"""Options that several commands have."""

import math
from pathlib import Path
from typing import Annotated

import typer

from alps.scan import Component


def refuse_nan(value: float | None) -> float | None:
    """Refuses not-a-number."""
    if value is not None and math.isnan(value):  # passes every comparison with a bound
        raise typer.BadParameter("nan is not a number.")
    return value


Ratio = typer.Option(min=0, max=1, callback=refuse_nan, help="Share of the heads to select.")
Statistic = typer.Option(metavar="NAME", help="What ranks the heads.")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
ComponentOption = Annotated[
    Component | None,
    typer.Option(
        help="Whose heads; when not given, the first that the model has of decoder, encoder, vision, audio, cross."
    ),
]
HeadsFile = typer.Option(metavar="FILE", help="Write the selected heads here (JSON).")
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
