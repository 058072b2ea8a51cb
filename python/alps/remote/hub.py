"""Checkpoints on the Hugging Face hub, of which only the ranges that are needed are fetched."""

import errno
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alps.optional import needed
from alps.remote import store, web
from alps.remote.store import Content, StatusError, Store, delay


@contextmanager
def access(name: str) -> Iterator[None]:
    """Turns a refusal of the hub inside the block into Python's own error, which says what to do.

    Args:
        name: The model that the block asks for.

    Raises:
        FileNotFoundError: There is no such model or revision on the hub, or it is private.
        PermissionError: The hub refuses access.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        advice = "the hub refuses access to this model: ask for it on its page, and log in (hf auth login)"
        raise PermissionError(errno.EACCES, advice, name) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        missing = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model"
        advice = f"there is no such {missing} on the hub, or it is private (log in with: hf auth login)"
        raise FileNotFoundError(errno.ENOENT, advice, name) from None


class HubStore(Store):
    """One commit of a model on the hub. A file that is in the hub's local cache is read there.

    Attributes:
        root: The location of its files: "hf://owner/name@commit".
        commit: The commit.
    """

    def __init__(self, name: str, revision: str | None):
        """Finds the commit of a revision.

        Raises:
            FileNotFoundError: There is no such model or revision on the hub, or it is private.
            PermissionError: The hub refuses access.
            OSError: The hub cannot be reached.
        """
        super().__init__()
        with needed("a checkpoint on the hub", "'alps-heads[remote]'"):
            import huggingface_hub
            from huggingface_hub import errors
        self._hub: Any = huggingface_hub

        def ask() -> Any:
            store.count("requests")
            try:
                with access(name):
                    return huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
            except errors.HfHubHTTPError as error:
                raise _status_error(error.response) from None

        try:
            info = self._attempt(name, ask, attempts=2)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            reason = f"there is no such file or folder, and the hub cannot be asked: {error.strerror}"
            raise OSError(errno.EIO, reason, name) from None
        self.commit: str = info.sha
        self.root = f"hf://{info.id}@{info.sha}"
        self._id: str = info.id
        self._sizes: dict[str, int | None] = {file.rfilename: file.size for file in info.siblings or ()}

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder."""
        path = self._path(folder)
        if path in self._sizes:
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", folder)
        prefix = f"{path}/" if path else ""
        names = {file[len(prefix) :].split("/")[0] for file in self._sizes if file.startswith(prefix)}
        if not names:
            raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", folder)
        return sorted(names)

    def _status(self, file: str, fresh: bool) -> tuple[int, str]:
        size = self._sizes.get(self._path(file))
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", file)
        return size, self.commit

    def _read(self, file: str, start: int, end: int) -> Content:
        path = self._path(file)
        cached = self._hub.try_to_load_from_cache(self._id, path, revision=self.commit)
        if isinstance(cached, str):
            with Path(cached).open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)
        address = self._hub.hf_hub_url(self._id, path, revision=self.commit)
        response = web.get(address, start, end, self._hub.utils.build_hf_headers())
        web.check_range(response, self._sizes[path] or 0, end - start)
        return web.content(response, end - start)

    def _path(self, location: str) -> str:
        """The path within the repository."""
        return posixpath.normpath(location[len(self.root) :].strip("/")).removeprefix(".")


def _status_error(response: Any) -> StatusError:
    return StatusError(response.status_code, delay(response.headers))
