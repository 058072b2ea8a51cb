"""Scans that are spread over the workers of an executor, and checkpoints in the stand-ins of object stores."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

import alps
from alps.errors import CheckpointError, WorkerError
from support.checkpoints import Shape, random_weights, write

SHAPE = Shape(layers=9, query_heads=4, key_value_heads=2, head_size=16, hidden_size=64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    base, change = random_weights(SHAPE, seed=0), random_weights(SHAPE, seed=1, scale=0.001)
    tuned = {name: weight + change[name] for name, weight in base.items()}
    return write(folder / "base", SHAPE.config(), base), write(folder / "tuned", SHAPE.config(), tuned)


def test_processes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected = alps.scan(*pair)
    done: list[tuple[int, int]] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        scores = alps.scan(*pair, executor=executor, progress=lambda *it: done.append(it), threads=1)
        assert scores == expected
        assert scores.provenance == expected.provenance
        assert done[-1][0] == done[-1][1] > 0
        kept = tmp_path / "kept.safetensors"
        alps.scan_part(*pair, 1, 3).save(kept)
        assert alps.scan(*pair, executor=executor, resume=kept) == expected
        assert len(alps.Part.load(kept).rows) == SHAPE.layers
        with pytest.raises(FileNotFoundError):
            alps.scan(*pair, executor=executor, adapter_base=tmp_path / "missing")


class Faulty(Executor):
    """Loses every task the first times that it is sent."""

    def __init__(self, times: int):
        self.inner, self.times = ThreadPoolExecutor(2), times
        self.sent: dict[Any, int] = {}

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        key = tuple(arguments[1])
        self.sent[key] = self.sent.get(key, 0) + 1
        if self.sent[key] <= self.times:
            lost: Future[Any] = Future()
            lost.set_exception(ConnectionError("the worker is lost"))
            return lost
        return self.inner.submit(function, *arguments, **named)


def test_a_lost_range_is_sent_again_twice(pair: tuple[Path, Path]) -> None:
    assert alps.scan(*pair, executor=Faulty(2)) == alps.scan(*pair)
    with pytest.raises(
        WorkerError, match=r"layers \d to \d failed at attempt 3: ConnectionError: the worker is lost"
    ):
        alps.scan(*pair, executor=Faulty(3))


def test_a_worker_with_other_files_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    class Elsewhere(ThreadPoolExecutor):
        """A worker that finds another state of the tuned file."""

        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
            os.utime(pair[1] / "model.safetensors", ns=(1, 1))
            return super().submit(function, *arguments, **named)

    state = (pair[1] / "model.safetensors").stat()
    try:
        with pytest.raises(CheckpointError, match=f"the worker on {socket.gethostname()} found other files"):
            alps.scan(*pair, executor=Elsewhere(1))
    finally:
        os.utime(pair[1] / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))


def test_dask_with_a_worker_that_is_killed(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    expected = alps.scan(*pair)
    monkeypatch.chdir(pair[0].parent)  # that of the workers as well
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        os.kill(next(iter(cluster.workers.values())).pid, 9)
        names: dict[str, Any] = {"alps": alps, "client": client}
        exec(EXAMPLES[1], names)
        assert names["scores"] == expected


EXAMPLES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/remote.md").read_text(), re.DOTALL
)
"""The examples of the docs: processes, Dask, Ray."""


def test_the_processes_of_the_docs(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    names: dict[str, Any] = {"alps": alps}
    exec(EXAMPLES[0], names)
    assert names["scores"] == alps.scan(*pair)
    assert len(EXAMPLES) == 3


def test_the_executor_of_the_docs_for_ray(pair: tuple[Path, Path]) -> None:
    ray = pytest.importorskip("ray")
    names: dict[str, Any] = {"concurrent": concurrent, "ray": ray}
    exec(EXAMPLES[2], names)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        assert alps.scan(*pair, executor=names["RayExecutor"]()) == alps.scan(*pair)
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a stand-in for S3."""
    server = pytest.importorskip("moto.server")
    started = server.ThreadedMotoServer(port=0)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


def test_s3(pair: tuple[Path, Path], s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    filesystem = s3fs.S3FileSystem(endpoint_url=s3)
    filesystem.mkdir("models")
    for folder in pair:
        filesystem.put(str(folder), f"models/{folder.name}", recursive=True)
    expected = alps.scan(*pair)
    assert alps.scan("s3://models/base", alps.RemotePath(filesystem, "models/tuned")) == expected
    assert alps.scan(pair[0], "s3://models/tuned/model.safetensors") == expected
    with pytest.raises(FileNotFoundError):
        alps.geometry("s3://models/missing")


def test_gcs(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it, gcsfs asks by gRPC what kind of bucket it is, which the stand-in does not speak.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    try:
        port = server._api._httpd.socket.getsockname()[1]
        filesystem = gcsfs.GCSFileSystem(
            token="anon", endpoint_url=f"http://127.0.0.1:{port}", project="test"
        )
        for folder in pair:
            for file in folder.iterdir():
                upload = f"http://127.0.0.1:{port}/upload/storage/v1/b/models/o?uploadType=media&name={folder.name}/{file.name}"
                urlopen(
                    Request(upload, file.read_bytes(), {"Content-Type": "application/octet-stream"})
                ).close()
        expected = alps.scan(*pair)
        found = alps.scan(
            alps.RemotePath(filesystem, "models/base"), alps.RemotePath(filesystem, "models/tuned")
        )
        assert found == expected
        assert json.loads(filesystem.cat_file("models/base/config.json"))["model_type"] == "llama"
    finally:
        server.stop()
