"""Checkpoints on web servers."""

import asyncio
import errno
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from alps.optional import needed
from alps.remote.store import TIMEOUT, StatusError, Store, UnsupportedError, delay

USUAL_NAMES = (
    "config.json",
    "params.json",
    "adapter_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "consolidated.safetensors",
    "consolidated.safetensors.index.json",
)
"""The files that are looked for, since web servers do not list folders."""
_T = TypeVar("_T")


class WebStore(Store):
    """The files below one address. A query in the address, such as a signature, is sent for every file and never shown.

    Attributes:
        root: The location of its files: the address without a password and a query.
    """

    def __init__(self, url: str):
        """Takes an address; asks nothing of the server.

        Raises:
            ImportError: fsspec or aiohttp is not installed.
        """
        super().__init__()
        with needed("a checkpoint on a web server", "'alps-heads[remote]'"):
            import aiohttp
            import fsspec
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        self._filesystem: Any = fsspec.filesystem("https")
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        self._netloc, self._query = parts.netloc, parts.query
        self.root = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._known: dict[str, tuple[int, str] | None] = {}

    def names(self, folder: str) -> list[str]:
        """The usual names that are there; of a file, that it is none."""
        if posixpath.splitext(folder)[1] in (".safetensors", ".json"):
            self.status(folder)
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", folder)
        files = [f"{folder}/{name}" for name in USUAL_NAMES]
        self._attempt(folder, lambda: self._ask_status(files))
        names = [name for name, file in zip(USUAL_NAMES, files, strict=True) if self._known[file]]
        if not names:
            reason = f"there is none of the usual files of a checkpoint ({', '.join(USUAL_NAMES[:5])})"
            raise FileNotFoundError(errno.ENOENT, reason, folder)
        return names

    def _ask_status(self, files: Sequence[str]) -> None:
        """Asks for the status of several files at a time."""

        async def status(file: str) -> tuple[int, str] | None:
            try:
                return await self._fetch(file, 0, 1, _status_of)
            except StatusError as error:
                if error.status in (404, 410):
                    return None
                raise

        async def all_of_them() -> list[tuple[int, str] | None]:
            return await asyncio.gather(*map(status, files))

        self._known.update(zip(files, self._wait(all_of_them), strict=True))

    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        if fresh or file not in self._known:
            self._ask_status([file])
        if (found := self._known[file]) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file)
        return found

    def _read(self, file: str, start: int, end: int) -> bytes:
        async def content(response: Any) -> bytes:
            size, version = await _status_of(response)
            if response.status != 206 and size != end - start:
                raise UnsupportedError(
                    "expected a range of the file, found all of it: the server knows no ranges"
                )
            if version and (known := self._known.get(file)) and known != (size, version):
                raise StatusError(412)
            return bytes(await response.read())

        return self._wait(lambda: self._fetch(file, start, end, content))

    async def _fetch(self, file: str, start: int, end: int, take: Callable[[Any], Awaitable[_T]]) -> _T:
        """Asks for a range, and returns what `take` makes of the answer."""
        session = await self._filesystem.set_session()
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with session.get(self._address(file), headers=headers, timeout=self._timeout) as response:
            if response.status not in (200, 206):
                raise StatusError(response.status, delay(response.headers))
            return await take(response)

    def _wait(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Waits for an answer, in fsspec's thread for such."""
        from fsspec.asyn import sync

        found: _T = sync(self._filesystem.loop, ask)
        return found

    def _address(self, file: str) -> str:
        """The address of a file, with the password and the query that were given."""
        parts = urlsplit(file)
        return urlunsplit((parts.scheme, self._netloc, parts.path, self._query, ""))


async def _status_of(response: Any) -> tuple[int, str]:
    """The number of bytes of the file, and what tells it from other states of itself."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status == 206 else None
    size = total or headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UnsupportedError("expected the size of the file, found none: the server does not name it")
    return int(size), headers.get("ETag") or headers.get("Last-Modified") or ""
