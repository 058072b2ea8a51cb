"""What the command prints: tables, summaries, progress."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alps import terminal_map
from alps.compare import Comparison
from alps.geometry import Geometry, LayerSizes, ranges
from alps.heads import HeadSet, Report
from alps.inspection import Inspection, Layout
from alps.scores import HeadScores

COMPANIONS = ("relative_delta", "wasserstein_z")
"""Statistics that say how large a change is and how much structure it has, whatever ranks the heads."""


@contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[int, int], None] | None]:
    """A bar for long reading, as a callback of (done, total) bytes; None when nobody would see it."""
    if not stream.isatty():
        yield None
        return
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def quantisation_notes(scores: HeadScores) -> list[str]:
    """What a reader has to know of scores of quantised weights; nothing if no side was quantised."""
    found = ((side, scores.provenance.get(f"{side}_quantisation")) for side in ("base", "tuned"))
    return [
        f"The {side} weights are quantised ({how}): what that rounded is part of every score."
        for side, how in found
        if how is not None
    ]


def top_table(
    console: Console, scores: HeadScores, statistic: str, heads: HeadSet | None, count: int = 10
) -> Table:
    """The best heads by `statistic`; those in `heads` are marked as in the map."""
    selected = terminal_map.mark(console)
    names = [statistic, *(name for name in COMPANIONS if name in scores and name != statistic)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("rank", "layer", "head", "K/V group", *(name.replace("_", "\n") for name in names)):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    if heads is not None:
        table.add_column(style=terminal_map.mark_style(console))
    for rank, (layer, head, _) in enumerate(scores.top(count, statistic), start=1):
        row = scores.geometry.row_of(layer)
        group = scores.geometry.group_of(head, layer)
        numbers = (f"{scores[name][row, head]:.4g}" for name in names)
        mark = () if heads is None else (selected if (layer, head) in heads else "",)
        table.add_row(str(rank), str(layer), str(head), str(group), *numbers, *mark)
    return table


def summary(report: Report) -> str:
    """What a head set amounts to, in one line."""
    return (
        f"{report.heads} of {report.total_heads} heads, "
        f"{report.key_value_groups} of {report.total_key_value_groups} key/value groups, "
        f"{100 * report.share:.1f} % of Q/K/V parameters"
    )


def pairs_table(comparison: Comparison) -> Table:
    """Every two tasks of a comparison: the heads that they share, and how alike their ranks are."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("first", "second"):
        table.add_column(column, vertical="bottom", overflow="fold")
    for column in ("shared\nheads", "shared\nby chance", "Jaccard\noverlap", "rank\ncorrelation"):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    for pair in comparison.pairs:
        correlation = "" if math.isnan(pair.rank_correlation) else f"{pair.rank_correlation:.3f}"
        numbers = f"{pair.shared:,}", f"{pair.by_chance:,.1f}", f"{pair.jaccard:.3f}", correlation
        table.add_row(Text(pair.first), Text(pair.second), *numbers)
    return table


def inspection(console: Console, found: Inspection) -> Iterator[RenderableType]:
    """What a scan would read, layer by layer, and what it leaves out."""
    geometry = found.geometry
    yield Text(str(geometry))
    formats = ", ".join(sorted({module.dtype for module in found.modules}))
    yield Text(
        f"component {geometry.component}, layout {geometry.layout}, {formats}, {len(found.modules)} tensors, "
        f"{found.bytes:,} bytes to read from {found.files}"
    )
    if found.quantisation is not None:
        yield Text(f"quantised: {found.quantisation}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layers", "heads", "groups", "query", "key", "value"):
        table.add_column(column, justify="right")
    for sizes, layers in _runs(geometry):
        matrices = (
            f"{rows} x {width}" if rows else "-"
            for rows, width in (
                (sizes.query_size, sizes.query_width),
                (sizes.key_size, sizes.key_width),
                (sizes.value_size, sizes.value_width),
            )
        )
        table.add_row(layers, str(sizes.query_heads), str(sizes.key_value_heads), *matrices)
    yield table
    for what, why in found.left_out:
        yield Text(f"left out: {what}: {why}")


def _runs(geometry: Geometry) -> Iterator[tuple[LayerSizes, str]]:
    """The sizes that there are, each with its layers as a person writes them."""
    layers: dict[LayerSizes, list[int]] = {}
    for layer, sizes in zip(geometry.layers, geometry.sizes, strict=True):
        layers.setdefault(sizes, []).append(layer)
    for sizes, numbers in layers.items():
        yield sizes, ranges(numbers)


def layouts(layouts: Iterable[Layout]) -> Iterator[RenderableType]:
    """The layouts of storage with their model types."""
    for layout in layouts:
        yield Text.assemble((layout.name, "bold"), f": {layout.description}")
        for component, types in layout.model_types.items():
            yield Padding(Text(f"{component}: {', '.join(types)}"), (0, 0, 0, 4))
