"""The files of alps: written whole or not at all, and checked when they are read.

A file has a temporary name until it is whole (`write_whole`, `temporary.py`). So has the folder of a graft (`graft.py`) and
that of a demo (`demo/steps.py`).
"""

import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import alps._alps as _alps
from alps import limits
from alps.errors import ArgumentError, CheckpointError
from alps.escaping import one_line, shorten
from alps.temporary import temporary_file

# The Rust binding of numpy runs Python code when it makes its first array, and panics if Ctrl-C interrupts that code. So the
# first array is made here, while a command still ends at once on Ctrl-C, and not at the end of a long scan.
_alps.ranking(np.zeros((1, 1)))

_METADATA = "alps"
"""The entry of the metadata of safetensors that holds a document."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks, before long work, that `write_whole` can write `path`.

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


def check_free(path: str | os.PathLike[str]) -> None:
    """Checks, before long work, that there is nothing at `path`.

    Raises:
        ArgumentError: There is something.
    """
    if Path(path).exists():
        raise ArgumentError(
            f"{os.fspath(path)}: expected a free name, found something there; remove it or name another"
        )


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all.

    A temporary file in the same folder gets the content, and then the name; those that killed processes have left of
    this name are removed. A symbolic link keeps pointing to its file. A new file gets the permissions of any new file, one that is replaced keeps its own.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    try:
        with temporary_file(target) as (temporary, file):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))  # noqa: PTH101
            if os.name == "nt":
                file.close()  # Windows renames no file that is open
            temporary.replace(target)
            sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlast a crash of the system, where the system has this."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def suffix_of(path: str | os.PathLike[str], what: str, suffixes: Sequence[str]) -> str:
    """The suffix of `path` in lower case; messages call the file `what`.

    Raises:
        ArgumentError: The suffix is none of `suffixes`.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in suffixes:
        *others, last = suffixes
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ArgumentError(
            f"{os.fspath(path)}: a {what}'s name ends in {expected}; found {suffix or 'no suffix'}"
        )
    return suffix.lower()


def parse_json(
    path: str | os.PathLike[str], text: str | bytes, what: str = "a JSON document"
) -> dict[str, Any]:
    """The JSON object in `text`, which was read from `path`, a file that should be `what`.

    Raises:
        CheckpointError: `text` is not JSON, not an object, larger than a document may be, or has a name twice.
    """
    try:
        encoded = text.encode() if isinstance(text, str) else text
        if len(encoded) > limits.LARGEST_DOCUMENT:
            raise ValueError(f"expected at most {limits.LARGEST_DOCUMENT} bytes, found {len(encoded)}")
        _alps.check_document(encoded, limits.LARGEST_VALUES)
        document = json.loads(encoded, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)}: not {what}: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{os.fspath(path)}: expected a JSON object")
    return document


def finite(value: Any) -> Any:
    """A value for JSON, with None for each number in it that is not finite, since JSON has no such number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def check_regular(path: str | os.PathLike[str]) -> int:
    """The number of bytes of a regular file. Opening a named pipe or a device could wait for ever.

    Raises:
        OSError: There is no such file, or it is something else.
    """
    state = Path(path).stat()
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return state.st_size


def encode_tensors(arrays: Mapping[str, NDArray[np.float64]], document: Mapping[str, Any]) -> bytes:
    """Arrays as the content of a safetensors file with a document in the metadata.

    The same content gives the same bytes.
    """
    from safetensors.numpy import save

    # The metadata is one entry, since safetensors writes several in no fixed order.
    return bytes(save(dict(arrays), metadata={_METADATA: json.dumps(document)}))


def write_tensors(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[np.float64]], document: Mapping[str, Any]
) -> None:
    """Writes arrays as safetensors with a document in the metadata, whole or not at all.

    The same content gives the same bytes.

    Raises:
        OSError: The file cannot be written.
    """
    write_whole(path, encode_tensors(arrays, document))


@contextmanager
def open_tensors(path: str | os.PathLike[str], what: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Opens what `write_tensors` wrote: the document, and the file of safetensors. Messages call the file `what`.

    Raises:
        CheckpointError: The file is something else; or the block raised an ArgumentError, of what the file holds.
        OSError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _METADATA not in metadata:
                raise CheckpointError(f"{os.fspath(path)}: expected {what}, found other tensors")
            yield parse_json(path, metadata[_METADATA]), file
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(path)}: not a safetensors file: {one_line(error)}") from None
    except ArgumentError as error:
        raise CheckpointError(f"{os.fspath(path)}: {one_line(error)}") from None


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuses a header that would take much memory, before the reader of safetensors sees it."""
    size = check_regular(path)
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(limits.LARGEST_DOCUMENT, size):
            raise CheckpointError(
                f"{os.fspath(path)}: not a safetensors file: expected a header of at most "
                f"{min(limits.LARGEST_DOCUMENT, size)} bytes, found {length}"
            )
        parse_json(path, file.read(length), "a safetensors file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {shorten(twice)!r} stands twice in one object")
    return document


def check_document(
    document: Mapping[str, Any],
    form: str,
    version: int,
    fields: Mapping[str, type[dict[Any, Any]] | type[list[Any]]],
) -> None:
    """Checks that `document` is of format `form` and has exactly these fields, of these types.

    A field "provenance" maps strings to strings.

    Raises:
        ArgumentError: A field is not as expected; the message names it.
    """
    if document.get("format") != form:
        raise ArgumentError(f"format: expected {form!r}, found {document.get('format')!r}")
    if type(document.get("version")) is not int or document["version"] != version:
        raise ArgumentError(f"version: this alps reads {version}, found {document.get('version')!r}")
    expected = {"format", "version", *fields}
    for name in sorted(expected ^ set(document)):
        raise ArgumentError(f"{name}: {'missing' if name in expected else 'unknown'} field")
    for name, kind in fields.items():
        if not isinstance(document[name], kind):
            expected_kind = "an object" if kind is dict else "a list"
            raise ArgumentError(f"{name}: expected {expected_kind}, found {document[name]!r}")
    for name, value in document.get("provenance", {}).items():
        if not isinstance(value, str):
            raise ArgumentError(f"provenance.{name}: expected a string, found {value!r}")
