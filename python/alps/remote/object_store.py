"""Checkpoints in what fsspec reads: object stores, archives, other filesystems."""

import errno
import posixpath
import threading
from collections.abc import Iterable
from typing import Any

from alps.remote import store
from alps.remote.store import Store, without_secrets

_VERSION = ("ETag", "etag", "md5Hash", "generation", "VersionId", "content_hash", "mtime", "LastModified", "last_modified",
            "updated", "created")  # fmt: skip
"""The fields in which filesystems of fsspec say which state of a file it is."""


class ObjectStore(Store):
    """The files of a filesystem of fsspec. It asks with the credentials that the filesystem has.

    Attributes:
        location: The location of the path: its address without secrets, which is for messages.
    """

    def __init__(self, filesystem: Any, path: str):
        super().__init__()
        self._filesystem = filesystem
        self._folder, _, name = filesystem._strip_protocol(path).rstrip("/").rpartition("/")
        address = filesystem.unstrip_protocol(self._folder)
        # At the top there is only the scheme, as in `s3://bucket`.
        self._shown = without_secrets(address).rstrip("/") if self._folder else address.rstrip("/") + "/"
        self.location = f"{self._shown}/{name}" if name else self._shown
        self._folders: dict[str, _Listing] = {}
        self._listing = threading.Lock()

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder."""

        def names() -> list[str]:
            path = self._path(folder)
            self._filesystem.invalidate_cache(path)
            store.count("requests")
            entries = self._filesystem.ls(path, detail=True)
            if [entry["name"].rstrip("/") for entry in entries] == [path] and entries[0]["type"] == "file":
                raise NotADirectoryError(errno.ENOTDIR, "it is a file", folder)
            if not entries:
                raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", folder)
            self._folders[path] = _Listing(entries)
            return sorted(self._folders[path].entries)

        return self._attempt(folder, names)

    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        folder, name = posixpath.split(self._path(file))
        with self._listing:
            listing = self._folders.get(folder)
            if listing is None or (fresh and name in listing.given):
                listing = self._folders[folder] = self._list(folder)
            entry = listing.entries.get(name)
            listing.given.add(name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file)
        if entry["type"] != "file" or entry.get("size") is None:
            raise FileNotFoundError(errno.ENOENT, "expected a file, found something else", file)
        version = (f"{field}={entry[field]}" for field in _VERSION if entry.get(field) is not None)
        return int(entry["size"]), " ".join(version)

    def _list(self, folder: str) -> "_Listing":
        """Asks what a folder holds now."""
        self._filesystem.invalidate_cache(folder)
        store.count("requests")
        try:
            return _Listing(self._filesystem.ls(folder, detail=True))
        except FileNotFoundError:
            return _Listing([])

    def _read(self, file: str, start: int, end: int) -> bytes:
        filesystem, path = self._filesystem, self._path(file)
        # The method of the base class opens the file, and reads more than it is asked for unless told otherwise.
        options = {"cache_type": "none"} if _opens(filesystem) else {}
        store.count("requests")
        return bytes(filesystem.cat_file(path, start=start, end=end, **options))

    def _path(self, location: str) -> str:
        """The path in the filesystem."""
        within = location[len(self._shown) :].strip("/")
        return f"{self._folder}/{within}" if self._folder else within


class _Listing:
    """What a folder held when it was listed."""

    def __init__(self, entries: Iterable[dict[str, Any]]):
        self.entries = {posixpath.basename(entry["name"].rstrip("/")): entry for entry in entries}
        self.given: set[str] = set()
        """The files whose status was taken from here: a newer one needs a new listing."""


def _opens(filesystem: Any) -> bool:
    """Whether `cat_file` is that of the base class."""
    from fsspec import AbstractFileSystem

    if getattr(filesystem, "async_impl", False):
        return False  # has a `cat_file` of its own, made for the object
    return getattr(type(filesystem), "cat_file", None) is AbstractFileSystem.cat_file
