"""What the stand-in of the hub answers to uploads: repositories, branches, commits, and files by Git's large file storage."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from support.servers import Server

_LARGE = (".safetensors", ".png")
"""Files that the hub wants by large file storage, whatever their size."""


@dataclass
class Commit:
    """A commit to a model.

    Attributes:
        oid: Its number.
        name: The model.
        revision: The branch.
        is_pull_request: Whether it waits in a pull request.
        header: Its message and description.
        files: The content of its files by path.
        large: Those that came by large file storage.
    """

    oid: str
    name: str
    revision: str
    is_pull_request: bool
    header: dict[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)


def branch_folder(name: str, revision: str) -> str:
    """The folder of a branch of a model; that of the main one has the name of the model."""
    branch = unquote(revision)
    return name if len(branch) == 40 or branch == "main" else f"{name}@{branch.replace('/', '+')}"


def answer(
    server: Server, path: str, query: dict[str, list[str]], body: bytes
) -> tuple[int, dict[str, Any] | list[Any]]:
    """The status and the document with which the hub answers a POST or a PUT."""
    if path == "/api/repos/create":
        return _create(server, json.loads(body))
    if path == "/api/validate-yaml":
        return _validate(json.loads(body)["content"])
    if path.startswith("/lfs/"):
        oid = path.removeprefix("/lfs/")
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the content is not that of its hash"}
        (server.folder / ".lfs").mkdir(exist_ok=True)
        (server.folder / ".lfs" / oid).write_bytes(body)
        return 200, {}
    if path.endswith("/info/lfs/objects/batch"):
        asked = json.loads(body)
        upload = {it["oid"]: {"href": f"{server.url}/lfs/{it['oid']}"} for it in asked["objects"]}
        objects = [{**it, "actions": {"upload": upload[it["oid"]]}} for it in asked["objects"]]
        return 200, {"transfer": "basic", "objects": objects}
    name, _, rest = path.removeprefix("/api/models/").partition("/preupload/")
    if rest:
        files = json.loads(body)["files"]
        modes = ["lfs" if it["path"].endswith(_LARGE) else "regular" for it in files]
        pairs = zip(files, modes, strict=True)
        return 200, {
            "files": [{"path": it["path"], "uploadMode": mode, "shouldIgnore": False} for it, mode in pairs]
        }
    name, _, branch = path.removeprefix("/api/models/").partition("/branch/")
    if branch:
        (server.folder / branch_folder(name, branch)).mkdir()
        return 200, {}
    name, _, revision = path.removeprefix("/api/models/").partition("/commit/")
    lines = [json.loads(line) for line in body.splitlines()]
    return _commit(server, name, unquote(revision), "create_pr" in query, lines)


def _create(server: Server, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    name = f"{asked['organization'] or 'someone'}/{asked['name']}"
    folder = server.folder / name
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    server.created.append(asked)
    return 409 if existed else 200, {"url": f"{server.url}/{name}", "name": name}


def _validate(content: str) -> tuple[int, dict[str, Any]]:
    _, metadata, _ = content.split("---\n", 2)
    document = yaml.safe_load(metadata)
    base = document.get("base_model")
    if base is not None and (not isinstance(base, str) or base.count("/") != 1):
        return 400, {"errors": [{"message": f"base_model: expected an id, found {base!r}"}]}
    return 200, {"errors": [], "warnings": []}


def _commit(
    server: Server, name: str, revision: str, is_pull_request: bool, lines: list[dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    oid = f"{len(server.commits) + 1:040x}"
    commit = Commit(oid, name, revision, is_pull_request, lines[0]["value"])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            commit.files[value["path"]] = base64.b64decode(value["content"])
        else:
            commit.files[value["path"]] = (server.folder / ".lfs" / value["oid"]).read_bytes()
            commit.large.add(value["path"])
    server.commits.append(commit)
    if not is_pull_request:
        for path, content in commit.files.items():
            (server.folder / branch_folder(name, revision) / path).write_bytes(content)
    return 200, {
        "commitUrl": f"{server.url}/{name}/commit/{oid}",
        "commitOid": oid,
        "pullRequestUrl": f"{server.url}/{name}/discussions/1" if is_pull_request else None,
    }
