"""Writes what the examples of the documentation print now into its pages, which shows in the difference what changed.

    make demo
    PYTHONPATH=tests python tools/update_examples.py

The examples run in a temporary folder with a copy of `demo/`.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from support.documents import ROOT
from support.examples import rewrite

PAGES = ("README.md", "docs/scores.md", "docs/tutorial.md")


def main() -> None:
    """Rewrites the pages."""
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            shutil.copytree(ROOT / "demo", Path(folder, "demo"))
            stack.callback(os.chdir, Path.cwd())
            os.chdir(folder)
            text = rewrite(ROOT / page)
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
