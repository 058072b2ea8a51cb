"""Checkpoints on web servers."""

import errno
import mmap
import posixpath
import threading
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import Future
from http.client import HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from alps.remote import store
from alps.remote.store import TIMEOUT, Content, StatusError, Store, UnsupportedError, check_count, delay

FIRST_NAMES = ("config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
"""The files that are looked for first, since web servers do not list folders."""
OTHER_NAMES = (
    "params.json",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "consolidated.safetensors.index.json",
)
"""The files that are looked for where no usual file of weights is found."""
_UNQUOTED = ":/%~!$&'()*+,;=@"
_BEGINNING = 100 << 10
"""The bytes that come with the status of a file: most headers, and all of a small file."""


class WebStore(Store):
    """The files below one address. A query in the address, such as a signature, is sent for every file and never shown.

    Attributes:
        root: The location of its files: the address without a password and a query.
    """

    def __init__(self, url: str):
        """Takes an address; asks nothing of the server."""
        super().__init__()
        parts = urlsplit(url)
        password, _, host = parts.netloc.rpartition("@")
        self._query = parts.query
        self._headers: dict[str, str] = {}
        if password:
            self._headers["Authorization"] = "Basic " + b64encode(unquote(password).encode()).decode()
        self.root = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._known: dict[str, tuple[int, str] | None] = {}
        self._beginnings: dict[str, Content] = {}

    def names(self, folder: str) -> list[str]:
        """The usual names that are there; of a file, that it is none."""
        if posixpath.splitext(folder)[1] in (".safetensors", ".json"):
            self.status(folder)
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", folder)
        names = self._there(folder, FIRST_NAMES)
        if not any(name.startswith("model.") for name in names):
            names += self._there(folder, OTHER_NAMES)
        if not names:
            reason = f"there is none of the usual files of a checkpoint ({', '.join(FIRST_NAMES)})"
            raise FileNotFoundError(errno.ENOENT, reason, folder)
        return names

    def _there(self, folder: str, names: tuple[str, ...]) -> list[str]:
        """Those of the names that are there; asks for all of them at a time.

        Object stores that list nothing to a stranger refuse access to files that are not there.
        """
        asked = [(name, self._later(f"{folder}/{name}")) for name in names]
        refusals = [error for _, there in asked if isinstance(error := there.exception(), PermissionError)]
        found = [
            name
            for name, there in asked
            if not isinstance(there.exception(), PermissionError) and there.result()
        ]
        if refusals and not found and not any(self._known.values()):
            raise refusals[0]
        return found

    def _later(self, file: str) -> "Future[bool]":
        """Asks in a thread of its own: those of an executor keep an interrupted process until the server answers."""
        future: Future[bool] = Future()

        def run() -> None:
            try:
                future.set_result(self._is_there(file))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True, name="alps-store").start()
        return future

    def _is_there(self, file: str) -> bool:
        try:
            super().status(file)
        except FileNotFoundError:
            return False
        return True

    def status(self, file: str, fresh: bool = False) -> tuple[int, str]:
        """The status, as in `Store`. A document that is refused beside readable files counts as one that is not there."""
        try:
            return super().status(file, fresh)
        except PermissionError:
            if not file.endswith(".json"):
                raise
            if not any(self._known.values()):
                self._there(posixpath.dirname(file), FIRST_NAMES)
            self._known[file] = None
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file) from None

    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        if fresh or file not in self._known:
            count = 1 if fresh else _BEGINNING
            try:
                response = get(self._address(file), 0, count, self._headers)
            except StatusError as error:
                if error.is_empty:
                    self._known[file] = 0, ""
                elif error.status in (404, 410):
                    self._known[file] = None
                else:
                    raise
            else:
                self._known[file] = size, _ = _status_of(response)
                if not fresh and (response.status == 206 or size <= _BEGINNING):
                    self._beginnings[file] = content(response, min(size, count))
                    check_count(self._beginnings[file], min(size, count))
                response.close()
        if (found := self._known[file]) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file)
        return found

    def _read(self, file: str, start: int, end: int) -> Content:
        if start == 0 and len(beginning := self._beginnings.pop(file, b"")) >= end:
            return beginning[:end]
        response = get(self._address(file), start, end, self._headers)
        size, version = _status_of(response)
        check_range(response, size, end - start)
        if version and (known := self._known.get(file)) and known != (size, version):
            raise StatusError(412)
        return content(response, end - start)

    def _address(self, file: str) -> str:
        """The address of a file, with the query that was given."""
        return f"{quote(file, safe=_UNQUOTED)}?{self._query}" if self._query else quote(file, safe=_UNQUOTED)


class _SameHost(HTTPRedirectHandler):
    """Follows redirections; to another host or scheme, without authorization."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            request.remove_header("Authorization")
        return request


_opener = build_opener(_SameHost)


def get(url: str, start: int, end: int, headers: Mapping[str, str] | None = None) -> Any:
    """Asks for a range of a file, and returns the answer without its content, an `http.client.HTTPResponse`.

    Raises:
        StatusError: The answer is no file.
        OSError: The server cannot be reached.
    """
    wanted = {**(headers or {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    store.count("requests")
    try:
        return _opener.open(Request(url, headers=wanted), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        is_empty = error.code == 416 and error.headers.get("Content-Range", "").endswith("/0")
        raise StatusError(error.code, delay(error.headers), is_empty) from None


def check_range(response: Any, size: int, count: int) -> None:
    """Refuses an answer, of which nothing was received yet, that has all `size` bytes of a file instead of `count`."""
    if response.status != 206 and size != count:
        raise UnsupportedError("expected a range of the file, found all of it: the server knows no ranges")


def content(response: Any, count: int) -> Content:
    """The first bytes of an answer, fewer if it ends before. Closes the answer.

    They are received in memory of their own: what the C library frees of blocks of that size it keeps, for every thread.
    """
    with response:
        if count < mmap.PAGESIZE:
            data: bytes = response.read(count)
            return data
        memory, received = mmap.mmap(-1, count), 0
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # a page fault for each 2 MiB instead of 4 KiB
        with memoryview(memory) as view:
            while received < count and (read := response.readinto(view[received:])):
                received += read
        return np.frombuffer(memory, np.uint8, received)


def _status_of(response: Any) -> tuple[int, str]:
    """The number of bytes of the file, and what tells it from other states of itself."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 else None
    size = total or headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UnsupportedError("expected the size of the file, found none: the server does not name it")
    return int(size), headers.get("ETag") or headers.get("Last-Modified") or ""
