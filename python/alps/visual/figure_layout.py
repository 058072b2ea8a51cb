"""A figure with its title and the places of its axes, measured in inches."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from alps.visual.colours import INK
from alps.visual.notebook_figure import NotebookFigure
from alps.visual.text import elided

# Inches.
LEFT, RIGHT, BOTTOM = 0.62, 0.3, 0.55
_MARGIN_TOP, _TITLE, _LINE, _BELOW_TITLE = 0.22, 0.24, 0.165, 0.16
_MARGIN_UNTITLED = 0.1
_NARROWEST = 5.4


@dataclass(frozen=True)
class FigureLayout:
    """A figure with its title; places below it are in inches from the left and from the end of the title."""

    figure: Figure
    width: float
    height: float
    top: float

    @classmethod
    def titled(cls, width: float, body: float, title: str = "", lines: Sequence[str] = ()) -> "FigureLayout":
        """A figure of `width` inches, or more if a title needs them, as high as the title and `body` below it."""
        width = max(width, _NARROWEST) if title else width
        room = width - 2 * RIGHT
        titles = _wrapped([title], room, 11, "bold")  # an empty one takes no room
        texts = _wrapped(lines, room, 8)
        top = _MARGIN_UNTITLED
        if titles or texts:
            top = _MARGIN_TOP + len(titles) * _TITLE + len(texts) * _LINE + _BELOW_TITLE
        layout = cls(NotebookFigure(figsize=(width, top + body)), width, top + body, top)
        y = _MARGIN_TOP - top
        for line in titles:
            layout.text(RIGHT, y, line, va="top", fontsize=11, fontweight="bold")
            y += _TITLE
        for line in texts:
            layout.text(RIGHT, y, line, va="top", fontsize=8)
            y += _LINE
        return layout

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at that place."""
        bottom = self.height - self.top - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text at that place."""
        self.figure.text(left / self.width, 1 - (self.top + top) / self.height, text, **style)

    def swatch(self, left: float, top: float, size: float, color: Any) -> None:
        """A square of one colour, with its upper left corner at that place."""
        corner = left / self.width, 1 - (self.top + top + size) / self.height
        self.figure.add_artist(
            Rectangle(corner, size / self.width, size / self.height, facecolor=color, linewidth=0)
        )

    def heading(self, left: float, top: float, text: str) -> None:
        """A heading just above axes whose upper left corner is there."""
        self.text(left, top - 0.07, text, va="bottom", fontsize=8, color=INK)

    def panel_title(self, left: float, top: float, title: str, note: str) -> None:
        """A title and a line below it."""
        self.text(left, top, title, va="top", fontsize=9, fontweight="bold")
        self.text(left, top + 0.19, note, va="top", fontsize=7, fontweight="normal")


def _fits(text: str, inches: float, points: float, weight: str) -> bool:
    font = FontProperties(family="DejaVu Sans", size=points, weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a character that the font does not have
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return bool(width <= 72 * inches)


def _wrapped(lines: Iterable[str], inches: float, points: float, weight: str = "normal") -> list[str]:
    """The lines, broken between words, or within a word that is too long, none wider than `inches`."""
    wrapped = []
    for line in filter(None, lines):
        rest = line
        while not _fits(rest, inches, points, weight):
            end = next(
                end
                for end in range(len(rest) - 1, 0, -1)
                if end == 1 or _fits(rest[:end], inches, points, weight)
            )
            clause = max(rest.rfind(mark, end // 2, end) + 1 for mark in (", ", "; "))
            space = clause or rest.rfind(" ", 1, end + 1)
            end = space if space > 0 else end
            wrapped.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        wrapped.append(rest)
    return wrapped


def shortened(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """As much of the end of the text as is not wider than `inches`."""
    longest = len(text)
    while longest > 1 and not _fits(elided(text, longest), inches, points, weight):
        longest -= 1
    return elided(text, longest)


def inches_of(axes: Axes) -> tuple[float, float]:
    """The width and height of axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position()
    width, height = figure.get_size_inches()
    return box.width * width, box.height * height


def label_step(count: int, inches: float, apart: float) -> int:
    """How many cells lie between labels that are at least `apart` inches apart; a power of two."""
    fewest = max(1.0, apart * count / inches)
    return 1 << math.ceil(math.log2(fewest))
