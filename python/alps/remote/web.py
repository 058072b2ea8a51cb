"""Checkpoints on web servers."""

import errno
import posixpath
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from alps.optional import needed
from alps.remote.store import TIMEOUT, StatusError, Store, UnsupportedError, check_count, delay

FIRST_NAMES = ("config.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
"""The files that are looked for first, since web servers do not list folders."""
OTHER_NAMES = (
    "params.json",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "consolidated.safetensors.index.json",
)
"""The files that are looked for where no usual file of weights is found."""
_BEGINNING = 100 << 10
"""The bytes that come with the status of a file: most headers, and all of a small file."""


class WebStore(Store):
    """The files below one address. A query in the address, such as a signature, is sent for every file and never shown.

    Attributes:
        root: The location of its files: the address without a password and a query.
    """

    def __init__(self, url: str):
        """Takes an address; asks nothing of the server.

        Raises:
            MissingPackageError: requests is not installed.
        """
        super().__init__()
        self._client = WebClient(f"a checkpoint at {urlsplit(url).scheme}://")
        parts = urlsplit(url)
        self._netloc, self._query = parts.netloc, parts.query
        self.root = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        self._known: dict[str, tuple[int, str] | None] = {}
        self._beginnings: dict[str, bytes] = {}

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
        """Those of the names that are there; asks for all of them at a time."""
        asked = [(name, self._later(self._is_there, f"{folder}/{name}")) for name in names]
        return [name for name, there in asked if there.result()]

    def _later(self, function: Any, file: str) -> "Future[bool]":
        # The threads of concurrent.futures would keep an interrupted process until the server answers.
        future: Future[bool] = Future()

        def run() -> None:
            try:
                future.set_result(function(file))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True, name="alps-store").start()
        return future

    def _is_there(self, file: str) -> bool:
        try:
            self.status(file)
        except FileNotFoundError:
            return False
        return True

    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        if fresh or file not in self._known:
            count = 1 if fresh else _BEGINNING
            try:
                response = self._client.get(self._address(file), 0, count)
            except StatusError as error:
                if error.status not in (404, 410):
                    raise
                self._known[file] = None
            else:
                self._known[file] = size, _ = _status_of(response)
                if not fresh and (response.status_code == 206 or size <= _BEGINNING):
                    self._beginnings[file] = self._client.content(response, min(size, count))
                    check_count(self._beginnings[file], min(size, count))
                response.close()
        if (found := self._known[file]) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file)
        return found

    def _read(self, file: str, start: int, end: int) -> bytes:
        if start == 0 and len(beginning := self._beginnings.pop(file, b"")) >= end:
            return beginning[:end]
        response = self._client.get(self._address(file), start, end)
        size, version = _status_of(response)
        if response.status_code != 206 and size != end - start:
            raise UnsupportedError("expected a range of the file, found all of it: the server knows no ranges")
        if version and (known := self._known.get(file)) and known != (size, version):
            raise StatusError(412)
        return self._client.content(response, end - start)

    def _address(self, file: str) -> str:
        """The address of a file, with the password and the query that were given."""
        parts = urlsplit(file)
        return urlunsplit((parts.scheme, self._netloc, parts.path, self._query, ""))


class WebClient:
    """Asks web servers for ranges of files. Redirections to other hosts are followed without authorization."""

    def __init__(self, purpose: str):
        """Takes what it is for ("a checkpoint on the hub").

        Raises:
            MissingPackageError: requests is not installed.
        """
        with needed(purpose, "'alps-heads[remote]'"):
            import requests
        self._new_session = requests.Session
        self._of_thread = threading.local()

    def get(self, url: str, start: int, end: int, headers: Mapping[str, str] | None = None) -> Any:
        """Asks for a range, and returns the answer without its content.

        Raises:
            StatusError: The answer is no file.
        """
        if (session := getattr(self._of_thread, "session", None)) is None:
            session = self._of_thread.session = self._new_session()
        wanted = {**(headers or {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        response = session.get(url, headers=wanted, stream=True, timeout=TIMEOUT)
        if response.status_code not in (200, 206):
            response.close()
            raise StatusError(response.status_code, delay(response.headers))
        return response

    @staticmethod
    def content(response: Any, count: int) -> bytes:
        """The first bytes of an answer, in one piece of memory."""
        data: bytes = response.raw.read(count, decode_content=False)
        response.close() if len(data) < count else response.raw.release_conn()
        return data


def _status_of(response: Any) -> tuple[int, str]:
    """The number of bytes of the file, and what tells it from other states of itself."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status_code == 206 else None
    size = total or headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UnsupportedError("expected the size of the file, found none: the server does not name it")
    return int(size), headers.get("ETag") or headers.get("Last-Modified") or ""
