"""Scans checkpoints behind a server of this machine, with latency and a limited link, and counts what travels.

    PYTHONPATH=benches:tests .venv/bin/python benches/remote.py            # an 8B-shaped pair, then a 405B-shaped one
    PYTHONPATH=benches:tests .venv/bin/python benches/remote.py --faults 200

The shards are laid out as on the hub: for each layer the norms, the MLP, then K, O, Q and V. Only Q, K and V take room on
the disk. The server is a process of its own, and so is every scan, whose peak memory is that of the process. The link is
also measured with a program that does nothing but fetch as many bytes by as many connections.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from compare.pairs import SHAPES, CheckpointPairs
from support.checkpoints import Shape, name, write_sparse
from support.servers import random_faults, serve

CONNECTIONS = 16
SHARD = 5_000_000_000
"""The bytes of a shard, at most, as `save_pretrained` has it."""

FAULTS = ("429", "400", "403", "500", "503", "drop", "cut", "short")

SCAN = """
import json, re, sys, time
from pathlib import Path
import alps
from alps.remote import store
base, tuned, output, memory, part = sys.argv[1:]
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
def stop(done, total):
    global share
    share = done / total
    if share > part:
        raise StopIteration
found, share, part = {}, 0.0, float(part)
started = time.monotonic()
if part < 1:
    alps.inspect(base), alps.inspect(tuned)
    found = {"planned": time.monotonic() - started, "planning": store.TOTAL.requests}
before = peak()
started = time.monotonic()
try:
    alps.scan(base, tuned, memory=int(memory), progress=stop).save(output)
except StopIteration:
    pass
took = time.monotonic() - started
print(json.dumps({**found, "took": took, "before": before, "peak": peak(), "share": share, **vars(store.TOTAL)}))
"""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before every answer")
    parser.add_argument("--rate", type=float, default=1e9, help="bytes in a second")
    parser.add_argument("--memory", type=int, default=512 << 20, help="bytes that a scan may hold")
    parser.add_argument("--faults", type=int, default=0, help="instead, so many scans with random faults")
    parser.add_argument(
        "--folder", type=Path, help="where to write the checkpoints; a temporary folder by default"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_until_told(options.serve, options.latency, options.rate)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.faults:
            try_faults(Path(folder), options.faults)
            return
        for model in ("Llama-3.1-8B", "Llama-3.1-405B"):
            measure(Path(folder) / model, SHAPES[model], model, options)


def measure(folder: Path, shape: Shape, model: str, options: argparse.Namespace) -> None:
    """Prints what a scan of a pair of this shape takes; of the largest, what planning it takes."""
    write_shards(folder, shape, empty="405B" in model)
    needed = 2 * 2 * shape.layers * sum(shape.rows().values()) * shape.hidden_size
    with server(folder, options) as (url, counts):
        base, tuned = f"{url}/base", f"{url}/tuned"
        if "405B" in model:
            found = scan(base, tuned, str(folder / "scores"), options.memory, part=0.1)
            # Planned twice, and at the end the status of every file is asked for once more.
            planning, files = found["planning"], len(list(folder.rglob("*.safetensors")))
            requests = planning + files + (found["requests"] - 2 * planning) / found["share"]
            print(
                f"{model}: planned in {found['planned']:.1f} s by {planning:.0f} requests; by those of the first "
                f"{found['share']:.1%}, {requests:.0f} in all; peak {_mib(found)}"
            )
            return
        local, remote = folder / "local.safetensors", folder / "remote.safetensors"
        scan(str(folder / "base"), str(folder / "tuned"), str(local), options.memory)
        for _ in range(3):
            counts()
            bare = fetch(url, folder, needed)
            counts()
            found = scan(base, tuned, str(remote), options.memory)
            seen = counts()
            by_link = needed / options.rate
            print(
                f"{model}: {found['took']:.2f} s; the link's rate allows {by_link:.2f} s ({by_link / found['took']:.0%}), "
                f"a bare fetch took {bare:.2f} s ({bare / found['took']:.0%}); {seen['requests']} requests; "
                f"{seen['sent'] / needed:.4f} of the bytes of Q, K and V; "
                f"peak {_mib(found)}; "
                f"the same file as a local scan: {scores_of(local) == scores_of(remote)}"
            )


def scores_of(path: Path) -> dict[str, bytes]:
    """The numbers in a file of scores."""
    import alps

    return {name: values.tobytes() for name, values in alps.HeadScores.load(path).items()}


def _mib(found: dict[str, float]) -> str:
    before, peak = int(found["before"]) >> 20, int(found["peak"]) >> 20
    return f"{peak - before} MiB above the {before} MiB of before"


def scan(base: str, tuned: str, output: str, memory: int, part: float = 1.0) -> dict[str, float]:
    """Scans in a process of its own, up to some part of the bytes."""
    command = [sys.executable, "-c", SCAN, base, tuned, output, str(memory), str(part)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def fetch(url: str, folder: Path, needed: int) -> float:
    """The seconds that a program takes which only fetches as many bytes, in pieces of 16 MiB."""
    host, piece = urlsplit(url).netloc, 16 << 20
    file = sorted((folder / "base").glob("*.safetensors"))[0].name

    def get(number: int) -> None:
        connection = HTTPConnection(host)
        start = number * piece % (4 << 30)
        count = min(piece, needed - number * piece)
        connection.request("GET", f"/base/{file}", headers={"Range": f"bytes={start}-{start + count - 1}"})
        answer, buffer = connection.getresponse(), bytearray(count)
        view = memoryview(buffer)
        while view and (read := answer.readinto(view)):
            view = view[read:]
        connection.close()

    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(get, range(-(-needed // piece))))
    return time.monotonic() - started


def try_faults(folder: Path, runs: int) -> None:
    """Scans a small pair with random faults, and counts how the scans end."""
    import alps
    from alps.remote import store

    store.FIRST_WAIT = 0.005
    shape = Shape(layers=6, query_heads=8, key_value_heads=4, head_size=64, hidden_size=512)
    write_shards(folder, shape, empty=False, shard=3_000_000)
    expected = alps.scan(folder / "base", folder / "tuned")
    right = refused = wrong = 0
    longest = 0.0
    for seed in range(runs):
        with serve(folder, fault=random_faults(seed, 0.05 + 0.6 * seed / runs, FAULTS)) as local:
            started = time.monotonic()
            try:
                same = alps.scan(f"{local.url}/base", f"{local.url}/tuned", memory=2 << 20) == expected
                right, wrong = right + same, wrong + (not same)
            except (OSError, alps.AlpsError):
                refused += 1
            longest = max(longest, time.monotonic() - started)
    print(f"{runs} scans: {right} right, {refused} refused, {wrong} wrong; the longest took {longest:.1f} s")


def write_shards(folder: Path, shape: Shape, *, empty: bool, shard: int = SHARD) -> None:
    """Writes `base` and `tuned` in shards; only Q, K and V of the first shape take room on the disk."""
    pairs = CheckpointPairs(folder)
    hidden, rows = shape.hidden_size, shape.rows()
    inner = 53248 if hidden == 16384 else 7 * hidden // 2
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (128256, hidden))
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = ("BF16", (hidden,))
        tensors[f"{prefix}.mlp.down_proj.weight"] = ("BF16", (hidden, inner))
        tensors[f"{prefix}.mlp.gate_proj.weight"] = ("BF16", (inner, hidden))
        tensors[f"{prefix}.mlp.up_proj.weight"] = ("BF16", (inner, hidden))
        tensors[name(layer, "k")] = ("BF16", (rows["k"], hidden))
        tensors[f"{prefix}.self_attn.o_proj.weight"] = ("BF16", (hidden, rows["q"]))
        tensors[name(layer, "q")] = ("BF16", (rows["q"], hidden))
        tensors[name(layer, "v")] = ("BF16", (rows["v"], hidden))
    shards: list[list[str]] = [[]]
    size = 0
    for key, (_, sizes) in tensors.items():
        length = 2 * _entries(sizes)
        if shards[-1] and size + length > shard:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += length
    for role in ("base", "tuned"):
        (folder / role).mkdir(parents=True)
        (folder / role / "config.json").write_text(json.dumps(shape.config()))
        index: dict[str, str] = {}
        drawn = None if empty else pairs.drawn(role)
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            index |= dict.fromkeys(names, file)
            written = {
                key: dict(_pieces(drawn, key, tensors[key][1]))
                for key in names
                if drawn is not None and _is_read(key)
            }
            write_sparse(folder / role / file, {key: tensors[key] for key in names}, written)
        document = {"metadata": {}, "weight_map": index}
        (folder / role / "model.safetensors.index.json").write_text(json.dumps(document))


def _is_read(key: str) -> bool:
    return key.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))


def _entries(sizes: tuple[int, ...]) -> int:
    count = 1
    for one in sizes:
        count *= one
    return count


def _pieces(drawn: memoryview, key: str, sizes: tuple[int, ...]) -> Iterator[tuple[int, memoryview]]:
    """The drawn weights, from another place on for every tensor, as often as they are needed."""
    length, place = 2 * _entries(sizes), 0
    start = 4096 * (sum(key.encode()) % 997)
    while place < length:
        piece = drawn[start : start + length - place]
        yield place, piece
        place, start = place + len(piece), 0


@contextmanager
def server(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, "Counts"]]:
    """A server in a process of its own, and a function that says what it was asked since the last call."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    command += ["--latency", str(options.latency), "--rate", str(options.rate)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip(), Counts(process)
        process.stdin.close()


class Counts:
    """What a server was asked since the last call."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process

    def __call__(self) -> dict[str, int]:
        """Requests, and bytes of files."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._process.stdout.readline())
        return found


def serve_until_told(folder: Path, latency: float, rate: float) -> None:
    """Serves, and answers every line with what was asked since the last."""
    with serve(folder, latency=latency, rate=rate) as running:
        print(running.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({"requests": running.requests, "sent": running.sent}), flush=True)
            running.listed.clear()
            running.sent = 0


if __name__ == "__main__":
    main()
