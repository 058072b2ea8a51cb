"""Where a checkpoint lies on this machine."""

import errno
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from alps.errors import ArgumentError

_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        path: The file or folder.
        name: What the caller called it.
        commit: The commit of a checkpoint from the hub; None for any other.
    """

    path: str
    name: str
    commit: str | None


def find(name: str | os.PathLike[str]) -> Source:
    """Finds a checkpoint: an existing path, else `owner/name[@revision]` in the hub's local cache.

    Never asks the network.

    Raises:
        FileNotFoundError: There is neither.
        ArgumentError: The name is no valid name on the hub.
    """
    text = os.fspath(name)
    if not isinstance(text, str):
        raise ArgumentError(f"expected a path of text, found {text!r}")
    if Path(text).exists():
        return Source(path=text, name=text, commit=None)
    hub_name = _HUB_NAME.fullmatch(text) if isinstance(name, str) else None
    if hub_name is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", text)
    return _find_in_hub_cache(text, hub_name["name"], hub_name["revision"])


def _find_in_hub_cache(text: str, name: str, revision: str | None) -> Source:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no such file or folder, and the cache of the Hugging Face hub can be searched only "
            "where huggingface_hub is installed (pip install huggingface_hub)",
            text,
        ) from None
    try:
        path = hub.snapshot_download(name, revision=revision, local_files_only=True)
    except FileNotFoundError:  # the base of the hub's LocalEntryNotFoundError
        download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no such file or folder, and no such model in the local cache of the Hugging Face hub "
            f"(fetch it with: {download})",
            text,
        ) from None
    except ValueError as error:
        raise ArgumentError(f"{text}: {error}") from None
    return Source(path=path, name=text, commit=Path(path).name)
