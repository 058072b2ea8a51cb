"""Finds a checkpoint on this machine, by its path or its name on the hub."""

import errno
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import alps._alps as _alps
from alps.errors import ArgumentError, CheckpointError

_HUB_NAME = re.compile(r"(?P<name>([\w][\w.-]*/)?[\w][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
"""`owner/name[@revision]`, or `name[@revision]` of an old model such as gpt2."""
_CONFIGURATIONS = ("config.json", "adapter_config.json", "params.json")
"""Every checkpoint on the hub has one of these files."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        path: The file or folder of the weights; for an adapter, of the weights that it changes.
        name: The name that the caller gave.
        commit: The commit of a checkpoint from the hub; None for any other.
        adapter: The folder of an adapter; None where there is none.
        over: The name of the weights that the adapter changes.
        trained_on: The name of these weights in the configuration of the adapter.
    """

    path: str
    name: str
    commit: str | None
    adapter: str | None = None
    over: str | None = None
    trained_on: str | None = None

    @property
    def paths(self) -> tuple[str, str | None]:
        """The weights and the adapter, as the extension takes them."""
        return self.path, self.adapter

    def provenance(self, role: str) -> dict[str, str]:
        """Where the weights come from; the names of the fields begin with `role`, "base" or "tuned"."""
        fields = {
            role: self.name,
            f"{role}_commit": self.commit,
            f"{role}_adapter_over": self.over,
            f"{role}_adapter_trained_on": self.trained_on,
        }
        return {name: value for name, value in fields.items() if value is not None}


Name = str | os.PathLike[str]


def find_both(base: Name, tuned: Name, adapter_base: Name | None) -> tuple[Source, Source]:
    """Finds the base and the tuned checkpoint.

    An adapter changes the weights of `adapter_base`. When that is not given, a tuned adapter changes those of
    `base`, unless `base` is an adapter as well; any other adapter changes those that its configuration names.

    Raises:
        FileNotFoundError: A checkpoint is not on this machine.
        ArgumentError: A name is no valid name on the hub, or `adapter_base` is given and nothing is an adapter.
        CheckpointError: The weights that an adapter changes cannot be found.
    """
    found = locate(base), locate(tuned)
    adapters = [_alps.adapter(source.path) for source in found]
    if adapter_base is not None and adapters == [None, None]:
        raise ArgumentError(
            f"adapter_base is {os.fspath(adapter_base)}, but neither {base} nor {tuned} is an adapter"
        )
    given = None if adapter_base is None else locate(adapter_base)
    first = _with_base(found[0], adapters[0], given, None)
    second = _with_base(found[1], adapters[1], given, found[0] if adapters[0] is None else None)
    return first, second


def find(name: Name) -> Source:
    """Finds one checkpoint; an adapter with the weights that its configuration names.

    Raises:
        FileNotFoundError: It is not on this machine.
        ArgumentError: The name is no valid name on the hub.
        CheckpointError: The weights that an adapter changes cannot be found.
    """
    source = locate(name)
    return _with_base(source, _alps.adapter(source.path), None, None)


def _with_base(
    source: Source, adapter: _alps.Adapter | None, given: Source | None, other: Source | None
) -> Source:
    """Adds to an adapter the weights that it changes: those given, its own, the other checkpoint's, or those named."""
    if adapter is None:
        return source
    # Weights in the adapter's own folder come before those that its configuration names, as in transformers.
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
    """Finds an existing path, else `[owner/]name[@revision]` in the hub's local cache, without the network.

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
    missing = FileNotFoundError(errno.ENOENT, "there is no such file or folder", text)
    if hub_name is None:
        raise missing
    try:
        return _locate_in_hub_cache(text, hub_name["name"], hub_name["revision"])
    except (FileNotFoundError, ArgumentError):
        if "/" in text:
            raise
        raise missing from None  # a name without owner was more likely meant as a path


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
        # A cache may lack files that nobody reads, so it is not asked for a whole snapshot.
        found = [hub.try_to_load_from_cache(name, file, revision=revision) for file in _CONFIGURATIONS]
    except ValueError as error:
        raise ArgumentError(f"{text}: {error}") from None
    # The cache returns an object of its own for a file that the repository does not have.
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
