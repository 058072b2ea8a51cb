"""What a store of files can do, and how it is asked: by threads of its own, with retries.

The core asks for names, sizes and ranges of bytes and does not wait: `Store.submit` returns at once, and a thread answers
later. The threads are daemons, so that a program which is interrupted ends without waiting for a network.
"""

import datetime
import errno
import os
import queue
import random
import re
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from email.message import Message

    from alps._alps import Reply

CONNECTIONS = 16
"""The most questions that a store is asked at a time."""
ATTEMPTS = 6
"""How often a question is asked before its failure counts."""
FIRST_WAIT = 0.5
"""Seconds before the second attempt, which double with every further one."""
TIMEOUT = 60
"""Seconds without a byte after which a request counts as failed."""
LONGEST_WAIT = 600.0
"""The most seconds that a server may ask to wait."""

_T = TypeVar("_T")
Content: TypeAlias = bytes | NDArray[np.uint8]
"""Bytes of a file."""
_Tasks: TypeAlias = "queue.SimpleQueue[Callable[[], None] | None]"


class UnsupportedError(Exception):
    """The store cannot do what is needed; another attempt would not help."""


_FINAL = (UnsupportedError, ImportError, NotImplementedError, TypeError, ValueError)


class StatusError(Exception):
    """An answer of a web server that is none.

    Attributes:
        status: The status of HTTP.
        wait: The seconds that the server asks to wait before the next attempt; None if it does not.
        is_empty: Whether the server says that there is no range of the file since it has no bytes.
    """

    def __init__(self, status: int, wait: float | None = None, is_empty: bool = False):
        super().__init__(f"the server answers with the status {status}")
        self.status = status
        self.wait = wait
        self.is_empty = is_empty

    @property
    def attempts(self) -> int:
        """How often such an answer is worth another attempt: bridges of the hub refuse good requests now and then."""
        if self.status in (408, 425, 429) or self.status >= 500:
            return ATTEMPTS
        return 3 if self.status in (400, 403) else 1

    def final(self, file: str) -> OSError:
        """The error once there is no further attempt."""
        if self.status in (404, 410):
            return FileNotFoundError(errno.ENOENT, "there is no such file", file)
        if self.status in (401, 403):
            reason = f"the server refuses access (status {self.status})"
            return PermissionError(errno.EACCES, reason, file)
        if self.status in (412, 416):
            return OSError(
                errno.EIO, "the file changed while it was read; scan again when nothing writes to it", file
            )
        return OSError(errno.EIO, str(self), file)


@dataclass
class Traffic:
    """What was asked of a store.

    Attributes:
        requests: The number of requests, each attempt counted.
        retries: The attempts after the first.
        bytes: Bytes of files that were received.
        stored: Bytes of all files of weights of which the size was asked for.
    """

    requests: int = 0
    retries: int = 0
    bytes: int = 0
    stored: int = 0


TOTAL = Traffic()
"""What was asked of all stores of this process."""


class Store(ABC):
    """A place elsewhere that has files. Its methods but `submit` wait for the network and may be called by any thread."""

    def __init__(self, connections: int = CONNECTIONS):
        self._lock = threading.Lock()
        self._weights: set[str] = set()
        self._documents: dict[tuple[str, int, int], Content] = {}
        """The JSON files that were read, some of which are read twice."""
        self._tasks: _Tasks = queue.SimpleQueue()
        self._threads_left = connections
        weakref.finalize(self, self._tasks.put, None)

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder.

        Raises:
            NotADirectoryError: It is a file.
            FileNotFoundError: There is neither.
        """

    @abstractmethod
    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        """The number of bytes of a file, and a text that changes with its content."""

    @abstractmethod
    def _read(self, file: str, start: int, end: int) -> Content:
        """The bytes of a range of a file."""

    def status(self, file: str, fresh: bool = False) -> tuple[int, str]:
        """The number of bytes of a file, and a text that changes with its content; asked again if `fresh`.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The store refuses it, or cannot be reached.
        """
        size, version = self._attempt(file, lambda: self._status(file, fresh))
        if file.endswith(".safetensors") and file not in self._weights:
            self._weights.add(file)
            count("stored", size)
        return size, version

    def read(self, file: str, start: int, end: int) -> Content:
        """The bytes of a range of a file.

        Raises:
            OSError: The store refuses them, or sends other bytes, or cannot be reached.
        """

        def read() -> Content:
            data = self._read(file, start, end)
            check_count(data, end - start)
            if len(data) > end - start:
                raise UnsupportedError("expected a range of the file, found more: the server knows no ranges")
            return data

        key = file, start, end
        if (known := self._documents.get(key)) is not None:
            return known
        data = self._attempt(file, read)
        count("bytes", len(data))
        if file.endswith(".json"):
            self._documents[key] = data
        return data

    def submit(self, method: str, arguments: tuple[Any, ...], reply: "Reply") -> None:
        """Calls a method in a thread of the store, and gives `reply` what it returns or raises."""

        def task() -> None:
            try:
                result = getattr(self, method)(*arguments)
            except BaseException as error:
                reply.fail(error)
            else:
                reply.deliver(result)

        self._tasks.put(task)
        with self._lock:
            if self._threads_left == 0:
                return
            self._threads_left -= 1
        threading.Thread(target=_work, args=(self._tasks,), daemon=True, name="alps-store").start()

    def _attempt(self, file: str, ask: Callable[[], _T], attempts: int | None = None) -> _T:
        attempt, most = 1, attempts or ATTEMPTS
        while True:
            try:
                return ask()
            except FileNotFoundError as error:
                reason = error.strerror or "there is no such file or folder"
                raise FileNotFoundError(errno.ENOENT, reason, file) from None
            except PermissionError as error:
                raise PermissionError(errno.EACCES, describe(error), file) from None
            except (NotADirectoryError, IsADirectoryError):
                raise
            except StatusError as error:
                if attempt >= min(error.attempts, most):
                    raise error.final(file) from None
                wait = error.wait
            except Exception as error:
                if attempt >= most or isinstance(error, _FINAL):
                    raise OSError(errno.EIO, describe(error), file) from None
                wait = None
            backoff = FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            time.sleep(backoff if wait is None else min(wait, LONGEST_WAIT))
            attempt += 1
            count("retries", 1)


def check_count(data: Content, expected: int) -> None:
    """Refuses an answer with fewer bytes than were asked for."""
    if len(data) < expected:
        raise ConnectionError(f"expected {expected} bytes, found {len(data)}")


_counting = threading.Lock()


def _after_fork() -> None:
    global _counting
    _counting = threading.Lock()  # a thread that the child does not have may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def count(what: str, number: int = 1) -> None:
    """Adds to one of the numbers of `TOTAL`."""
    with _counting:
        setattr(TOTAL, what, getattr(TOTAL, what) + number)


def _work(tasks: "_Tasks") -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it holds the store, whose end ends the threads
    tasks.put(None)  # for the next thread


_SECRET = re.compile(r"(\w+://)([^/\s@]*@)?([^\s?#'\"<>]*)([?#][^\s'\"<>]*)?")
"""A URL: its scheme, a password, its path, and a query, in which signatures are."""

_QUERY = re.compile(r"\?[^\s'\"<>()]*=[^\s'\"<>()]*")
"""The query of an address without its beginning."""

_LONGEST = 4096
"""Characters of a text in which addresses are looked for, which takes time with their square."""


def describe(error: BaseException) -> str:
    """An exception in one line, without passwords and signatures of URLs."""
    return without_secrets(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def without_secrets(text: str) -> str:
    """The text in one line of at most 300 characters, without passwords and signatures of URLs."""
    if len(text) > _LONGEST:
        # The last word may be part of an address, whose password would not be recognised.
        text = "".join(text[:_LONGEST].rsplit(maxsplit=1)[:1])
    plain = _QUERY.sub("", _SECRET.sub(lambda match: match[1] + match[3], text))
    line = " ".join(plain.split())
    return line if len(line) <= 300 else line[:299] + "…"


def delay(headers: "Mapping[str, str] | Message[str, str]") -> float | None:
    """The seconds that a server asks to wait; None if it does not."""
    import email.utils  # this import takes longer than that of the whole module

    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.datetime.now(moment.tzinfo or datetime.timezone.utc)
    return max(0.0, (moment.replace(tzinfo=now.tzinfo) - now).total_seconds())
