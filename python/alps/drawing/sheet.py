"""A figure with its title, measured in inches."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from alps import wording
from alps.drawing.look import INK

# Inches.
LEFT, RIGHT, BOTTOM = 0.62, 0.3, 0.55
_MARGIN_TOP, _TITLE, _LINE, _BELOW_TITLE = 0.22, 0.24, 0.165, 0.16
_MARGIN_UNTITLED = 0.1
_NARROWEST = 5.4


@dataclass(frozen=True)
class Sheet:
    """A figure with its title, and what lies below it in inches from the left and from the body's top."""

    figure: Figure
    width: float
    height: float
    top: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at that place."""
        bottom = self.height - self.top - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def heading(self, left: float, top: float, text: str) -> None:
        """A heading just above axes whose corner is there."""
        y = 1 - (self.top + top - 0.07) / self.height
        self.figure.text(left / self.width, y, text, va="bottom", fontsize=8, color=INK)

    def panel_title(self, left: float, top: float, title: str, note: str) -> None:
        """A title and a line below it."""
        for text, down, points, weight in ((title, 0.0, 9, "bold"), (note, 0.19, 7, "normal")):
            y = 1 - (self.top + top + down) / self.height
            self.figure.text(left / self.width, y, text, va="top", fontsize=points, fontweight=weight)


def new_sheet(width: float, body: float, title: str, lines: Sequence[str]) -> Sheet:
    """A figure at least as wide as `width`, as high as its title and `body` need, in inches."""
    width = max(width, _NARROWEST)
    room = width - 2 * RIGHT
    titles = wrapped([title], room, 11, "bold")  # an empty one takes no room
    texts = wrapped(lines, room, 8)
    top = _MARGIN_UNTITLED
    if titles or texts:
        top = _MARGIN_TOP + len(titles) * _TITLE + len(texts) * _LINE + _BELOW_TITLE
    height = top + body
    figure = Figure(figsize=(width, height))
    y = _MARGIN_TOP
    for line in titles:
        figure.text(RIGHT / width, 1 - y / height, line, va="top", fontsize=11, fontweight="bold")
        y += _TITLE
    for line in texts:
        figure.text(RIGHT / width, 1 - y / height, line, va="top", fontsize=8)
        y += _LINE
    return Sheet(figure, width, height, top)


def _fits(text: str, inches: float, points: float, weight: str) -> bool:
    font = FontProperties(family="DejaVu Sans", size=points, weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a character that the font does not have
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return bool(width <= 72 * inches)


def wrapped(lines: Iterable[str], inches: float, points: float, weight: str = "normal") -> list[str]:
    """The lines, broken between words, or within one that is too long, so that none is wider than `inches`."""
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
    """The end of the text, as much of it as is not wider than `inches`."""
    longest = len(text)
    while longest > 1 and not _fits(wording.elided(text, longest), inches, points, weight):
        longest -= 1
    return wording.elided(text, longest)


def inches_of(axes: Axes) -> tuple[float, float]:
    """The width and height of axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position()
    width, height = figure.get_size_inches()
    return box.width * width, box.height * height


def step(count: int, inches: float, apart: float) -> int:
    """How many cells from one label to the next, a power of two, so that labels are `apart` inches apart."""
    fewest = max(1.0, apart * count / inches)
    return 1 << math.ceil(math.log2(fewest))
