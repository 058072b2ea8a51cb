"""The command `alps`. This module imports next to nothing, so that Ctrl-C is heard from the beginning."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
    from typing import Any

    from alps.cli.program import app
else:
    import _signal  # all that the module signal does but to make enumerations, which takes longer than all else here

__all__ = ["EXIT_INTERRUPTED", "app", "end_at_once", "main"]

EXIT_INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Runs the command."""
    _signal.signal(_signal.SIGINT, end_at_once)
    try:
        _load()(prog_name="alps")
    finally:
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # all that is left to do is to end


def end_at_once(signal_number: int, frame: FrameType | None) -> None:
    """Ends the process: what Ctrl-C does where there is nothing to clear up."""
    os._exit(EXIT_INTERRUPTED)


def _load() -> Any:
    from alps.cli import scores, models, checkpoints  # isort: skip  # noqa: F401 (the order is that of the help)
    from alps.cli.program import app

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return _load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
