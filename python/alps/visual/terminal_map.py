"""Draws maps of layers x heads in a terminal: in colour, or in characters where there is none."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.visual.colours import TERMINAL_MARK, TERMINAL_SCORES, TERMINAL_SELECTED
from alps.visual.head_grid import HeadGrid

_BLOCKS, _ASCII = "·░▒▓█", ".:-=#"
"""Characters of the shades, from low to high; the last one marks the heads of a set."""


def in_colour(console: Console) -> bool:
    """Whether the console shows enough colours for shades."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def mark(console: Console) -> str:
    """The character that marks a head of a set, in tables and in maps without colours."""
    return _characters(console)[-1]


def mark_style(console: Console) -> str:
    """The style of the mark."""
    return TERMINAL_SELECTED if in_colour(console) else TERMINAL_MARK


def head_map(
    console: Console, geometry: Geometry, scores: NDArray[np.float64], heads: HeadSet | None
) -> Text:
    """Layers x heads, shaded by score, the heads of a set in a colour of their own; no wider than the console.

    A cell is blank where there is no number. It is two characters wide where that fits, else one, else, in
    colour, half a character. Where not even that fits, a cell stands for several heads, and shows the highest
    score and whether any is selected.
    """
    # A terminal has few shades: they begin at the lowest score.
    grid = HeadGrid.of_scores(geometry, scores, heads, from_zero=False)
    differ = np.fmax.reduce(grid.shades, axis=None, initial=0.0) > 0
    low, high = grid.limits
    return _map(console, grid, f"score from {low:.3g} to {high:.3g}" if differ else "")


def set_map(console: Console, heads: HeadSet) -> Text:
    """Layers x heads, the heads of the set filled."""
    return _map(console, HeadGrid.of_set(heads), "")


def count_map(console: Console, geometry: Geometry, counts: NDArray[np.int64], tasks: int) -> Text:
    """Layers x heads, shaded by how many tasks select the head; filled where all do."""
    grid = HeadGrid.of_counts(geometry, counts, tasks)
    return _map(console, grid, f"selected by 0 to {tasks - 1} of {tasks} tasks", "all")


def _map(console: Console, grid: HeadGrid, scale: str, filled: str = "selected") -> Text:
    colour, characters = in_colour(console), _characters(console)
    layers = grid.geometry.layers
    margin = max(len("layer"), *(len(str(layer)) for layer in layers), 0) + 1
    halves = 2 if colour and not console.options.ascii_only else 1
    _, heads = grid.geometry.shape
    heads_per_cell, width = _cell(heads, console.width - margin, halves)
    grid = grid.merged(heads_per_cell)
    shades = grid.shades
    marked = np.zeros(shades.shape, dtype=np.bool_) if grid.selected is None else grid.selected

    text = Text(no_wrap=True, overflow="ignore")
    ruler = _ruler(range(0, heads, heads_per_cell), width).rstrip()
    text.append("layer".rjust(margin - 1) + " " + ruler + "\n", style="dim")
    for row, layer in enumerate(layers):
        text.append(f"{layer:>{margin - 1}} ", style="dim")
        if colour:
            cells = zip(shades[row], marked[row], strict=True)
            text.append_text(_coloured([_colour(*cell) for cell in cells], width))
        else:
            _append_characters(text, shades[row], marked[row], characters, int(width))
        text.append("\n")
    if colour:
        text.append("\n")  # keeps the legend apart from the last row of colours
    text.append_text(_legend(console, grid, scale, filled))
    return text


def _characters(console: Console) -> str:
    return _ASCII if console.options.ascii_only else _BLOCKS


def _append_characters(
    text: Text, shades: NDArray[np.float64], marked: NDArray[np.bool_], characters: str, width: int
) -> None:
    shaded, selected = characters[:-1], characters[-1]
    for shade, is_marked in zip(shades, marked, strict=True):
        if is_marked:
            text.append(selected * width, style=TERMINAL_MARK)
        elif np.isnan(shade):
            text.append(" " * width)
        else:
            text.append(shaded[min(int(shade * len(shaded)), len(shaded) - 1)] * width)


def _coloured(colours: Sequence[str | None], width: float) -> Text:
    """Cells of these colours; a cell of half a character is the left or the right half of a block."""
    text = Text()
    if width >= 1:
        for colour in colours:
            text.append(" " * int(width), style=Style(bgcolor=colour))
        return text
    for left, right in zip(colours[::2], [*colours[1::2], None], strict=False):
        if left is None and right is None:
            text.append(" ")
        elif left is None:
            text.append("▐", style=Style(color=right))
        else:
            text.append("▌", style=Style(color=left, bgcolor=right))
    return text


def _colour(shade: float, is_marked: bool) -> str | None:
    """The colour of a cell; None where there is no number."""
    if is_marked:
        return TERMINAL_SELECTED
    if np.isnan(shade):
        return None
    places = np.linspace(0, 1, len(TERMINAL_SCORES))
    red, green, blue = (np.interp(shade, places, channel) for channel in zip(*TERMINAL_SCORES, strict=True))
    return Color.from_rgb(red, green, blue).name


def _cell(heads: int, width: int, halves: int) -> tuple[int, float]:
    """How many heads share a cell, and how many characters wide it is."""
    if 2 * heads <= width:
        return 1, 2
    if heads <= width:
        return 1, 1
    room = max(width, 1) * halves
    fewest = -(-heads // room)
    # Cells of equal size where a divisor is near, so that no cell at the end is smaller.
    even = next((merged for merged in range(fewest, 2 * fewest) if heads % merged == 0), fewest)
    return even, 1 / halves


def _ruler(columns: range, width: float) -> str:
    """The number of the first head above every eighth character."""
    cells = int(8 / width)
    return "".join(str(head).ljust(8) for head in columns[::cells])[: int(np.ceil(len(columns) * width))]


def _legend(console: Console, grid: HeadGrid, scale: str, filled: str) -> Text:
    colour, characters = in_colour(console), _characters(console)
    entries = []
    if scale:
        ramp = _coloured([_colour(shade, False) for shade in np.linspace(0, 1, 8)], 1)
        entries.append((ramp if colour else Text(characters[:-1])).append(f" {scale}", style="dim"))
    if np.isnan(grid.values).any():
        entries.append(Text("blank: no number", style="dim"))
    if grid.selected is not None:
        sample = _coloured([TERMINAL_SELECTED], 2) if colour else Text(characters[-1])
        entries.append(sample.append(f" {filled}", style="dim"))
    if grid.heads_per_cell > 1:
        entries.append(Text(f"a cell is {grid.heads_per_cell} heads", style="dim"))
    lines = [Text()]
    for entry in entries:
        if lines[-1] and lines[-1].cell_len + 3 + entry.cell_len > console.width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(entry)
    return Text("\n").join(lines)
