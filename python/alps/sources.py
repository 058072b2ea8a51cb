"""Finds a checkpoint by its path, its name on the hub, or its URL."""

import errno
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import alps._alps as _alps
from alps.errors import AlpsError, ArgumentError, CheckpointError
from alps.optional import needed
from alps.remote.store import Store, describe, without_secrets

_HUB_NAME = re.compile(r"(?P<name>([\w][\w.-]*/)?[\w][\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
"""`owner/name[@revision]`, or `name[@revision]` of an old model such as gpt2."""
_HUB_URL = re.compile(
    r"(hf://(models/)?|https://(huggingface\.co|hf\.co)/)(?P<name>[\w][\w.-]*/[\w][\w.-]*)"
    r"(@(?P<revision>refs/(pr|convert)/[^@/\s]+|[^@/\s]+))?(/(tree|blob|resolve)/(?P<branch>[^/?\s]+))?(?P<folder>/[^?\s]*)?",
    re.ASCII,
)
"""A model on the hub, or a folder of it: by the scheme of huggingface_hub, or by its page."""
_CONFIGURATIONS = ("config.json", "adapter_config.json", "params.json")
"""Every checkpoint on the hub has one of these files."""


@dataclass(frozen=True)
class RemotePath:
    """A path in a filesystem of fsspec that the caller made, with any credentials and options.

    Examples:
        >>> import fsspec
        >>> filesystem = fsspec.filesystem("memory")  # or any other of fsspec
        >>> filesystem.put("tuned", "/models/tuned", recursive=True)
        >>> scores = alps.scan("base", alps.RemotePath(filesystem, "/models/tuned"))
        >>> scores.top(1)  # (layer, head, score)
        [(0, 5, 0.344...)]

    Attributes:
        fs: The filesystem.
        path: The path in it, of a folder or a file.
    """

    fs: Any
    path: str


@dataclass(frozen=True)
class Source:
    """A checkpoint.

    Attributes:
        path: The file or folder of the weights; for an adapter, of the weights that it changes.
        name: The name that the caller gave, without passwords and signatures.
        commit: The commit of a checkpoint from the hub; None for any other.
        store: The store that has the weights; None if they are on this machine.
        adapter: The folder of an adapter; None where there is none.
        adapter_store: The store that has the adapter, likewise.
        over: The name of the weights that the adapter changes.
        trained_on: The name of these weights in the configuration of the adapter.
    """

    path: str
    name: str
    commit: str | None
    store: Store | None = None
    adapter: str | None = None
    adapter_store: Store | None = None
    over: str | None = None
    trained_on: str | None = None

    @property
    def location(self) -> tuple[str, Store | None]:
        """The weights, as the extension takes them."""
        return self.path, self.store

    @property
    def paths(self) -> "_alps._Paths":
        """The weights and the adapter, as the extension takes them."""
        return self.location, None if self.adapter is None else (self.adapter, self.adapter_store)

    @property
    def stores(self) -> list[Store]:
        """The stores of both."""
        return [store for store in (self.store, self.adapter_store) if store is not None]

    def provenance(self, role: str) -> dict[str, str]:
        """Where the weights come from; the names of the fields begin with `role`, "base" or "tuned"."""
        fields = {
            role: self.name,
            f"{role}_commit": self.commit,
            f"{role}_adapter_over": self.over,
            f"{role}_adapter_trained_on": self.trained_on,
        }
        return {name: value for name, value in fields.items() if value is not None}


Name: TypeAlias = str | os.PathLike[str] | RemotePath
"""The name of a checkpoint: a path, a name on the hub, a URL, or a path in a filesystem of fsspec."""


def find_both(
    base: Name, tuned: Name, adapter_base: Name | None, local_files_only: bool = False
) -> tuple[Source, Source]:
    """Finds the base and the tuned checkpoint.

    An adapter changes the weights of `adapter_base`. When that is not given, a tuned adapter changes those of
    `base`, unless `base` is an adapter as well; any other adapter changes those that its configuration names.

    Raises:
        FileNotFoundError: There is no such checkpoint; with `local_files_only`, none on this machine.
        ArgumentError: A name is no valid name on the hub, or `adapter_base` is given and nothing is an adapter.
        CheckpointError: The weights that an adapter changes cannot be found.
    """
    found = locate(base, local_files_only), locate(tuned, local_files_only)
    adapters = [_alps.adapter(source.location) for source in found]
    given = None if adapter_base is None else locate(adapter_base, local_files_only)
    if given is not None and adapters == [None, None]:
        names = f"neither {found[0].name} nor {found[1].name} is an adapter"
        raise ArgumentError(f"adapter_base is {given.name}, but {names}")
    first = _with_base(found[0], adapters[0], given, None, local_files_only)
    other = found[0] if adapters[0] is None else None
    return first, _with_base(found[1], adapters[1], given, other, local_files_only)


def find(name: Name, local_files_only: bool = False) -> Source:
    """Finds one checkpoint; an adapter with the weights that its configuration names.

    Raises:
        FileNotFoundError: There is no such checkpoint; with `local_files_only`, none on this machine.
        ArgumentError: The name is no valid name on the hub.
        CheckpointError: The weights that an adapter changes cannot be found.
    """
    source = locate(name, local_files_only)
    return _with_base(source, _alps.adapter(source.location), None, None, local_files_only)


def _with_base(
    source: Source,
    adapter: _alps.Adapter | None,
    given: Source | None,
    other: Source | None,
    local_files_only: bool,
) -> Source:
    """Adds to an adapter the weights that it changes: those given, its own, the other checkpoint's, or those named."""
    if adapter is None:
        return source
    # Weights in the adapter's own folder come before those that its configuration names, as in transformers.
    whole = replace(source, path=adapter.folder, name=adapter.folder) if adapter.is_whole else None
    base = given or whole or other or _named_base(source, adapter, local_files_only)
    if base is not whole and _alps.adapter(base.location) is not None:
        raise CheckpointError(
            f"{source.name}: the weights that the adapter changes should be those of a checkpoint, but "
            f"{base.name} is an adapter as well; merge that into its base first"
        )
    return replace(
        source,
        path=base.path,
        store=base.store,
        adapter=adapter.folder,
        adapter_store=source.store,
        over=base.name,
        trained_on=adapter.base or None,
    )


def _named_base(source: Source, adapter: _alps.Adapter, local_files_only: bool) -> Source:
    what_to_do = "say which checkpoint it changes (adapter_base=, on the command line --adapter-base)"
    if not adapter.base:
        raise CheckpointError(
            f"{source.name}: the adapter's configuration has no `base_model_name_or_path`; {what_to_do}"
        )
    name = adapter.base
    if "://" in name:
        # A file from somebody else does not decide which servers are asked.
        raise CheckpointError(f"{source.name}: the adapter was trained on {name!r}, an address; {what_to_do}")
    if adapter.revision and not Path(name).exists():
        name += f"@{adapter.revision}"
    try:
        return locate(name, local_files_only)
    except (OSError, ArgumentError) as error:
        raise CheckpointError(
            f"{source.name}: the adapter was trained on {name}, which cannot be found "
            f"({getattr(error, 'strerror', None) or error}); {what_to_do}"
        ) from None


def locate(name: Name, local_files_only: bool = False) -> Source:
    """Finds a checkpoint: a path of this machine, else a URL, else `[owner/]name[@revision]` on the hub.

    What is whole in the hub's local cache is taken from there, without a question to the network.

    Raises:
        FileNotFoundError: There is none.
        ArgumentError: The name is no valid name on the hub, or a URL of a kind that nothing reads.
        MissingPackageError: A package that reads such a URL is not installed.
        OSError: The hub cannot be reached, or refuses access.
    """
    if not isinstance(name, str) and hasattr(name, "fs") and hasattr(name, "path"):
        return _locate_in_filesystem(name.fs, str(name.path), local_files_only)
    text = os.fspath(name)
    if not isinstance(text, str):
        raise ArgumentError(f"expected a path of text, found {text!r}")
    if Path(text).exists():
        return Source(path=text, name=text, commit=None)
    if isinstance(name, str) and "://" in text:
        return _locate_url(text, local_files_only)
    hub_name = _HUB_NAME.fullmatch(text) if isinstance(name, str) else None
    missing = FileNotFoundError(errno.ENOENT, "there is no such file or folder", text)
    if hub_name is None:
        raise missing
    try:
        return _locate_on_hub(text, hub_name["name"], hub_name["revision"], "", local_files_only)
    except (OSError, ArgumentError):
        if "/" in text:
            raise
        raise missing from None  # a name without owner was more likely meant as a path


def _locate_url(url: str, local_files_only: bool) -> Source:
    plain = without_secrets(url)
    if (found := _HUB_URL.fullmatch(url)) is not None:
        revision = unquote(found["revision"] or found["branch"] or "") or None
        folder = unquote(found["folder"] or "").strip("/")
        return _locate_on_hub(plain, found["name"], revision, folder, local_files_only)
    if local_files_only:
        raise FileNotFoundError(errno.ENOENT, "expected a file of this machine (local_files_only)", plain)
    if url.startswith(("http://", "https://")):
        from alps.remote.web import WebStore

        try:
            web = WebStore(url)
        except ValueError as error:
            raise ArgumentError(f"{plain}: {describe(error)}") from None
        return Source(path=web.root, name=web.root, commit=None, store=web)
    with needed(f"a checkpoint at {plain}", "'alps-heads[remote]'"):
        import fsspec
    try:
        with needed(
            f"a checkpoint at {plain}", f"the package that fsspec names for {url.split('://')[0]}://"
        ):
            filesystem, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise ArgumentError(f"{plain}: {describe(error)}") from None
    return _locate_in_filesystem(filesystem, path, local_files_only)


def _locate_in_filesystem(filesystem: Any, path: str, local_files_only: bool) -> Source:
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    if {"file", "local"} & set(protocols):
        return locate(Path(path), local_files_only)
    if {"http", "https"} & set(protocols):
        return _locate_url(path, local_files_only)
    name = without_secrets(filesystem.unstrip_protocol(path))
    if local_files_only:
        raise FileNotFoundError(errno.ENOENT, "expected a file of this machine (local_files_only)", name)
    from alps.remote.object_store import ObjectStore

    store = ObjectStore(filesystem, path)
    return Source(path=store.location, name=name, commit=None, store=store)


def _locate_on_hub(text: str, name: str, revision: str | None, folder: str, local_files_only: bool) -> Source:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no such file or folder, and the Hugging Face hub can be asked only where huggingface_hub is "
            "installed (pip install 'alps-heads[remote]')",
            text,
        ) from None
    files = [f"{folder}/{file}".lstrip("/") for file in _CONFIGURATIONS]
    try:
        # A cache may lack files that nobody reads, so it is not asked for a whole snapshot.
        found = [hub.try_to_load_from_cache(name, file, revision=revision) for file in files]
    except ValueError as error:
        raise ArgumentError(f"{text}: {error}") from None
    # The cache returns an object of its own for a file that the repository does not have.
    path = next((Path(file).parent for file in found if isinstance(file, str)), None)
    offline = local_files_only or hub.constants.HF_HUB_OFFLINE
    if path is not None and (offline or _has_all_weights(path)):
        depth = len(Path(folder).parts)
        return Source(path=str(path), name=text, commit=[path, *path.parents][depth].name)
    if offline:
        download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no such file or folder, and no such model in the local cache of the Hugging Face hub "
            f"(fetch it with: {download})",
            text,
        )
    from alps.remote.hub import HubStore

    store = HubStore(name, revision)
    return Source(path=f"{store.root}/{folder}".rstrip("/"), name=text, commit=store.commit, store=store)


def _has_all_weights(folder: Path) -> bool:
    """Whether a folder of the hub's cache has weights, and all shards that its index names."""
    indexes = list(folder.glob("*.safetensors.index*.json"))
    for index in indexes:
        try:
            shards = _alps.index_shards(str(index))
        except (AlpsError, OSError):
            return True  # the scan says what is wrong with it
        if not all((folder / shard).exists() for shard in shards):
            return False
    # A shard without an index is one of several.
    return bool(indexes) or any("-of-" not in file.name for file in folder.glob("*.safetensors"))


def configuration_digests(source: Source) -> list[str]:
    """SHA-256 of each configuration of a checkpoint, and of the adapter over it."""
    folders = [Folder(*source.location)]
    if source.adapter is not None:
        folders.append(Folder(source.adapter, source.adapter_store))
    digests = []
    for folder in folders:
        digests.append(folder.digest("config.json") or folder.digest("params.json"))
        digests.append(folder.digest("adapter_config.json"))
    return [digest for digest in digests if digest is not None]


class Folder:
    """The folder of a checkpoint, given its location, which may be that of a file in it."""

    def __init__(self, path: str, store: Store | None):
        self._store = store
        is_file = path.endswith((".safetensors", ".json")) if store else not Path(path).is_dir()
        if not is_file:
            self._path = path
        else:
            self._path = path.rpartition("/")[0] if store else str(Path(path).parent)

    def names(self) -> list[str]:
        """The names of the files and folders in it, sorted."""
        if self._store is None:
            return sorted(path.name for path in Path(self._path).iterdir())
        return sorted(self._store.names(self._path))

    def pieces(self, name: str) -> Iterator[bytes] | None:
        """The content of a file, piece by piece; None if there is no file of that name."""
        if self._store is None:
            file = Path(self._path) / name
            return _pieces_of(file) if file.is_file() else None
        path = f"{self._path}/{name}"
        try:
            size, _ = self._store.status(path)
        except FileNotFoundError:
            return None
        store = self._store
        starts = range(0, size, _PIECE)
        return (bytes(store.read(path, start, min(start + _PIECE, size))) for start in starts)

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file; None if it is empty, or if there is none of that name."""
        digest, is_empty = sha256(), True
        for piece in self.pieces(name) or ():
            digest.update(piece)
            is_empty = is_empty and not piece
        return None if is_empty else digest.hexdigest()

    def copy(self, name: str, to: Path) -> bool:
        """Copies a file; returns whether there is one of that name."""
        if (pieces := self.pieces(name)) is None:
            return False
        with to.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        return True


_PIECE = 16 * 2**20
"""Bytes that are read of a file at a time."""


def _pieces_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            yield piece
