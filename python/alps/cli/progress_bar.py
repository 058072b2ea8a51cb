"""Progress bars of long calls, on standard error."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext

import typer

from alps.visual.progress_bar import Update, terminal_bar

_LONG = 5.0
"""Seconds that a caller should know of before they pass."""


def of_bytes(*, quiet: bool) -> AbstractContextManager[Update | None]:
    """A bar of bytes read, with their speed; nothing without a terminal, or if `quiet`."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    return terminal_bar("reading", "bytes")


def of_steps(what: str, *, quiet: bool) -> AbstractContextManager[Update | None]:
    """A bar of steps; without a terminal, one line if they take long; nothing if `quiet`."""
    if quiet:
        return nullcontext()
    return terminal_bar(what) if sys.stderr.isatty() else nullcontext(_forecast(what))


def _forecast(what: str) -> Update:
    """Says after the second step how long all will take, if that is long; the first also loads and compiles."""
    first = 0.0

    def update(done: int, total: int) -> None:
        nonlocal first
        now = time.monotonic()
        if done == 1:
            first = now
        elif done == 2 and (seconds := (now - first) * total) > _LONG:
            typer.echo(f"{total} {what} of about {now - first:.2g} s: about {seconds:.0f} s", err=True)

    return update
