"""The command `alps`. This module imports little, so that Ctrl-C is heard from the beginning."""

import signal
from typing import TYPE_CHECKING, Any

from alps.cli import interrupts

if TYPE_CHECKING:
    from alps.cli.program import app

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command."""
    signal.signal(signal.SIGINT, interrupts.end_at_once)
    try:
        _load()(prog_name="alps")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all that is left to do is to end


def _load() -> Any:
    from alps.cli import scores, models, checkpoints  # isort: skip  # noqa: F401 (the order is that of the help)
    from alps.cli.program import app

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return _load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
