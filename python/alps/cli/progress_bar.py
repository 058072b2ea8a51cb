"""Progress bars of long calls, on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from alps.remote import store

Update: TypeAlias = Callable[[int, int], None]
"""Takes what is done so far, and the total."""

_LONG = 5.0
"""Seconds that a caller should know of before they pass."""


def of_bytes(*, quiet: bool) -> AbstractContextManager[Update | None]:
    """A bar of bytes read, with their speed; nothing without a terminal, or if `quiet`."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    return _bar("reading", DownloadColumn(binary_units=True), TransferSpeedColumn())


def of_steps(what: str, *, quiet: bool) -> AbstractContextManager[Update | None]:
    """A bar of steps; without a terminal, one line if they take long; nothing if `quiet`."""
    if quiet:
        return nullcontext()
    return _bar(what, MofNCompleteColumn()) if sys.stderr.isatty() else nullcontext(_forecast(what))


@contextmanager
def _bar(what: str, *amounts: ProgressColumn) -> Iterator[Update]:
    columns = TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn()
    before = store.TOTAL.retries
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            retries = store.TOTAL.retries - before
            description = f"{what}, {retries} requests retried" if retries else what
            bar.update(task, completed=done, total=total or None, description=description)

        yield update


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
