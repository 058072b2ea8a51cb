"""Files that are written whole or not at all."""

import errno
import os
import secrets
from pathlib import Path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Finds out before long work whether `write_whole` could write `path`.

    Raises:
        OSError: The folder is missing or not writable, or `path` is something but a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all.

    The content goes to a temporary file in the same folder first, which then takes the name. A
    symbolic link keeps pointing to its file, and the file gets the permissions of any new file.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        # Not the tempfile module: its files are readable by their owner only.
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
