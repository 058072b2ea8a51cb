"""All colours of figures, notebooks and reports; `terminal_colours` has those of terminals."""

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
    "accent": (SELECTED, "#ff8a4c"),
}
"""The colours of a report's page, in a light and in a dark scheme."""
