"""Checkpoints that are elsewhere: on web servers, the hub and in object stores, with faults, and without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

import alps
from alps import sources
from alps.errors import ArgumentError, CheckpointError
from alps.remote import store
from alps.remote.store import delay, without_secrets
from support.checkpoints import Shape, random_weights, write
from support.servers import COMMIT, Request, Server, random_faults, serve, use_hub

SHAPE = Shape(layers=6, query_heads=8, key_value_heads=4, head_size=64, hidden_size=512)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are short."""
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`owner/base` in two shards beside much else, and `owner/tuned` in one file."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("served")
    weights = {name: it.to(torch.bfloat16) for name, it in random_weights(SHAPE, seed=0).items()}
    other = random_weights(SHAPE, seed=1, scale=0.001)
    tuned = {name: (it.double() + other[name]).to(torch.bfloat16) for name, it in weights.items()}
    write(folder / "owner" / "tuned", SHAPE.config(), tuned)
    base = folder / "owner" / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(SHAPE.config()))
    (base / "tokenizer.json").write_text("{}")
    names = sorted(weights)
    index: dict[str, str] = {}
    rest = {f"model.layers.{layer}.mlp.weight": torch.ones(1024, 2048) for layer in range(SHAPE.layers)}
    for number, part in enumerate([names[::2], names[1::2]], 1):
        file = f"model-0000{number}-of-00002.safetensors"
        tensors = {name: weights[name] for name in part} | (rest if number == 1 else {})
        save_file(tensors, base / file)
        index |= dict.fromkeys(tensors, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture(scope="module")
def local(folder: Path) -> alps.HeadScores:
    return alps.scan(folder / "owner" / "base", folder / "owner" / "tuned")


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A stand-in for the hub, whose files are at another address."""
    with serve(folder) as cdn, serve(folder, hub=True, cdn=cdn.url, token="hf_secret") as server:
        use_hub(monkeypatch, server)
        server.cdn_server = cdn  # type: ignore[attr-defined]
        yield server


def test_a_web_server_serves_little_more_than_what_is_scanned(folder: Path, local: alps.HeadScores) -> None:
    with serve(folder) as server:
        scores = alps.scan(f"{server.url}/owner/base/", f"{server.url}/owner/tuned/model.safetensors")
        assert scores == local
        assert scores.provenance["base"] == f"{server.url}/owner/base"
        headers = 3 * (100 << 10) + 20_000
        needed = alps.inspect(folder / "owner/base").bytes + alps.inspect(folder / "owner/tuned").bytes
        assert server.sent <= needed * 1.02 + headers
        assert server.requests < 60
        heads = [entry for entry in server.listed if entry[1].endswith("tuned/model.safetensors")]
        assert len(heads) == 3  # its header, its weights, its size at the end


def test_the_command_tells_how_much_was_fetched(folder: Path) -> None:
    with serve(folder) as server:
        base, tuned = f"{server.url}/owner/base", f"{server.url}/owner/tuned"
        command = [sys.executable, "-m", "alps.cli"]
        ran = subprocess.run([*command, "scan", base, tuned, "--json"], check=True, capture_output=True)
        fetched = json.loads(ran.stdout)["fetched"]
        assert fetched["requests"] == server.requests
        assert fetched["bytes"] <= server.sent
        files = [*(folder / "owner/base").glob("*.safetensors"), folder / "owner/tuned/model.safetensors"]
        assert fetched["stored"] == sum(file.stat().st_size for file in files)
        assert fetched["retries"] == 0
        ran = subprocess.run([*command, "inspect", base], check=True, capture_output=True)
        bytes_ = alps.inspect(folder / "owner/base")
        said = f"{bytes_.bytes:,} of {bytes_.weight_bytes:,} bytes to read from model.safetensors.index.json (2 files)"
        assert said in " ".join(ran.stdout.decode().split())
        ran = subprocess.run(
            [*command, "scan", base, tuned, "--part", "2/3", "--scores", os.devnull],
            check=False,
            capture_output=True,
        )
        assert ran.returncode == 1
        for arguments, error in (
            (["--part", "4/3", "--scores", "x"], "expected I/N"),
            (["--part", "1/3"], "--scores"),
            (["--part", "1/3", "--scores", "x.safetensors", "--heads", "y.json"], "merge the parts first"),
        ):
            ran = subprocess.run(
                [*command, "scan", base, tuned, *arguments], check=False, capture_output=True
            )
            assert ran.returncode == 2
            assert error in " ".join(ran.stderr.decode().split())


def test_everything_takes_an_address(folder: Path, tmp_path: Path, local: alps.HeadScores) -> None:
    heads = local.select(ratio=0.2)
    expected = alps.graft(folder / "owner/base", folder / "owner/tuned", heads, tmp_path / "expected")
    with serve(folder) as server:
        base, tuned = f"{server.url}/owner/base", f"{server.url}/owner/tuned"
        assert alps.geometry(base) == local.geometry
        found = alps.inspect(base)
        assert found.bytes == alps.inspect(folder / "owner/base").bytes
        assert found.weight_files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        sizes = [(folder / "owner/base" / name).stat().st_size for name in found.weight_files]
        assert found.weight_bytes == sum(sizes)
        done: list[tuple[int, int]] = []
        written = alps.graft(base, tuned, heads, tmp_path / "found", progress=lambda *it: done.append(it))
        assert done[-1] == (sum(sizes), sum(sizes))
    assert written.bytes == expected.bytes
    assert "config.json" in written.files
    for name in found.weight_files:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_filesystems_of_fsspec(folder: Path, local: alps.HeadScores) -> None:
    memory = fsspec.filesystem("memory")
    for file in (folder / "owner").rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/models/{file.relative_to(folder / 'owner')}", file.read_bytes())
    try:
        assert alps.scan("memory://models/base", alps.RemotePath(memory, "/models/tuned")) == local
        opened = fsspec.open("memory://models/tuned/model.safetensors")
        assert alps.scan(folder / "owner/base", opened) == local
        assert alps.geometry(f"file://{folder}/owner/base") == local.geometry
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            alps.geometry("memory://models/missing")
        with pytest.raises(FileNotFoundError, match="local_files_only"):
            alps.geometry("memory://models/base", local_files_only=True)
        with pytest.raises(ArgumentError, match="nosuch"):
            alps.geometry("nosuch://models/base")
    finally:
        memory.rm("/models", recursive=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_elsewhere(tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    from support.adapters import save_adapter, save_base

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    save_base(model, tmp_path / "base", torch.float32)
    for name, kind in (("lora", peft.LoraConfig), ("loha", peft.LoHaConfig)):
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        save_adapter(model, kind(target_modules=["q_proj", "v_proj"]), tmp_path / name)
        expected = alps.scan(tmp_path / "base", tmp_path / name)
        with serve(tmp_path) as server:
            assert alps.scan(f"{server.url}/base", f"{server.url}/{name}") == expected
            assert alps.scan(tmp_path / "base", f"{server.url}/{name}") == expected
    adapter = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = "https://elsewhere.example/model"
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(CheckpointError, match="an address; say which checkpoint"):
        alps.geometry(tmp_path / "lora")


def test_memory_is_bounded_whatever_the_threads(folder: Path, local: alps.HeadScores) -> None:
    """A bound below what one head takes makes a scan slow, and stops it never."""
    with serve(folder) as server:
        for memory in (1, 100_000, 3_000_000):
            for threads in (1, 5):
                scores = alps.scan(
                    f"{server.url}/owner/base", f"{server.url}/owner/tuned", memory=memory, threads=threads
                )
                assert scores == local
    with pytest.raises(ArgumentError, match="memory"):
        alps.scan(folder / "owner/base", folder / "owner/tuned", memory=0)


# Faults


TRANSIENT = ("429", "400", "403", "500", "503", "drop", "cut", "short")


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fault_once_is_retried(folder: Path, local: alps.HeadScores, kind: str) -> None:
    failed = set()

    def fault(request: Request) -> str | None:
        if request.end - request.start < 1000 or request.path in failed:
            return None
        failed.add(request.path)
        return kind

    with serve(folder, fault=fault) as server:
        before = store.TOTAL.retries
        assert alps.scan(f"{server.url}/owner/base", f"{server.url}/owner/tuned") == local
        assert store.TOTAL.retries > before
    assert len(failed) == 4


def test_a_bucket_that_lists_nothing_refuses_what_is_not_there(folder: Path, local: alps.HeadScores) -> None:
    """Object stores answer 403 for a missing file unless the caller may list the bucket."""
    with serve(folder, missing=403) as server:
        assert alps.scan(f"{server.url}/owner/base", f"{server.url}/owner/tuned") == local
        with pytest.raises(PermissionError, match="refuses access"):
            alps.geometry(f"{server.url}/owner/nothing")


def test_an_empty_file_is_said_to_be_empty(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "owner/base/config.json").read_bytes())
    (tmp_path / "model.safetensors").touch()
    with serve(tmp_path) as server, pytest.raises(CheckpointError, match="the file is empty"):
        alps.geometry(server.url)


def test_a_folder_that_looks_like_an_address_with_a_part(local: alps.HeadScores, folder: Path) -> None:
    """What is hidden in messages is no part of the path that is read."""
    memory = fsspec.filesystem("memory")
    for name, source in (("run#3", "tuned"), ("run", "base"), ("a  b?c=d", "tuned")):
        for file in (folder / "owner" / source).iterdir():
            memory.pipe_file(f"/models/{name}/{file.name}", file.read_bytes())
    try:
        for name in ("run#3", "a  b?c=d"):
            assert alps.scan("memory://models/run", alps.RemotePath(memory, f"/models/{name}")) == local
    finally:
        memory.rm("/models", recursive=True)


def test_a_store_that_cannot_say_what_is_there_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a folder with weights and an adapter would be read without the adapter."""
    monkeypatch.setattr(store, "ATTEMPTS", 2)

    def fault(request: Request) -> str | None:
        return "503" if request.path.endswith("adapter_config.json") else None

    (folder / "owner/base/adapter_config.json").write_text("{}")
    try:
        with serve(folder, fault=fault) as server, pytest.raises(OSError, match="status 503"):
            alps.geometry(f"{server.url}/owner/base")
    finally:
        (folder / "owner/base/adapter_config.json").unlink()


@pytest.mark.parametrize("url", ["https://[bad/model", "http://[::1/model"])
def test_a_malformed_address_is_an_argument_error(url: str) -> None:
    with pytest.raises(ArgumentError, match="IPv6"):
        alps.geometry(url)


def test_a_missing_local_path_of_a_filesystem_is_not_looked_for_on_the_hub(hub: Server) -> None:
    with pytest.raises(FileNotFoundError):
        alps.geometry(alps.RemotePath(fsspec.filesystem("file"), "owner/base"))
    assert hub.listed == []


def test_kept_layers_are_of_one_configuration(folder: Path, tmp_path: Path) -> None:
    """What the weights stand for is in configurations too."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        for file in (folder / "owner" / name).iterdir():
            (tmp_path / name / file.name).symlink_to(file)
    kept = tmp_path / "kept"
    alps.scan(tmp_path / "base", tmp_path / "tuned", resume=kept)
    config = json.loads((tmp_path / "tuned/config.json").read_text()) | {"rope_theta": 7}
    (tmp_path / "tuned/config.json").unlink()
    (tmp_path / "tuned/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tuned_configuration"):
        alps.scan(tmp_path / "base", tmp_path / "tuned", resume=kept)


def test_an_unfinished_layer_is_not_kept(folder: Path, tmp_path: Path) -> None:
    """A layer in which one group fails while another ends."""
    import torch
    from safetensors.torch import load_file, save_file

    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "config.json").write_bytes((folder / "owner/tuned/config.json").read_bytes())
    weights = load_file(folder / "owner/tuned/model.safetensors")
    weights["model.layers.3.self_attn.q_proj.weight"][-1, -1] = torch.nan
    save_file(weights, tuned / "model.safetensors")
    for run in range(5):
        kept = tmp_path / f"kept{run}"
        with serve(folder, latency=0.01) as server:
            for _ in range(2):
                with pytest.raises(alps.WeightsError, match="holds NaN"):
                    alps.scan(f"{server.url}/owner/base", tuned, resume=kept, threads=4, memory=1)
        part = alps.Part.load(kept)
        assert 3 not in part.rows
        assert all(np.isfinite(row["kl"]).all() for row in part.rows.values())


def test_a_server_without_ranges_is_refused(folder: Path) -> None:
    with serve(folder, fault=lambda request: "whole" if request.end > 1 else None) as server:
        with pytest.raises(OSError, match="knows no ranges") as raised:
            alps.scan(f"{server.url}/owner/base", f"{server.url}/owner/tuned")
        assert raised.value.filename == f"{server.url}/owner/base/model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("403", PermissionError, "refuses access"),
        ("503", OSError, "status 503"),
        ("drop", OSError, "."),
        ("cut", OSError, "."),
        ("short", OSError, "expected"),
    ],
)
def test_a_fault_that_stays_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 3)

    def fault(request: Request) -> str | None:
        return kind if request.path.endswith("2-of-00002.safetensors") and request.start else None

    with serve(folder, fault=fault) as server:
        with pytest.raises(error, match=said) as raised:
            alps.scan(f"{server.url}/owner/base", f"{server.url}/owner/tuned")
        assert raised.value.filename == f"{server.url}/owner/base/model-00002-of-00002.safetensors"  # type: ignore[attr-defined]


def test_random_faults_never_make_a_wrong_score(folder: Path, local: alps.HeadScores) -> None:
    """A few runs of many; `benches/remote.py --faults` makes hundreds."""
    for seed in range(12):
        with serve(folder, fault=random_faults(seed, 0.25, TRANSIENT)) as server:
            try:
                assert (
                    alps.scan(f"{server.url}/owner/base", f"{server.url}/owner/tuned", memory=3_000_000)
                    == local
                )
            except OSError as error:
                assert error.filename is not None  # noqa: PT017


@pytest.mark.parametrize("how", ["rewritten", "longer"])
def test_a_file_that_changes_meanwhile_is_named(folder: Path, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "owner/tuned"
    copy.mkdir(parents=True)
    for file in (folder / "owner/tuned").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    changed = copy / "model.safetensors"

    def fault(request: Request) -> str | None:
        if request.path.endswith("model.safetensors") and request.end - request.start > 150_000:
            content = changed.read_bytes()
            changed.write_bytes(content + b"\0" * 8 if how == "longer" else content)
            os.utime(changed, ns=(1, 1))
        return None

    with serve(tmp_path, fault=fault) as server:
        with pytest.raises((CheckpointError, OSError), match="changed") as raised:
            alps.scan(folder / "owner/base", f"{server.url}/owner/tuned")
        assert f"{server.url}/owner/tuned/model.safetensors" in f"{raised.value}{raised.value.__dict__}"


def test_a_local_file_that_changes_meanwhile_is_named(folder: Path, tmp_path: Path) -> None:
    """The other side is remote, so that there is time."""
    copy = tmp_path / "base"
    copy.mkdir()
    for file in (folder / "owner/base").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    changed = copy / "model-00002-of-00002.safetensors"

    def fault(request: Request) -> str | None:
        if request.end - request.start > 150_000:
            os.utime(changed, ns=(1, 1))
        return None

    with serve(folder, fault=fault) as server:
        with pytest.raises(CheckpointError, match="the file changed while it was read") as raised:
            alps.scan(copy, f"{server.url}/owner/tuned")
        assert raised.value.path == str(changed)


def test_an_unreachable_server_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    with pytest.raises(OSError, match=r".") as raised:
        alps.geometry("http://127.0.0.1:9/model")
    assert raised.value.filename is not None


def test_delays_that_servers_ask_for() -> None:
    assert delay({"Retry-After": "7"}) == 7
    assert delay({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0
    assert delay({"Retry-After": "soon"}) is None
    assert delay({}) is None


def test_a_long_message_takes_no_time_and_shows_no_secret() -> None:
    for text in ("?" * 1_000_000, "a" * 1_000_000, "?" + "a" * 1_000_000, " " * 1_000_000):
        started = time.process_time()
        assert len(without_secrets(text)) <= 300
        assert time.process_time() - started < 2
    at_the_cut = f"http://host/?{'a' * 4060}=b http://user:password@host/"
    assert 4096 - 20 < at_the_cut.index("password") < 4096
    assert without_secrets(at_the_cut[: at_the_cut.index("@")] + "x" * 5000 + "@host") == "http://host/"


def test_secrets_of_addresses_are_shown_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    address = "127.0.0.1:1/owner/base"
    with pytest.raises(OSError, match=r".") as raised:
        alps.geometry(f"http://user:password@{address}?signature=secret")
    shown = f"{raised.value} {raised.value.__dict__} {raised.value.__cause__}"
    assert "secret" not in shown
    assert "password" not in shown
    text = "403 for url: https://me:pw@host/file?X-Amz-Signature=abc#part, and s3://key:pw@bucket/x"
    assert store.describe(ValueError(text)) == "403 for url: https://host/file and s3://bucket/x"

    queries = []

    def fault(request: Request) -> str | None:
        queries.append(request.query)
        return None

    with serve(folder, fault=fault) as server:
        scores = alps.scan(f"{server.url}/owner/base?signature=secret", folder / "owner/tuned")
        assert "secret" not in json.dumps(scores.provenance)
    assert all(query == {"signature": ["secret"]} for query in queries)


# The hub


def test_the_hub(folder: Path, hub: Server, local: alps.HeadScores) -> None:
    scores = alps.scan("owner/base", "owner/tuned@main")
    assert scores == local
    assert scores.provenance["base"] == "owner/base"
    assert scores.provenance["base_commit"] == scores.provenance["tuned_commit"] == COMMIT
    resolved = [path for _, path, *_ in hub.listed if "/resolve/" in path]
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved)
    assert hub.requests < 30
    asked = [token for _, path, _, token in hub.listed if "owner" in path]
    assert set(asked) == {"Bearer hf_secret"}
    assert all(token is None for *_, token in hub.cdn_server.listed)  # type: ignore[attr-defined]
    assert alps.scan(f"hf://owner/base@{COMMIT}", "https://huggingface.co/owner/tuned/tree/main") == local
    (folder / "solo").symlink_to(folder / "owner/base")
    assert alps.geometry("solo") == local.geometry
    (folder / "solo").unlink()
    with pytest.raises(FileNotFoundError, match="no such model on the hub") as raised:
        alps.geometry("owner/missing")
    assert raised.value.filename == "owner/missing"
    with pytest.raises(FileNotFoundError, match="no such revision"):
        alps.geometry("owner/base@other")
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        alps.geometry("nothing")
    before = hub.requests
    with pytest.raises(FileNotFoundError, match="hf download"):
        alps.geometry("owner/base", local_files_only=True)
    assert hub.requests == before


def test_what_is_in_the_cache_is_not_fetched(
    folder: Path, hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: alps.HeadScores
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(COMMIT)
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    missing = "model-00002-of-00002.safetensors"
    for file in (folder / "owner/base").iterdir():
        if file.name != missing:
            (snapshot / file.name).symlink_to(file)
    assert sources.find("owner/base").path == f"hf://owner/base@{COMMIT}"
    hub.listed.clear()
    assert alps.scan("owner/base", folder / "owner/tuned") == local
    files = {Path(path).name for _, path, *_ in hub.listed if "/resolve/" in path}
    assert files == {missing}
    (snapshot / missing).symlink_to(folder / "owner/base" / missing)
    hub.listed.clear()
    assert alps.scan("owner/base", folder / "owner/tuned") == local
    assert hub.listed == []


def test_a_signature_that_expires_is_renewed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, local: alps.HeadScores
) -> None:
    expired = []

    def fault(request: Request) -> str | None:
        if request.end - request.start > 150_000 and request.path not in expired:
            expired.append(request.path)
            return "403"
        return None

    with serve(folder, fault=fault) as cdn, serve(folder, hub=True, cdn=cdn.url) as server:
        use_hub(monkeypatch, server)
        assert alps.scan("owner/base", "owner/tuned") == local
    assert expired


def test_the_plain_install_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(alps.MissingPackageError, match=r"pip install 'alps-heads\[remote\]'"):
        alps.geometry("s3://bucket/model")


# Interruption


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_is_answered_while_a_server_is_silent(folder: Path) -> None:
    """Also while files are opened; and no thread of a store keeps the process alive."""
    for pass_by in (0, 8):
        with serve(folder) as server:
            server.fault = lambda request, n=pass_by: time.sleep(30) if request.number >= n else None  # type: ignore
            command = [
                sys.executable,
                "-m",
                "alps.cli",
                "scan",
                f"{server.url}/owner/base",
                f"{server.url}/owner/tuned",
            ]
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            while server.requests <= pass_by:
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            _, error = process.communicate(timeout=20)
            assert time.monotonic() - started < 3
            assert (process.returncode, error) == (130, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", None])
def test_a_scan_goes_on_where_it_was_interrupted(
    folder: Path, tmp_path: Path, local: alps.HeadScores, how: str | None
) -> None:
    kept, output = tmp_path / "kept.safetensors", tmp_path / "scores.safetensors"
    with serve(folder) as server:
        base, tuned = f"{server.url}/owner/base", f"{server.url}/owner/tuned"
        command = [
            sys.executable,
            "-m",
            "alps.cli",
            "scan",
            base,
            tuned,
            "--resume",
            str(kept),
            "--memory",
            "1",
        ]
        command += ["--threads", "1", "--scores", str(output)]
        state = {"slow": True}

        def fault(request: Request) -> str | None:
            if state["slow"] and request.end - request.start > 10_000:
                time.sleep(0.4)
            return "503" if state.get("lost") else None

        server.fault = fault
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while not kept.exists() or len(alps.Part.load(kept).rows) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        if how is None:
            state["lost"] = True
        else:
            process.send_signal(signal.Signals[how])
        process.communicate(timeout=60)
        assert process.returncode == {"SIGKILL": -9, "SIGINT": 130, None: 1}[how]
        done = len(alps.Part.load(kept).rows)
        assert 2 <= done < SHAPE.layers
        state.clear()
        state["slow"] = False
        server.sent = 0
        subprocess.run(command, check=True, capture_output=True)
        needed = alps.inspect(folder / "owner/base").bytes + alps.inspect(folder / "owner/tuned").bytes
        assert server.sent <= needed * (SHAPE.layers - done) / SHAPE.layers + 4 * (100 << 10)
    assert alps.HeadScores.load(output) == local
    with pytest.raises(CheckpointError, match=r"expected layers of this scan.*form is 'qkv' in the one"):
        alps.scan(folder / "owner/base", folder / "owner/tuned", form="product", resume=kept)


# Spreading


def test_parts_make_the_whole(folder: Path, tmp_path: Path, local: alps.HeadScores) -> None:
    base, tuned = folder / "owner/base", folder / "owner/tuned"
    files = [tmp_path / f"part{number}.safetensors" for number in range(1, 5)]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "alps.cli",
                "scan",
                base,
                tuned,
                "--part",
                f"{number}/4",
                "--scores",
                file,
            ],
            stdout=subprocess.DEVNULL,
        )
        for number, file in enumerate(files, 1)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    merged = alps.merge(files)
    assert merged == local
    assert merged.provenance == local.provenance
    output = tmp_path / "merged.safetensors"
    command = [sys.executable, "-m", "alps.cli", "merge", *map(str, files), "--scores", str(output), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert alps.HeadScores.load(output) == local
    assert found["heads"]["report"]
    with pytest.raises(ArgumentError, match="expected all 6 layers, found no part with layer"):
        alps.merge(files[1:])
    with pytest.raises(ArgumentError, match=r"layer 0 is in .*part1.* and in .*part1"):
        alps.merge([files[0], *files])
    other = alps.scan_part(base, tuned, 1, 4, temperature=2.0)
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(
        ArgumentError, match=r"other\.safetensors is no part of the scan of .*temperature is 1\.0"
    ):
        alps.merge([*files[1:], tmp_path / "other.safetensors"])
    with pytest.raises(ArgumentError, match="found none"):
        alps.merge([])
    with pytest.raises(ArgumentError, match="from 1 to 4, found 5"):
        alps.scan_part(base, tuned, 5, 4)
    local.save(tmp_path / "scores.safetensors")
    with pytest.raises(CheckpointError, match="format: expected 'alps-part'"):
        alps.merge([tmp_path / "scores.safetensors"])


def test_parts_of_files_that_changed_are_foreign(folder: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in (folder / "owner/tuned").iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    parts = []
    for number in (1, 2):
        alps.scan_part(folder / "owner/base", tuned, number, 2).save(
            part := tmp_path / f"{number}.safetensors"
        )
        parts.append(part)
        os.utime(tuned / "model.safetensors", ns=(1, 1))
    with pytest.raises(ArgumentError, match="tuned_files differs"):
        alps.merge(parts)


def test_more_parts_than_layers(folder: Path, tmp_path: Path, local: alps.HeadScores) -> None:
    parts = [
        alps.scan_part(folder / "owner/base", folder / "owner/tuned", number, 8) for number in range(1, 9)
    ]
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for part, file in zip(parts, files, strict=True):
        part.save(file)
    assert alps.merge(files) == local


def test_scores_do_not_depend_on_what_is_kept(folder: Path, tmp_path: Path, local: alps.HeadScores) -> None:
    kept = tmp_path / "kept"
    scores = alps.scan(folder / "owner/base", folder / "owner/tuned", statistics=["kl"], resume=kept)
    assert scores.statistics == ("kl",)
    np.testing.assert_array_equal(scores["kl"], local["kl"])
    again = alps.scan(folder / "owner/base", folder / "owner/tuned", statistics=["kl"], resume=kept)
    assert again == scores
    assert again.provenance == scores.provenance
