"""A figure that a notebook shows as a picture, whether or not pyplot has been imported.

IPython shows figures of matplotlib only after its own backend for them is active. Needs matplotlib.
"""

import io
import warnings

from matplotlib.figure import Figure

_DENSITY = 2
"""Dots of a picture for each dot of a screen of ordinary density."""


class NotebookFigure(Figure):
    """A figure of matplotlib with a picture of its own for notebooks."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture as PNG, and the size in pixels at which it is shown."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            self.savefig(content, format="png", dpi=_DENSITY * self.dpi)
        width, height = (round(float(size) * self.dpi) for size in self.get_size_inches())
        return content.getvalue(), {"width": width, "height": height}
