"""Saves head sets and scores to folders and to repositories of the Hugging Face hub, with a model card, and loads them."""

import errno
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from alps.errors import AlpsError, ArgumentError, CheckpointError, MissingPackageError
from alps.files import check_regular, write_whole
from alps.optional import needed, visual

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CARD = "README.md"
_REMOTE = "'alps-heads[remote]'"
_LARGEST_CARD = 16 * 2**20
"""Bytes of a model card."""
_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@\s]+))?", re.ASCII)
"""`owner/name[@revision]` on the hub."""

_T = TypeVar("_T", bound="Shareable")


class Shareable:
    """Something that is saved with a model card, in a folder or in a repository of the Hugging Face hub."""

    __slots__ = ()
    _file: ClassVar[str]
    """The name of the file in a folder or a repository."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, base_model: str | None = None
    ) -> None:
        """Saves to a folder: the file, a map of it as PNG where matplotlib is installed, and a model card.

        A card that is there keeps its text and its metadata, and gets a section, or the section anew.

        Examples:
            >>> heads = alps.HeadSet.load("heads.json")
            >>> heads.save_pretrained("my-heads")
            >>> alps.HeadSet.from_pretrained("my-heads") == heads
            True

        Args:
            save_directory: The folder, which is made if there is none.
            base_model: The id of the base model on the hub, for the card's metadata; when not given, the base that was
                scanned, if it came from the hub.

        Raises:
            ArgumentError: `base_model` is no id of a model on the hub.
            CheckpointError: The folder has a card whose metadata cannot be read.
            MissingPackageError: huggingface_hub is not installed.
            OSError: A file cannot be read or written.
        """
        folder = Path(save_directory)
        with needed("a model card", _REMOTE):
            import huggingface_hub  # noqa: F401
        card = folder / _CARD
        old = _text_of(card) if card.exists() else ""
        files = self._files(old, None, base_model)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        base_model: str | None = None,
    ) -> str:
        """Uploads to a model repository of the Hugging Face hub, in one commit, what `save_pretrained` saves.

        The repository is made if there is none. One that has other files, such as a model, keeps them, and its card
        keeps its text and its metadata.

        Examples:
            >>> heads = alps.HeadSet.load("heads.json")
            >>> commit = heads.push_to_hub("owner/name")  # doctest: +SKIP
            >>> heads == alps.HeadSet.from_pretrained("owner/name")  # doctest: +SKIP
            True

        Args:
            repo_id: The repository, `owner/name`, or `name` for one of the user's own.
            commit_message: The title of the commit, or of the pull request.
            commit_description: The text of the commit, or of the pull request.
            private: Whether a new repository is private; as the owner has set it when not given.
            token: A token of the hub; the one that `hf auth login` keeps when not given, none at all when False.
            revision: The branch to commit to, which is made if there is none; the main one when not given.
            create_pr: Whether to open a pull request instead of committing to the branch.
            base_model: The id of the base model on the hub, for the card's metadata; when not given, the base that was
                scanned, if it came from the hub.

        Returns:
            The address of the commit, a `CommitInfo` of huggingface_hub.

        Raises:
            ArgumentError: `repo_id` or `base_model` is no id, or the hub refuses the card or an argument.
            CheckpointError: The repository has a card whose metadata cannot be read.
            MissingPackageError: huggingface_hub is not installed.
            OSError: The hub cannot be reached or refuses, as without a token that may write.
        """
        with needed("the hub", _REMOTE):
            from huggingface_hub import CommitOperationAdd, HfApi, errors, hf_hub_download
        check_id(repo_id, "repo_id")
        with _asking(repo_id):
            api = HfApi(token=token)
            name = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model").repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(name, branch=revision, exist_ok=True)
            try:
                old = _text_of(Path(hf_hub_download(name, _CARD, revision=revision, token=token)))
            except errors.LocalEntryNotFoundError:  # the hub could not be asked
                raise
            except errors.EntryNotFoundError:
                old = ""
            files = self._files(old, name, base_model)
            commit: str = api.create_commit(
                name,
                [CommitOperationAdd(path, content) for path, content in files.items()],
                commit_message=commit_message or f"Add {self._file} of alps",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )
        return commit

    @classmethod
    def from_pretrained(
        cls: type[_T],
        pretrained_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> _T:
        """Loads what `push_to_hub` or `save_pretrained` saved.

        Examples:
            >>> alps.HeadSet.load("heads.json").save_pretrained("my-heads")
            >>> alps.HeadSet.from_pretrained("my-heads").pairs()
            [(0, 5), (1, 2), (1, 3), (3, 6)]
            >>> heads = alps.HeadSet.from_pretrained("owner/name")  # doctest: +SKIP

        Args:
            pretrained_name_or_path: A folder, a file, or else the `owner/name[@revision]` of a model on the hub.
            revision: The branch, tag or commit on the hub.
            token: A token of the hub; the one that `hf auth login` keeps when not given, none at all when False.
            cache_dir: The folder for what is downloaded; the hub's local cache when not given.
            force_download: Whether to download what the cache has.
            local_files_only: Whether to ask nothing of the network, as HF_HUB_OFFLINE=1 does.

        Returns:
            What was saved.

        Raises:
            ArgumentError: A revision is given twice, or for a path.
            CheckpointError: The file holds something else.
            FileNotFoundError: There is no such path, or no such model, revision or file on the hub.
            MissingPackageError: huggingface_hub is not installed.
            OSError: The file cannot be read, or the hub cannot be reached or refuses access.
        """
        text = os.fspath(pretrained_name_or_path)
        path = Path(text)
        if path.exists():
            if revision is not None:
                raise ArgumentError(f"revision goes with a model on the hub, found the path {text}")
            return cls.load(path / cls._file if path.is_dir() else path)  # type: ignore[attr-defined, no-any-return]
        found = _NAME.fullmatch(text) if isinstance(pretrained_name_or_path, str) else None
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file or folder", text)
        if revision is not None and found["revision"] is not None:
            raise ArgumentError(f"revision: expected it once, found {text} and {revision}")
        with needed(f"{text}, which is no path, from the hub", _REMOTE):
            from huggingface_hub import constants, errors, hf_hub_download
        try:
            with _asking(text):
                file = hf_hub_download(
                    found["name"],
                    cls._file,
                    revision=revision or found["revision"],
                    token=token,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    force_download=force_download,
                    local_files_only=local_files_only,
                )
        except errors.LocalEntryNotFoundError:
            asked = not (local_files_only or constants.HF_HUB_OFFLINE)
            why = "the hub cannot be asked, and" if asked else "there is no such file or folder, and"
            advice = f"{why} no {cls._file} of such a model is in the hub's local cache"
            raise FileNotFoundError(errno.ENOENT, advice, text) from None
        except errors.EntryNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"the model has no {cls._file}", text) from None
        return cls.load(file)  # type: ignore[attr-defined, no-any-return]

    def _files(self, card: str, name: str | None, base_model: str | None) -> dict[str, bytes]:
        """The files of a repository by name, given the card that it has."""
        what: Any = self
        if base_model is None:
            base_model = _hub_id_of_base(what.provenance)
        else:
            check_id(base_model, "base_model")
        files = {self._file: self._encoded()}
        picture = None
        if what.geometry.layers:
            with suppress(MissingPackageError):
                image = visual("image_file", "a picture").encode(self._map(), "png")
                picture = f"{Path(self._file).stem}.png"
                files[picture] = image
        page: str = visual("model_card", "a model card").update(card, what, name, picture, base_model)
        return files | {_CARD: page.encode()}

    @abstractmethod
    def _encoded(self) -> bytes:
        """The content of the file."""

    @abstractmethod
    def _map(self) -> "Figure":
        """The picture of a card."""


def check_id(text: str, what: str) -> None:
    """Checks the id of a model on the hub; messages call it `what`.

    Raises:
        ArgumentError: It is none.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise ArgumentError(f"{what}: {error}") from None


def _hub_id_of_base(provenance: Mapping[str, str]) -> str | None:
    """The id of the base on the hub; None if it did not come from there."""
    found = _NAME.fullmatch(provenance.get("base", "")) if "base_commit" in provenance else None
    return None if found is None else found["name"]


def _text_of(card: Path) -> str:
    if (size := check_regular(card)) > _LARGEST_CARD:
        raise CheckpointError(f"{card}: expected a model card, found a file of {size} bytes")
    try:
        return card.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{card}: expected text in UTF-8: {error}") from None


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turns what the hub's library raises into errors of alps and of Python, but for a file that is not there."""
    from huggingface_hub import errors

    from alps.remote.hub import access
    from alps.remote.store import describe

    try:
        with access(name):
            yield
    except (AlpsError, FileNotFoundError, PermissionError, errors.EntryNotFoundError):
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        kind = PermissionError if status in (401, 403) else OSError
        code = errno.EACCES if kind is PermissionError else errno.EIO
        raise kind(code, f"the hub refuses: {describe(error)}", name) from None
    except ValueError as error:
        raise ArgumentError(f"{name}: {describe(error)}") from None
    except Exception as error:  # the libraries below have errors of their own
        cause = error.__cause__ or error
        raise OSError(errno.EIO, f"the hub cannot be asked: {describe(cause)}", name) from error
