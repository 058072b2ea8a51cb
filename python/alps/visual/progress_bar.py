"""Progress bars of long calls: of rich on standard error, and of HTML in notebooks."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from typing import Any, TypeAlias

from rich.console import Console
from rich.filesize import decimal
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

_APART = 0.1
"""Seconds between two states of a bar in a notebook."""


def bar(what: str, unit: str = "") -> AbstractContextManager[Update | None]:
    """A bar in a notebook or a terminal; nothing elsewhere. `unit` is "bytes", or nothing for steps."""
    console = Console(stderr=True)
    if console.is_jupyter:
        return _notebook_bar(what, unit)
    return terminal_bar(what, unit) if console.is_terminal else nullcontext()


@contextmanager
def terminal_bar(what: str, unit: str = "") -> Iterator[Update]:
    """A bar on standard error that is gone at the end."""
    amounts: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
    if unit == "bytes":
        amounts = DownloadColumn(binary_units=True), TransferSpeedColumn()
    columns = TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn()
    before = store.TOTAL.retries
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            retries = store.TOTAL.retries - before
            description = f"{what}, {retries} requests retried" if retries else what
            shown.update(task, completed=done, total=total or None, description=description)

        yield update


@contextmanager
def _notebook_bar(what: str, unit: str) -> Iterator[Update]:
    """An output of the cell that is replaced as the work goes on, and stays; rich and tqdm need a widget for this."""
    from IPython.display import display

    shown = _NotebookBar(what, unit)
    handle: Any = display(shown, display_id=True)  # type: ignore[no-untyped-call]
    last = 0.0

    def update(done: int, total: int) -> None:
        nonlocal last
        shown.done, shown.total = done, total
        now = time.monotonic()
        if now - last > _APART:
            last = now
            handle.update(shown)

    try:
        yield update
    finally:
        handle.update(shown)


class _NotebookBar:
    """What a notebook shows of a call: how much is done, and how long that took."""

    def __init__(self, what: str, unit: str) -> None:
        self.done, self.total = 0, 0
        self._what, self._unit = what, unit
        self._start = time.monotonic()

    def __repr__(self) -> str:
        amounts = (decimal(it) if self._unit == "bytes" else str(it) for it in (self.done, self.total))
        return f"{self._what}: {' of '.join(amounts)}, {time.monotonic() - self._start:.1f} s"

    def _repr_html_(self) -> str:
        of = f' value="{self.done}" max="{self.total}"' if self.total else ""
        return f'<progress{of} style="width: 20em; max-width: 50%"></progress> {escape(repr(self))}'
