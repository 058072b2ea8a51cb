"""Where a checkpoint lies on this machine."""

import errno
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from alps import _alps
from alps.errors import ArgumentError, CheckpointError

_HUB_NAME = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
_TELLTALES = ("config.json", "adapter_config.json", "params.json")
"""Files one of which every checkpoint has."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        path: The file or folder; of an adapter, that of the weights it changes.
        name: What the caller called it.
        commit: The commit of a checkpoint from the hub; None for any other.
        adapter: The folder of an adapter; None for a checkpoint of its own.
        over: What the weights that an adapter changes are called.
        trained_on: What the adapter's configuration calls them.
    """

    path: str
    name: str
    commit: str | None
    adapter: str | None = None
    over: str | None = None
    trained_on: str | None = None

    def provenance(self, side: str) -> dict[str, str]:
        """Where the weights of one side of a comparison come from."""
        fields = {
            side: self.name,
            f"{side}_commit": self.commit,
            f"{side}_adapter_over": self.over,
            f"{side}_adapter_trained_on": self.trained_on,
        }
        return {name: value for name, value in fields.items() if value is not None}


Name = str | os.PathLike[str]


def find_pair(base: Name, tuned: Name, adapter_base: Name | None) -> tuple[Source, Source]:
    """Finds both sides of a comparison.

    The weights that an adapter changes are those of `adapter_base`; if that is not given, of `base` for a
    tuned adapter where `base` is no adapter itself; else those that the adapter's configuration names.

    Raises:
        FileNotFoundError: A checkpoint is not on this machine.
        ArgumentError: A name is no valid name on the hub, or `adapter_base` is given and nothing is an adapter.
        CheckpointError: It cannot be said what an adapter changes.
    """
    found = locate(base), locate(tuned)
    adapters = [_alps.adapter(source.path) for source in found]
    if adapter_base is not None and adapters == [None, None]:
        raise ArgumentError(
            f"adapter_base is {os.fspath(adapter_base)}, but neither {base} nor {tuned} is an adapter"
        )
    given = None if adapter_base is None else locate(adapter_base)
    first = _over(found[0], adapters[0], given, None)
    second = _over(found[1], adapters[1], given, found[0] if adapters[0] is None else None)
    return first, second


def find(name: Name) -> Source:
    """Finds one checkpoint, an adapter with the weights that its configuration names.

    Raises:
        FileNotFoundError: It is not on this machine.
        ArgumentError: The name is no valid name on the hub.
        CheckpointError: It cannot be said what an adapter changes.
    """
    source = locate(name)
    return _over(source, _alps.adapter(source.path), None, None)


def _over(
    source: Source, adapter: _alps.Adapter | None, given: Source | None, other: Source | None
) -> Source:
    """The source with the weights that it changes, if it is an adapter: those given, or of the other side."""
    if adapter is None:
        return source
    # The files in the folder go first as they do for transformers.
    whole = Source(adapter.folder, adapter.folder, None) if adapter.is_whole else None
    base = given or whole or other or _named_base(source, adapter)
    if base is not whole and _alps.adapter(base.path) is not None:
        raise CheckpointError(
            f"{source.name}: the weights that the adapter changes should be those of a checkpoint, but "
            f"{base.name} is an adapter as well; merge that into its base first"
        )
    return Source(base.path, source.name, source.commit, adapter.folder, base.name, adapter.base or None)


def _named_base(source: Source, adapter: _alps.Adapter) -> Source:
    what_to_do = "say which checkpoint it changes (adapter_base=, on the command line --adapter-base)"
    if not adapter.base:
        raise CheckpointError(
            f"{source.name}: the adapter's configuration has no `base_model_name_or_path`; {what_to_do}"
        )
    name = adapter.base
    if adapter.revision and not Path(name).exists():
        name += f"@{adapter.revision}"
    try:
        return locate(name)
    except (FileNotFoundError, ArgumentError) as error:
        raise CheckpointError(
            f"{source.name}: the adapter was trained on {name}, which is not on this machine "
            f"({getattr(error, 'strerror', None) or error}); {what_to_do}"
        ) from None


def locate(name: Name) -> Source:
    """Finds a path: an existing one, else `owner/name[@revision]` in the hub's local cache.

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
    return _locate_in_hub_cache(text, hub_name["name"], hub_name["revision"])


def _locate_in_hub_cache(text: str, name: str, revision: str | None) -> Source:
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
        # Not for a whole snapshot: a cache that lacks files which nobody reads serves as well.
        found = [hub.try_to_load_from_cache(name, file, revision=revision) for file in _TELLTALES]
    except ValueError as error:
        raise ArgumentError(f"{text}: {error}") from None
    # A file that is known not to exist in the repository is neither a path nor None.
    path = next((Path(file).parent for file in found if isinstance(file, str)), None)
    if path is None:
        download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no such file or folder, and no such model in the local cache of the Hugging Face hub "
            f"(fetch it with: {download})",
            text,
        )
    return Source(path=str(path), name=text, commit=path.name)
