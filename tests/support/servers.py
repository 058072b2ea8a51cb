"""Web servers on this machine that serve a folder, as fast and as faulty as a test wants."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from support.hub_writes import Commit, answer, branch_folder

_PIECE = 1 << 20
"""The bytes that are sent at a time."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Fault = Callable[["Request"], "str | None"]
"""Names the fault of an answer: one of those in `_Handler`; None for a right one."""


@dataclass
class Request:
    """A request for a file, as a fault sees it."""

    path: str
    number: int
    start: int
    end: int
    query: dict[str, list[str]]


@dataclass
class Server:
    """A running server.

    Attributes:
        folder: What it serves.
        latency: Seconds before it answers.
        rate: Bytes in a second that all answers together may have.
        fault: What is wrong with an answer.
        token: What requests have to bring as authorization; anything when None.
        hub: Whether it speaks as the hub: models by name, at one commit.
        missing: The status of a file that is not there.
        cdn: Where files are, if elsewhere: requests for them are redirected there.
        listed: What each request asked for: method, path, range, authorization.
        sent: Bytes of files.
        created: The models that somebody asked the hub to make.
        commits: What was committed to the hub, in order.
    """

    folder: Path
    latency: float = 0.0
    rate: float | None = None
    fault: Fault = lambda request: None
    token: str | None = None
    hub: bool = False
    missing: int = 404
    cdn: str | None = None
    listed: list[tuple[str, str, str, str | None]] = field(default_factory=list)
    sent: int = 0
    created: list[dict[str, object]] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_at: float = 0.0

    def wait_for_link(self, count: int) -> None:
        """Waits until the link has room for `count` more bytes."""
        if self.rate is None:
            return
        with self.lock:
            start = max(self.free_at, time.monotonic())
            self.free_at = start + count / self.rate
        time.sleep(max(0.0, start - time.monotonic()))

    def commit_of(self, folder: str) -> str:
        """The newest commit of a branch, given its folder."""
        of_branch = (
            it.oid
            for it in reversed(self.commits)
            if not it.is_pull_request and branch_folder(it.name, it.revision) == folder
        )
        return next(of_branch, COMMIT)

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.listed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "test"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    owner: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner, parts = self.owner, urlsplit(self.path)
        path = unquote(parts.path)
        with owner.lock:
            number = len(owner.listed)
            entry = self.command, path, self.headers.get("Range", ""), self.headers.get("Authorization")
            owner.listed.append(entry)
        time.sleep(owner.latency)
        if owner.token is not None and entry[3] != f"Bearer {owner.token}":
            return self._refuse(401)
        if owner.hub and path.startswith("/api/models/"):
            return self._model(path.removeprefix("/api/models/"))
        if owner.hub:
            name, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, file_name = rest.partition("/")
            if not (owner.folder / name).is_dir():
                return self._refuse(404, {"X-Error-Code": "RepoNotFound"})
            path = f"/{branch_folder(name, revision)}/{file_name}"
        file = owner.folder / path.lstrip("/")
        if not file.is_file():
            return self._refuse(owner.missing, {"X-Error-Code": "EntryNotFound"} if owner.hub else None)
        if owner.cdn is not None:
            self.send_response(302)
            self.send_header("Location", f"{owner.cdn}{path}?X-Signature=secret")
            self._hub_headers(file)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._file(file, path, number, parse_qs(parts.query))

    def _model(self, name: str) -> None:
        name, _, revision = name.partition("/revision/")
        folder = self.owner.folder / name
        if not folder.is_dir() or revision not in ("", "main", self.owner.commit_of(name)):
            missing = "RevisionNotFound" if folder.is_dir() else "RepoNotFound"
            return self._refuse(404, {"X-Error-Code": missing, "X-Error-Message": "not found"})
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": str(f.relative_to(folder)), "size": f.stat().st_size} for f in files]
        document = {
            "id": name,
            "sha": self.owner.commit_of(name),
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def _hub_headers(self, file: Path) -> None:
        if self.owner.hub:
            self.send_header(
                "X-Repo-Commit", self.owner.commit_of(str(file.parent.relative_to(self.owner.folder)))
            )
            self.send_header("X-Linked-Etag", _tag(file))
            self.send_header("X-Linked-Size", str(file.stat().st_size))

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _write(self) -> None:
        """Takes a file or a question about one, as the hub does."""
        owner, parts = self.owner, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        authorization = self.headers.get("Authorization")
        owner.listed.append((self.command, unquote(parts.path), "", authorization))
        stored = parts.path.startswith("/lfs/")  # the address itself permits it
        if owner.token is not None and authorization != f"Bearer {owner.token}" and not stored:
            return self._refuse(401)
        with owner.lock:
            status, document = answer(owner, parts.path, parse_qs(parts.query), body)
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, file: Path, path: str, number: int, query: dict[str, list[str]]) -> None:
        state = file.stat()
        start, end = 0, state.st_size
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1)
        fault = self.owner.fault(Request(path, number, start, end, query))
        match fault:
            case "429":
                return self._refuse(429, {"Retry-After": "0"})
            case "400" | "403" | "500" | "503":
                return self._refuse(int(fault))
            case "drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
            case "whole":
                wanted, start, end = "", 0, state.st_size
        if start >= state.st_size:
            return self._refuse(416, {"Content-Range": f"bytes */{state.st_size}"})
        sent = (end - start) // 2 if fault in ("short", "cut") else end - start
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{state.st_size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", _tag(file))
        self._hub_headers(file)
        self.send_header("Content-Length", str(end - start if fault == "cut" else sent))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "cut":
            self.close_connection = True
        self.wfile.flush()
        with file.open("rb") as stream:
            for place in range(start, start + sent, _PIECE):
                count = min(_PIECE, start + sent - place)
                self.owner.wait_for_link(count)
                while count > 0:
                    done = os.sendfile(self.connection.fileno(), stream.fileno(), place, count)
                    place, count = place + done, count - done
        with self.owner.lock:
            self.owner.sent += sent
        return None


def _tag(file: Path) -> str:
    state = file.stat()
    return f'"{state.st_mtime_ns:x}-{state.st_size:x}"'


class _ThreadingServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: object) -> None:
        """Says nothing of clients that hang up."""


@contextmanager
def serve(folder: Path, **settings: object) -> Iterator[Server]:
    """Serves a folder until the block ends."""
    owner = Server(folder, **settings)  # type: ignore[arg-type]
    handler = type("Handler", (_Handler,), {"owner": owner})
    with _ThreadingServer(("127.0.0.1", 0), handler) as server:
        owner.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield owner
        finally:
            server.shutdown()
            thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Lets huggingface_hub take a server for the hub, with its token."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def random_faults(seed: int, share: float, kinds: tuple[str, ...]) -> Fault:
    """Answers of which some are faulty, at random."""
    generator, lock = random.Random(seed), threading.Lock()

    def fault(request: Request) -> str | None:
        with lock:
            return generator.choice(kinds) if generator.random() < share else None

    return fault
