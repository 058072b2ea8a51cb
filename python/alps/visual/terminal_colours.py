"""The colours of maps in terminals, picked for dark and for light backgrounds.

Each ramp keeps its order in lightness, so that it can be read without seeing its hue. The heads of a set have a ramp of another
hue: whether a head is selected and how high it scores show at once. A terminal says of what colour its background is in
COLORFGBG, if at all; the ramp for an unknown background keeps away from black and from white.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rich.color import Color
from rich.console import Console

Background = Literal["dark", "light", "unknown"]
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Ramp:
    """Colours from the lowest to the highest score.

    Attributes:
        few: Numbers in the palette of 256 colours.
        many: Red, green, blue of colours to interpolate between.
    """

    few: tuple[int, ...]
    many: tuple[Rgb, ...]

    def colour(self, shade: float, console: Console) -> str:
        """The colour of a shade, 0 to 1, as rich names it."""
        if console.color_system != "truecolor":
            return f"color({self.few[min(int(shade * len(self.few)), len(self.few) - 1)]})"
        place = shade * (len(self.many) - 1)
        before = min(int(place), len(self.many) - 2)
        channels = zip(self.many[before], self.many[before + 1], strict=True)
        return Color.from_rgb(*(low + (place - before) * (high - low) for low, high in channels)).name


_DARK = Ramp(
    (235, 238, 24, 31, 74, 117, 195), ((16, 30, 60), (40, 98, 164), (116, 168, 216), (220, 234, 247))
)
_LIGHT = Ramp((254, 153, 111, 68, 25, 18), ((214, 230, 244), (107, 174, 214), (33, 113, 181), (8, 40, 92)))
_UNKNOWN = Ramp((238, 24, 31, 74, 117), ((28, 56, 120), (40, 108, 180), (96, 164, 220), (150, 202, 240)))
SCORES: Mapping[Background, Ramp] = {"dark": _DARK, "light": _LIGHT, "unknown": _UNKNOWN}
"""Blues, for scores."""

_DARK_ORANGES = Ramp((94, 130, 166, 172, 208, 214), ((100, 44, 8), (184, 84, 12), (255, 150, 40)))
_LIGHT_ORANGES = Ramp((223, 215, 208, 172, 166, 130), ((255, 211, 170), (250, 150, 70), (190, 60, 0)))
SELECTED: Mapping[Background, Ramp] = {
    "dark": _DARK_ORANGES,
    "light": _LIGHT_ORANGES,
    "unknown": _DARK_ORANGES,
}
"""Oranges, for the scores of selected heads: the hue that the common kinds of colour blindness keep farthest from blue."""

TASKS = (33, 208, 35, 170, 44, 137)
"""Heads that one of several tasks selects, in the palette of 256 colours."""
SOME, ALL = 250, 220
"""Heads that several tasks select, and that all do."""
NONE: Mapping[Background, int] = {"dark": 236, "light": 253, "unknown": 242}
"""Heads that no task selects."""
LETTER = 16
"""Letters on all of these but the last."""

MARK = "bold green"
"""The style of characters that mark heads in a terminal without shades."""


def background() -> Background:
    """Of what kind the background of the terminal is, as COLORFGBG says."""
    *_, last = os.environ.get("COLORFGBG", "").split(";")
    if not last.isdecimal():
        return "unknown"
    return "dark" if int(last) in (0, 1, 2, 3, 4, 5, 6, 8) else "light"
