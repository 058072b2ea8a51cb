"""Ctrl-C ends the command with exit code 130 and without a traceback, whatever the command is doing.

Most of the time Ctrl-C raises `KeyboardInterrupt`, so that nothing half-written is left. During an import there is nothing
to clear up, and an exception would be reported with a traceback, or turned into another one: there the process just ends.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from alps.cli import end_at_once

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within the block, which imports, Ctrl-C ends the process at once."""
    with _handled_by(end_at_once):
        yield


@contextmanager
def raising() -> Iterator[None]:
    """Within the block, Ctrl-C raises `KeyboardInterrupt`; once more if that falls into a call that loses exceptions."""
    report = sys.unraisablehook

    def raise_again(lost: "UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
        else:
            report(lost)

    sys.unraisablehook = raise_again
    try:
        with _handled_by(signal.default_int_handler):
            yield
    finally:
        sys.unraisablehook = report


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change what a signal does
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
