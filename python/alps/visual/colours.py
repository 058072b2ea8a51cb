"""All colours of figures, notebooks and reports; `terminal_colours` has those of terminals."""

import numpy as np

INK = "#1b1f24"
"""The colour of everything but data, and of nothing else: a report puts the page's own in its place."""

BORDER = "#2c3238"
"""Lines over a map, which stay dark where a report is light on dark."""

BLUE = "#2171b5"
"""Of scores, where one hue has to do."""

SELECTED = "#d9480f"
"""An orange: the hue that the common kinds of colour blindness keep farthest from blue."""

PALE = "#8a9099"
"""Heads beside those that are selected."""

FAINT = "#e6eaee"
"""Cells beside those that are filled."""

SEPARATOR = "white"
"""Lines between cells of one colour."""

SCORES, COUNTS = "Blues", "Oranges"
"""Colour maps of matplotlib: one hue from pale to dark, which every kind of sight and a grey print keep in order."""

PAGE = {
    "page": ("#ffffff", "#14171b"),
    "ink": (INK, "#e4e7eb"),
    "quiet": ("#57606a", "#9aa4af"),
    "line": ("#d5dae0", "#323941"),
    "band": ("#f4f6f8", "#1c2126"),
    "pale": (PALE, "#78828d"),
    "blue": (BLUE, "#6cb2eb"),
    "accent": (SELECTED, "#ff8a4c"),
    "border": ("#6b7580", "#a3adb8"),
}
"""The colours of a report's page, in a light and in a dark scheme."""

SHADES = 12
"""The last shade of a map of a page; the first is 0."""

PAGE_SCORES = (
    ("#f1f4f7", "#d0e1f2", "#94c4df", "#4a98c9", "#1764ab", "#08306b"),
    ("#20262d", "#1d3b58", "#1f5a8d", "#3a86c8", "#85bdec", "#e0f0fd"),
)
"""A scale of scores, in a light and in a dark scheme: away from the colour of the page."""

PAGE_COUNTS = (
    ("#f1f4f7", "#fdd9b4", "#fda762", "#f3701b", "#c54102", "#7f2704"),
    ("#20262d", "#5c2a10", "#97430f", "#d9631c", "#ff9f62", "#ffe3cd"),
)
"""A scale of numbers of tasks, likewise."""


def shades(scale: tuple[str, ...]) -> list[str]:
    """The colours of all shades of a scale, interpolated between those that it names."""
    places = [place * SHADES / (len(scale) - 1) for place in range(len(scale))]
    channels = [[int(colour[start : start + 2], 16) for colour in scale] for start in (1, 3, 5)]
    levels = range(SHADES + 1)
    mixed = zip(*(np.interp(levels, places, channel) for channel in channels), strict=True)
    return ["#" + "".join(f"{round(value):02x}" for value in colour) for colour in mixed]
