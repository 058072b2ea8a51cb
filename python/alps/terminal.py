"""What the command draws: tables, maps of layers x heads, progress."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alps.geometry import Geometry, LayerSizes, ranges
from alps.heads import HeadSet, Report
from alps.inspection import Family, Inspection
from alps.scores import HeadScores

COMPANIONS = ("relative_delta", "wasserstein_z")
"""Statistics that say how large a change is and how much structure it has, whatever ranks the heads."""


@dataclass(frozen=True)
class _Palette:
    shades: str
    selected: str
    unknown: str = "?"


_BLOCKS = _Palette(shades="·░▒▓", selected="█")
_ASCII = _Palette(shades=".:-=", selected="#")


_SELECTED_STYLE = "bold green"


def _palette(console: Console) -> _Palette:
    return _ASCII if console.options.ascii_only else _BLOCKS


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


def top_table(
    console: Console, scores: HeadScores, statistic: str, heads: HeadSet | None, count: int = 10
) -> Table:
    """The best heads by `statistic`; those in `heads` are marked as in the map."""
    selected = _palette(console).selected
    names = [statistic, *(name for name in COMPANIONS if name in scores and name != statistic)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("rank", "layer", "head", "K/V group", *(name.replace("_", "\n") for name in names)):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    if heads is not None:
        table.add_column(style=_SELECTED_STYLE)
    for rank, (layer, head, _) in enumerate(scores.top(count, statistic), start=1):
        row = scores.geometry.row_of(layer)
        group = scores.geometry.group_of(head, layer)
        numbers = (f"{scores[name][row, head]:.4g}" for name in names)
        mark = () if heads is None else (selected if (layer, head) in heads else "",)
        table.add_row(str(rank), str(layer), str(head), str(group), *numbers, *mark)
    return table


def head_map(
    console: Console, geometry: Geometry, scores: NDArray[np.float64], heads: HeadSet | None
) -> Text:
    """Layers x heads, shaded by score, the heads of a set filled; as wide as the console at most.

    Cells are two characters wide where that fits. Where not even one character for each head fits,
    a cell stands for several heads, and shows the highest score and whether any is selected.
    """
    palette = _palette(console)
    margin = max(len("layer"), *(len(str(layer)) for layer in geometry.layers), 0) + 1
    merged, width = _cell(geometry.query_heads, console.width - margin)
    columns = range(0, geometry.query_heads, merged)

    text = Text(no_wrap=True, overflow="ignore")
    text.append("layer".rjust(margin - 1) + " " + _ruler(columns, width).rstrip() + "\n", style="dim")
    levels = _levels(scores, len(palette.shades))
    sizes = geometry.sizes
    for row, layer in enumerate(geometry.layers):
        text.append(f"{layer:>{margin - 1}} ", style="dim")
        for column in columns:
            cell = slice(column, column + merged)
            if heads is not None and heads.mask[row, cell].any():
                text.append(palette.selected * width, style=_SELECTED_STYLE)
            else:
                level = levels[row, cell].max()
                shade = palette.shades[level] if level >= 0 else palette.unknown
                text.append((shade if column < sizes[row].query_heads else " ") * width)
        text.append("\n")
    unknown = any((levels[row, : of_row.query_heads] < 0).any() for row, of_row in enumerate(sizes))
    text.append_text(_legend(palette, scores[levels >= 0], unknown, heads, merged))
    return text


def set_map(console: Console, heads: HeadSet) -> Text:
    """Layers x heads, the heads of the set filled."""
    return head_map(console, heads.geometry, np.zeros(heads.geometry.shape), heads)


def summary(report: Report) -> str:
    """What a head set amounts to, in one line."""
    return (
        f"{report.heads} of {report.total_heads} heads, "
        f"{report.key_value_groups} of {report.total_key_value_groups} key/value groups, "
        f"{100 * report.share:.1f} % of Q/K/V parameters"
    )


def _cell(heads: int, width: int) -> tuple[int, int]:
    """How many heads share a cell, and how many characters wide it is."""
    if 2 * heads <= width:
        return 1, 2
    fewest = -(-heads // max(width, 1))
    # Cells of equal size where a divisor is near, so that no cell at the end is smaller.
    even = next((merged for merged in range(fewest, 2 * fewest) if heads % merged == 0), fewest)
    return even, 1


def _ruler(columns: range, width: int) -> str:
    """The number of the first head above every eighth character."""
    cells = 8 // width
    return "".join(str(head).ljust(8) for head in columns[::cells])[: len(columns) * width]


def _levels(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Scores on a linear scale of `count` levels from the lowest to the highest; -1 for no number."""
    finite = np.isfinite(scores)
    levels = np.full(scores.shape, -1, dtype=np.int64)
    if finite.any():
        low, high = scores[finite].min(), scores[finite].max()
        share = (scores[finite] - low) / (high - low) if high > low else np.zeros(finite.sum())
        levels[finite] = np.minimum((share * count).astype(np.int64), count - 1)
    return levels


def _legend(
    palette: _Palette,
    finite: NDArray[np.float64],
    unknown: bool,
    heads: HeadSet | None,
    merged: int,
) -> Text:
    parts = []
    if finite.size and finite.min() < finite.max():
        parts.append(f"{palette.shades} score from {finite.min():.3g} to {finite.max():.3g}")
    if unknown:
        parts.append(f"{palette.unknown} not a number")
    if heads is not None:
        parts.append(f"{palette.selected} selected")
    if merged > 1:
        parts.append(f"a cell is {merged} heads")
    return Text("   ".join(parts), style="dim")


def inspection(console: Console, found: Inspection) -> Iterator[RenderableType]:
    """What a scan would read, layer by layer, and what it leaves out."""
    geometry = found.geometry
    yield Text(str(geometry))
    formats = ", ".join(sorted({module.dtype for module in found.modules}))
    yield Text(
        f"component {geometry.component}, layout {geometry.family}, {formats}, {len(found.modules)} tensors, "
        f"{found.bytes:,} bytes to read"
    )
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


def layouts(families: Iterable[Family]) -> Iterator[RenderableType]:
    """The families of storage with their model types."""
    for family in families:
        yield Text.assemble((family.name, "bold"), f": {family.description}")
        for component, types in family.model_types.items():
            yield Padding(Text(f"{component}: {', '.join(types)}"), (0, 0, 0, 4))
