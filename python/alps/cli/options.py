"""Options that several commands have."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from alps import statistics
from alps.arguments import Component

Numbers = TypeVar("Numbers", float | None, list[float] | None)

READ, WRITE, PRINT = "Read", "Write", "Print"
"""Sections of the help. Options that choose what is computed come before them, without a section."""

TOP = 10
"""Rows of the table of the best heads, unless it is said how many."""
MIB = 1 << 20


def refuse_nan(value: Numbers) -> Numbers:
    """Refuses not-a-number, which passes every comparison with a bound."""
    if value is not None and any(map(math.isnan, value if isinstance(value, list) else [value])):
        raise typer.BadParameter("nan is not a number.")
    return value


def completing(words: Iterable[str]) -> Callable[[str], Iterator[str]]:
    """What completes a word in the shell to one of these."""
    known = tuple(words)

    def complete(incomplete: str) -> Iterator[str]:
        return (word for word in known if word.startswith(incomplete))

    return complete


Ratio = typer.Option(
    min=0, max=1, callback=refuse_nan, metavar="SHARE", help="Select this share of all heads."
)
RankedBy = typer.Option(
    metavar="NAME",
    autocompletion=completing(statistics.STATISTICS),
    help=f"Rank the heads by this statistic: {', '.join(statistics.STATISTICS)}.",
)
SavedStatistic = Annotated[
    str | None,
    typer.Option(
        "--statistic",
        metavar="NAME",
        autocompletion=completing(statistics.STATISTICS),
        help=f"Rank the heads by this statistic of the file: {statistics.DEFAULT} unless it holds only another one; "
        f"a scan writes {', '.join(statistics.STATISTICS)}.",
    ),
]
ComponentOption = Annotated[
    Component | None,
    typer.Option(
        show_default="the first that it has of decoder, encoder, vision, audio, cross",
        help="Take the heads of this part of the model.",
    ),
]

_SCORES = "Write the scores to this file, whose name ends in .safetensors."
_HEADS = "Write the selected heads to this file, whose name ends in .json."
ScoresFile = Annotated[
    Path | None, typer.Option("--scores", "-o", metavar="FILE", rich_help_panel=WRITE, help=_SCORES)
]
HeadsFile = Annotated[
    Path | None, typer.Option("--heads", metavar="FILE", rich_help_panel=WRITE, help=_HEADS)
]
MainHeadsFile = Annotated[
    Path | None, typer.Option("--heads", "-o", metavar="FILE", rich_help_panel=WRITE, help=_HEADS)
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", rich_help_panel=WRITE, help="Draw a picture: a .png, .svg or .pdf file."
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE", rich_help_panel=WRITE, help="Write a report with pictures: an .html file."
    ),
]

LocalFilesOnly = Annotated[
    bool,
    typer.Option(
        "--local-files-only",
        rich_help_panel=READ,
        help="Ask nothing of the network: take what is on this machine.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="MIB",
        rich_help_panel=READ,
        show_default="512",
        help="Hold at most this many MiB of remote files at a time.",
    ),
]
Text = typer.Option("--text", metavar="FILE", rich_help_panel=READ, help="Read a text of the task, in UTF-8.")
Length = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="TOKENS",
        rich_help_panel=READ,
        show_default="256, or less if the model takes less",
        help="Cut the text into windows of this length.",
    ),
]
Windows = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=READ, help="Use at most this many windows.")
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default="cuda if there is a GPU, else cpu", help="Run the model there."
    ),
]

Top = Annotated[
    int | None,
    typer.Option(
        "--top",
        "-n",
        min=0,
        metavar="N",
        rich_help_panel=PRINT,
        show_default=str(TOP),
        help="Print this many of the best heads, 0 for no table.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", rich_help_panel=PRINT, help="Print warnings and errors alone, and show no progress."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=PRINT, help="Print one JSON document and nothing else.")
]


def part_of(value: str | None) -> tuple[int, int] | None:
    """The numbers in `3/16`: which part, and of how many."""
    if value is None:
        return None
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise typer.BadParameter(f"expected I/N with I from 1 to N, such as 3/16, found {value!r}.")
    return int(first), int(second)
