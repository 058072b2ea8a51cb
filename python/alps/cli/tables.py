"""The tables and notes that the command prints."""

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from alps.compare import Comparison
from alps.geometry import ranges
from alps.heads import HeadSet
from alps.inspection import Inspection, Layout
from alps.scores import HeadScores
from alps.visual.terminal_map import mark, mark_style
from alps.visual.text import layer_rows, pair_cells

_COMPANIONS = ("relative_delta", "wasserstein", "wasserstein_z")
"""Statistics that are shown whatever ranks the heads: the default, the paper's, and how much order the changes have."""


def quantisation_notes(scores: HeadScores) -> list[str]:
    """A warning for each checkpoint that was quantised."""
    found = ((name, scores.provenance.get(f"{name}_quantisation")) for name in ("base", "tuned"))
    return [
        f"The {name} weights are quantised ({how}): what that rounded is part of every score."
        for name, how in found
        if how is not None
    ]


def top_table(
    console: Console, scores: HeadScores, statistic: str, heads: HeadSet | None, count: int
) -> Table:
    """The `count` best heads by `statistic`; those in `heads` are marked as in the map."""
    names = [statistic, *(name for name in _COMPANIONS if name in scores and name != statistic)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("rank", "layer", "head", "K/V group", *(name.replace("_", "\n") for name in names)):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    if heads is not None:
        table.add_column(style=mark_style(console))
    geometry = scores.geometry
    best = [(layer, head) for layer, head, _ in scores.top(count, statistic)]
    places = [(geometry.row_of(layer), head) for layer, head in best]
    numbers = [aligned([scores[name][place] for place in places]) for name in names]
    for rank, ((layer, head), *cells) in enumerate(zip(best, *numbers, strict=True), start=1):
        group = geometry.group_of(head, layer)
        marks = () if heads is None else (mark(console) if (layer, head) in heads else "",)
        table.add_row(str(rank), str(layer), str(head), str(group), *cells, *marks)
    return table


def aligned(numbers: Sequence[float]) -> list[str]:
    """The numbers of a column in one notation, with as many digits after the point in each.

    The largest has four digits that count; the smallest has two of them, or all are in scientific notation.
    """
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    largest, smallest = (math.floor(math.log10(of(sizes, default=1.0))) for of in (max, min))
    decimals = max(3 - largest, 1 - smallest, 0)
    form = ".3e" if largest > 5 or decimals > 5 else f".{decimals}f"
    return [f"{number:{form}}" for number in numbers]


def head_list(heads: HeadSet) -> RenderableType:
    """The heads layer by layer; layers without any are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("heads", overflow="fold")
    for layer, row in zip(heads.geometry.layers, heads.mask, strict=True):
        if row.any():
            table.add_row(f"layer {layer}:", ranges(row.nonzero()[0].tolist()))
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Every two tasks of a comparison: the heads that they share, and how alike their ranks are."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("first", "second"):
        table.add_column(column, vertical="bottom", overflow="fold")
    for column in ("shared\nheads", "shared\nby chance", "Jaccard\noverlap", "rank\ncorrelation"):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    for pair in comparison.pairs:
        table.add_row(*map(Text, pair_cells(pair)))
    return table


def inspection_tables(found: Inspection) -> Iterator[RenderableType]:
    """What a scan would read, layer by layer, and what it leaves out."""
    geometry = found.geometry
    yield Text(str(geometry))
    formats = ", ".join(sorted({module.dtype for module in found.modules}))
    yield Text(
        f"component {geometry.component}, layout {geometry.layout}, {formats}, {len(found.modules)} tensors, "
        f"{found.bytes:,} of {found.weight_bytes:,} bytes to read from {found.files}"
        + (f" ({len(found.weight_files)} files)" if len(found.weight_files) > 1 else "")
    )
    if found.quantisation is not None:
        yield Text(f"quantised: {found.quantisation}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layers", "heads", "groups", "query", "key", "value"):
        table.add_column(column, justify="right")
    for row in layer_rows(geometry):
        table.add_row(*row)
    yield table
    for what, why in found.left_out:
        yield Text(f"left out: {what}: {why}")


def layout_lines(layouts: Iterable[Layout]) -> list[str]:
    """A line for each model type: the type, the component and the name of the layout, in columns."""
    rows = sorted(
        (model_type, component, layout.name)
        for layout in layouts
        for component, types in layout.model_types.items()
        for model_type in types
    )
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
