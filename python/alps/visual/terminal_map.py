"""Draws maps of layers x heads in a terminal: in colour, or in characters where there is none."""

import string
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.style import Style
from rich.text import Text

from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.visual import terminal_colours as colours
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
    return _colour(console, 1.0, True) or "" if in_colour(console) else colours.MARK


def head_map(
    console: Console, geometry: Geometry, scores: NDArray[np.float64], heads: HeadSet | None
) -> Text:
    """Layers x heads, shaded by score, the heads of a set in shades of another hue; no wider than the console.

    Without colours, a character takes the place of the score of a selected head. A cell is blank where there is no number. It is two characters wide where that fits, else one, else, in
    colour, half a character. Where not even that fits, a cell stands for several heads, and shows the highest
    score and whether any is selected.
    """
    # A terminal has few shades: they begin at the lowest score.
    grid = HeadGrid.of_scores(geometry, scores, heads, from_zero=False)
    there = np.unique(grid.values[np.isfinite(grid.values)])
    low, high = grid.limits
    if there.size > 2:
        return _map(console, grid, f"score from {low:.3g} to {high:.3g}")
    return _map(console, grid, {float(value > low): f"score {value:.3g}" for value in there})


def set_map(console: Console, heads: HeadSet) -> Text:
    """Layers x heads, the heads of the set filled."""
    return _map(console, HeadGrid.of_set(heads), {0.0: "not selected"})


def count_map(console: Console, geometry: Geometry, counts: NDArray[np.int64], tasks: int) -> Text:
    """Layers x heads, shaded by how many tasks select the head; filled where all do."""
    grid = HeadGrid.of_counts(geometry, counts, tasks)
    return _map(console, grid, f"selected by 0 to {tasks - 1} of {tasks} tasks", "all")


def task_map(console: Console, tasks: Mapping[str, HeadSet]) -> Text:
    """Layers x heads, each with the letter of the task that selects it, or with how many tasks do.

    Where a cell stands for several heads, it shows whose any of them is. More tasks than there are colours show as a
    `count_map`.
    """
    geometry = next(iter(tasks.values())).geometry
    masks = np.stack([heads.mask for heads in tasks.values()])
    if len(tasks) > len(colours.TASKS):
        return count_map(console, geometry, masks.sum(axis=0), len(tasks))
    heads_per_cell, width = _cell(geometry.query_heads, console.width - _margin(geometry), 1)
    starts = np.arange(0, geometry.query_heads, heads_per_cell)
    masks = np.logical_or.reduceat(masks, starts, axis=2)
    counts, first = masks.sum(axis=0), masks.argmax(axis=0)
    there = np.logical_or.reduceat(geometry.is_head, starts, axis=1)
    signs = np.where(counts == 1, first, np.where(counts == 0, -1, len(tasks) + counts))

    def cell(sign: int, width: int) -> Text:
        return _task_cell(console, sign, len(tasks), width)

    text = _headed(console, geometry, heads_per_cell, width)
    for row, layer in enumerate(geometry.layers):
        text.append(f"{layer:>{_margin(geometry) - 1}} ", style="dim")
        for sign, is_there in zip(signs[row].tolist(), there[row].tolist(), strict=True):
            text.append_text(cell(sign, int(width)) if is_there else Text(int(width) * " "))
        text.append("\n")
    entries = [cell(number, 1).append(f" {name}", style="dim") for number, name in enumerate(tasks)]
    found = set(signs[there].tolist())
    for count in range(2, len(tasks)):
        if len(tasks) + count in found:
            entries.append(cell(len(tasks) + count, 1).append(f" {count} of {len(tasks)}", style="dim"))
    everybody = "both" if len(tasks) == 2 else "all"
    entries.append(cell(2 * len(tasks), 1).append(f" {everybody}", style="dim"))
    entries.append(cell(-1, 1).append(" none", style="dim"))
    if heads_per_cell > 1:
        entries.append(Text(f"a cell is {heads_per_cell} heads", style="dim"))
    return text.append_text(_lines(console, entries))


def _task_cell(console: Console, sign: int, tasks: int, width: int) -> Text:
    """A cell for a number of a task, for `tasks` and how many select the head, or for -1."""
    characters = _characters(console)
    if sign < 0:
        colour, character = colours.NONE[colours.background()], characters[0]
    elif sign < tasks:
        colour, character = colours.TASKS[sign], string.ascii_uppercase[sign]
    elif sign < 2 * tasks:
        colour, character = colours.SOME, str(sign - tasks)
    else:
        colour, character = colours.ALL, characters[-1]
    if not in_colour(console):
        return Text(character * width)
    letter = character if 0 <= sign < 2 * tasks else ""
    style = Style(color=f"color({colours.LETTER})", bgcolor=f"color({colour})")
    return Text.assemble((letter.ljust(width), style))


def _map(
    console: Console, grid: HeadGrid, scale: str | Mapping[float, str], filled: str = "selected"
) -> Text:
    """A map and its legend; `scale` says what the shades mean, all together or the few that there are each."""
    colour, characters = in_colour(console), _characters(console)
    geometry = grid.geometry
    halves = 2 if colour and not console.options.ascii_only else 1
    heads_per_cell, width = _cell(geometry.query_heads, console.width - _margin(geometry), halves)
    grid = grid.merged(heads_per_cell)
    shades = grid.shades
    marked = np.zeros(shades.shape, dtype=np.bool_) if grid.selected is None else grid.selected

    text = _headed(console, geometry, heads_per_cell, width)
    for row, layer in enumerate(geometry.layers):
        text.append(f"{layer:>{_margin(geometry) - 1}} ", style="dim")
        if colour:
            cells = zip(shades[row].tolist(), marked[row].tolist(), strict=True)
            text.append_text(_coloured([_colour(console, *cell) for cell in cells], width))
        else:
            _append_characters(text, shades[row], marked[row], characters, int(width))
        text.append("\n")
    return text.append_text(_legend(console, grid, scale, filled))


def _margin(geometry: Geometry) -> int:
    """The width of the numbers of the layers and of a space."""
    return max(len("layer"), *(len(str(layer)) for layer in geometry.layers), 0) + 1


def _headed(console: Console, geometry: Geometry, heads_per_cell: int, width: float) -> Text:
    """A map of which there is only the line with the numbers of the heads."""
    text = Text(no_wrap=True, overflow="ignore")
    ruler = _ruler(range(0, geometry.query_heads, heads_per_cell), width).rstrip()
    text.append("layer".rjust(_margin(geometry) - 1) + " " + ruler + "\n", style="dim")
    return text


def _characters(console: Console) -> str:
    return _ASCII if console.options.ascii_only else _BLOCKS


def _append_characters(
    text: Text, shades: NDArray[np.float64], marked: NDArray[np.bool_], characters: str, width: int
) -> None:
    for shade, is_marked in zip(shades.tolist(), marked.tolist(), strict=True):
        style = colours.MARK if is_marked else ""
        text.append(_character(shade, is_marked, characters) * width, style=style)


def _character(shade: float, is_marked: bool, characters: str) -> str:
    shaded, selected = characters[:-1], characters[-1]
    if is_marked:
        return selected
    return " " if np.isnan(shade) else shaded[min(int(shade * len(shaded)), len(shaded) - 1)]


def _coloured(cells: Sequence[str | None], width: float) -> Text:
    """Cells of these colours; a cell of half a character is the left or the right half of a block."""
    text = Text()
    if width >= 1:
        for colour in cells:
            text.append(" " * int(width), style=_style(None, colour))
        return text
    for left, right in zip(cells[::2], [*cells[1::2], None], strict=False):
        if left is None and right is None:
            text.append(" ")
        elif left is None:
            text.append("▐", style=_style(right, None))
        else:
            text.append("▌", style=_style(left, right))
    return text


@lru_cache(1024)
def _style(colour: str | None, background: str | None) -> Style:
    return Style(color=colour, bgcolor=background)


def _colour(console: Console, shade: float, is_marked: bool) -> str | None:
    """The colour of a cell; None where there is no number, unless it is marked."""
    if np.isnan(shade):
        if not is_marked:
            return None
        shade = 0.0
    ramps = colours.SELECTED if is_marked else colours.SCORES
    return ramps[colours.background()].colour(shade, console)


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


def _legend(console: Console, grid: HeadGrid, scale: str | Mapping[float, str], filled: str) -> Text:
    characters = _characters(console)

    def sample(shades: Sequence[float], is_marked: bool) -> Text:
        if in_colour(console):
            return _coloured([_colour(console, shade, is_marked) for shade in shades], 1)
        return Text("".join(dict.fromkeys(_character(shade, is_marked, characters) for shade in shades)))

    every = np.linspace(0, 1, 8).tolist()
    entries = []
    if isinstance(scale, str):
        entries.append(sample(every, False).append(f" {scale}", style="dim"))
    else:
        entries += [
            sample([shade] * 2, False).append(f" {what}", style="dim") for shade, what in scale.items()
        ]
    if np.isnan(grid.values).any():
        entries.append(Text("blank: no number", style="dim"))
    if grid.selected is not None:
        shades = np.unique(grid.shades[grid.selected & np.isfinite(grid.shades)]).tolist()
        entries.append(
            sample(every if len(shades) > 2 else shades or [1.0], True).append(f" {filled}", style="dim")
        )
    if grid.heads_per_cell > 1:
        entries.append(Text(f"a cell is {grid.heads_per_cell} heads", style="dim"))
    return _lines(console, entries)


def _lines(console: Console, entries: Sequence[Text]) -> Text:
    """The entries of a legend, as many on a line as fit; apart from the rows of colours above."""
    lines = [Text(), Text()] if in_colour(console) else [Text()]
    for entry in entries:
        if lines[-1] and lines[-1].cell_len + 3 + entry.cell_len > console.width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(entry)
    return Text("\n").join(lines)
