"""Figures as image files: the same figure gives the same bytes."""

import io
import os
import warnings
from typing import TYPE_CHECKING, Any

from alps.files import check_writable, suffix_of, write_whole
from alps.optional import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_DOTS_PER_INCH = 200
_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""The metadata of a file by its format: without the date, which would change its bytes."""


def check_picture(path: str | os.PathLike[str]) -> None:
    """Checks, before long work, that a picture can be drawn and written to `path`.

    Raises:
        ArgumentError: The name does not end in .png, .svg or .pdf.
        MissingPackageError: matplotlib is not installed.
        OSError: The file could not be written.
    """
    suffix_of(path, "picture", _SUFFIXES)
    check_writable(path)
    with needed("a picture"):
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
    write_whole(path, encode(figure, suffix_of(path, "picture", _SUFFIXES).removeprefix(".")))
