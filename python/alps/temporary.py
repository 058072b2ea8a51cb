"""Temporary files and folders that lie beside the name which they get when they are whole.

Each is locked while it is written. What a killed process has left is locked no longer, and is removed by the next one that
writes the same name.
"""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_FOLDER = ".partial"
"""The end of the name of an unfinished folder."""


@contextmanager
def temporary_file(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `target`, open for writing, and its path. It is removed at the end unless it was renamed.

    Raises:
        OSError: The file cannot be made.
    """
    _remove_leftovers(target, "")
    while True:
        path = _name_beside(target, "")
        with path.open("xb") as file:
            try:
                # Another process may have taken it for a leftover before it was locked.
                if not _lock(file.fileno()) or os.fstat(file.fileno()).st_nlink == 0:
                    continue
                yield path, file
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`. It is removed at the end unless it was renamed.

    Raises:
        OSError: The folder cannot be made.
    """
    _remove_leftovers(target, _FOLDER)
    path = _name_beside(target, _FOLDER)
    with closing(_LockedFolder(path)):
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


class _LockedFolder:
    """A new folder, and its lock."""

    def __init__(self, path: Path):
        self._descriptor: int | None = None
        while True:
            path.mkdir()
            if sys.platform == "win32":
                return
            try:
                self._descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # taken for a leftover before it was locked
            if _lock(self._descriptor) and path.exists():
                return
            self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _name_beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}{suffix}")


def _remove_leftovers(target: Path, suffix: str) -> None:
    """Removes what killed processes have left of `target`."""
    name = re.compile(re.escape(f".{target.name[:100]}.") + "[0-9a-f]{16}" + re.escape(suffix))
    for found in target.parent.iterdir():
        if not name.fullmatch(found.name):
            continue
        try:
            if found.is_dir() and not found.is_symlink() and suffix and _is_unused(found):
                shutil.rmtree(found)
            elif found.is_file() and not suffix and _is_unused(found):
                found.unlink()
        except OSError:
            continue  # it is gone, or that of another user; the new file does not need its name


def _is_unused(path: Path) -> bool:
    """Whether no process holds the lock of a file or folder. Windows removes nothing that is open."""
    if sys.platform == "win32":
        return True
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _lock(descriptor, unknown=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, unknown: bool = True) -> bool:
    """Locks a file or folder until it is closed; false if another process has, `unknown` where nothing can be locked."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True
