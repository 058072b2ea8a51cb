"""Figures as files: PNG, SVG or PDF, whole or not at all, the same bytes for the same figure."""

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alps.errors import ArgumentError
from alps.files import check_writable, write_whole
from alps.optional import PICTURES, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}

_DOTS_PER_INCH = 200
_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def check_picture(path: str | os.PathLike[str]) -> None:
    """Finds out before long work whether a picture can be drawn and written to `path`.

    Raises:
        ArgumentError: The name does not end in .png, .svg or .pdf.
        MissingPackageError: matplotlib is not installed.
        OSError: The file could not be written.
    """
    _format(path)
    check_writable(path)
    with needed("a picture", PICTURES):
        import matplotlib.figure  # noqa: F401


def encode(figure: "Figure", form: str, *, transparent: bool = False) -> bytes:
    """The figure as the content of a file of the format "png", "svg" or "pdf"."""
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "alps", "svg.fonttype": "path"}), warnings.catch_warnings():
        # A name may have a character that the font does not: it becomes a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            content, format=form, dpi=_DOTS_PER_INCH, metadata=_UNDATED[form], transparent=transparent
        )
    return content.getvalue()


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure in the format that the name ends in, whole or not at all.

    Raises:
        ArgumentError: The name does not end in .png, .svg or .pdf.
        OSError: The file cannot be written.
    """
    write_whole(path, encode(figure, _format(path)))


def _format(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ArgumentError(
            f"{os.fspath(path)}: a picture's name ends in .png, .svg or .pdf; found {suffix or 'no suffix'}"
        )
    return FORMATS[suffix]
