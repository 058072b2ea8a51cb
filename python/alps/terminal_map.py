"""Maps of layers x heads for a terminal: in colour, or in characters where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from alps.geometry import Geometry
from alps.heads import HeadSet

_RAMP = ((16, 30, 60), (40, 98, 164), (116, 168, 216), (220, 234, 247))
"""Red, green, blue: one hue from dark to light, so that it is in order for every kind of sight."""

_ORANGE = "#ff9020"
"""For the heads of a set: the hue that the common kinds of colour blindness keep farthest from blue."""


@dataclass(frozen=True)
class _Palette:
    shades: str
    selected: str


_BLOCKS = _Palette(shades="·░▒▓", selected="█")
_ASCII = _Palette(shades=".:-=", selected="#")

Cells = list[list[str | None]]
"""For every layer, the colour of every cell; None where there is no number."""


def in_colour(console: Console) -> bool:
    """Whether the console shows enough colours for shades."""
    return console.color_system in ("256", "truecolor") and not console.no_color


def mark(console: Console) -> str:
    """What stands beside a head of a set, and for it in a map of characters."""
    return _palette(console).selected


def mark_style(console: Console) -> str:
    """How the mark looks."""
    return _ORANGE if in_colour(console) else "bold green"


def head_map(
    console: Console, geometry: Geometry, scores: NDArray[np.float64], heads: HeadSet | None
) -> Text:
    """Layers x heads, shaded by score, the heads of a set in a colour of their own; no wider than the console.

    A cell is blank where there is no number. It is two characters wide where that fits, else one, else, in
    colour, half a character. Where not even that fits, a cell stands for several heads, and shows the highest
    score and whether any is selected.
    """
    return _map(console, geometry, _shares(scores), heads, _range(scores))


def set_map(console: Console, heads: HeadSet) -> Text:
    """Layers x heads, the heads of the set filled."""
    return _map(console, heads.geometry, np.zeros(heads.geometry.shape), heads, "")


def count_map(console: Console, geometry: Geometry, counts: NDArray[np.int64], highest: int) -> Text:
    """Layers x heads, shaded by how many of `highest` tasks select the head; filled where all do."""
    everywhere = HeadSet(counts == highest, geometry)
    text = "selected by 0" if highest == 1 else f"selected by 0 to {highest - 1} of {highest} tasks"
    return _map(console, geometry, counts / max(highest - 1, 1), everywhere, text, "all")


def _map(
    console: Console,
    geometry: Geometry,
    shares: NDArray[np.float64],
    heads: HeadSet | None,
    scale: str,
    filled: str = "selected",
) -> Text:
    colour, palette = in_colour(console), _palette(console)
    margin = max(len("layer"), *(len(str(layer)) for layer in geometry.layers), 0) + 1
    halves = 2 if colour and not console.options.ascii_only else 1
    _, count = geometry.shape
    merged, width = _cell(count, console.width - margin, halves)
    starts = np.arange(0, count, merged)
    shares = np.fmax.reduceat(shares, starts, axis=1)
    chosen = None if heads is None else np.logical_or.reduceat(heads.mask, starts, axis=1)
    columns = range(0, count, merged)

    text = Text(no_wrap=True, overflow="ignore")
    text.append("layer".rjust(margin - 1) + " " + _ruler(columns, width).rstrip() + "\n", style="dim")
    for row, layer in enumerate(geometry.layers):
        text.append(f"{layer:>{margin - 1}} ", style="dim")
        selected = np.zeros(len(columns), dtype=np.bool_) if chosen is None else chosen[row]
        if not colour:
            _append_characters(text, shares[row], selected, palette, int(width))
        else:
            _append_colours(text, [_shade(*cell) for cell in zip(shares[row], selected, strict=True)], width)
        text.append("\n")
    if colour:
        text.append("\n")  # a map of colours ends where they end
    text.append_text(_legend(console, scale, shares, None if heads is None else filled, merged))
    return text


def _palette(console: Console) -> _Palette:
    return _ASCII if console.options.ascii_only else _BLOCKS


def _append_characters(
    text: Text, shares: NDArray[np.float64], selected: NDArray[np.bool_], palette: _Palette, width: int
) -> None:
    levels = len(palette.shades)
    for share, chosen in zip(shares, selected, strict=True):
        if chosen:
            text.append(palette.selected * width, style="bold green")
        elif np.isnan(share):
            text.append(" " * width)
        else:
            text.append(palette.shades[min(int(share * levels), levels - 1)] * width)


def _append_colours(text: Text, cells: Sequence[str | None], width: float) -> None:
    if width >= 1:
        for cell in cells:
            text.append(" " * int(width), style=Style(bgcolor=cell))
        return
    for left, right in zip(cells[::2], [*cells[1::2], None], strict=False):
        if left is None and right is None:
            text.append(" ")
        elif left is None:
            text.append("▐", style=Style(color=right))
        else:
            text.append("▌", style=Style(color=left, bgcolor=right))


def _shade(share: float, selected: bool) -> str | None:
    if selected:
        return _ORANGE
    if np.isnan(share):
        return None
    place = np.linspace(0, 1, len(_RAMP))
    red, green, blue = (np.interp(share, place, [color[part] for color in _RAMP]) for part in range(3))
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


def _finite(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores[np.isfinite(scores)]


def _shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores on a linear scale from 0 for the lowest to 1 for the highest; not-a-number for no number."""
    finite = _finite(scores)
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    known = np.where(np.isfinite(scores), scores, np.nan)
    return (known - low) / (high - low) if high > low else known * 0.0


def _range(scores: NDArray[np.float64]) -> str:
    finite = _finite(scores)
    if not finite.size or finite.min() == finite.max():
        return ""
    return f"score from {finite.min():.3g} to {finite.max():.3g}"


def _legend(
    console: Console, scale: str, shares: NDArray[np.float64], filled: str | None, merged: int
) -> Text:
    colour, palette = in_colour(console), _palette(console)
    parts = []
    if scale:
        ramp = _sample([_shade(share, False) for share in np.linspace(0, 1, 8)], 1)
        parts.append((ramp if colour else Text(palette.shades)).append(f" {scale}", style="dim"))
    if np.isnan(shares).any():
        parts.append(Text("blank: no number", style="dim"))
    if filled is not None:
        parts.append(
            (_sample([_ORANGE], 2) if colour else Text(palette.selected)).append(f" {filled}", style="dim")
        )
    if merged > 1:
        parts.append(Text(f"a cell is {merged} heads", style="dim"))
    lines = [Text()]
    for part in parts:
        if lines[-1] and lines[-1].cell_len + 3 + part.cell_len > console.width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(part)
    return Text("\n").join(lines)


def _sample(cells: Sequence[str | None], width: int) -> Text:
    text = Text()
    _append_colours(text, cells, width)
    return text
