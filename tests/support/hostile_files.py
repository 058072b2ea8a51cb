"""Files that would take much memory if they were read without limits: each kind is as dense as its format allows.

Run as a program, it opens each of the given folders and files in a process of its own, and writes as JSON what came of it and
how much memory it took.
"""

from __future__ import annotations

import itertools
import json
import os
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 1,
    "hidden_size": 1,
}  # fmt: skip
ENTRY = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
ADAPTER = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "base"}

DENSE = {
    "numbers": "0",
    "lists": "[]",
    "objects": "{}",
    "objects with a member": '{"":0}',
    "texts": '"a"',
    "escapes": '"\\u0061"',
    "floats": "1e9",
    "nested lists": "[[[[]]]]",
}
"""Values, of which a list has as many as fit."""


def names() -> Iterator[str]:
    """Short names, each once."""
    letters = string.ascii_letters + string.digits
    return ("".join(name) for name in itertools.product(letters, repeat=4))


def dense(piece: str, size: int) -> str:
    """A list of so many bytes."""
    return "[" + ",".join([piece] * (size // (len(piece) + 1))) + "]"


def distinct(size: int, value: str = "0") -> str:
    """An object of so many bytes, of members of distinct names."""
    count = size // (8 + len(value))
    return "{" + ",".join(f'"{name}":{value}' for name in itertools.islice(names(), count)) + "}"


def header(members: Iterator[str], size: int) -> str:
    """A header of about so many bytes."""
    parts, length = [], 0
    for member in members:
        if length >= size:
            break
        parts.append(member)
        length += len(member) + 1
    return "{" + ",".join(parts) + "}"


def safetensors(text: str, data: int = 0) -> bytes:
    """A file with this header and so many zeros."""
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(data)


def write_model(folder: Path, text: str, config: Any = CONFIG) -> None:
    """Writes a checkpoint with this header."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors(text))
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


HEADERS: dict[str, Callable[[], Iterator[str]]] = {
    "tiny tensors": lambda: (f'"{name}":{ENTRY}' for name in names()),
    "scalars": lambda: (
        f'"{name}":{{"dtype":"U8","shape":[],"data_offsets":[{at},{at + 1}]}}'
        for at, name in enumerate(names())
    ),
    "six dimensions": lambda: (
        f'"{name}":{{"dtype":"U8","shape":[0,0,0,0,0,0],"data_offsets":[0,0]}}' for name in names()
    ),
    "one long shape": lambda: iter(
        [f'"a":{{"dtype":"U8","shape":{dense("0", 8 << 20)},"data_offsets":[0,0]}}']
    ),
    "metadata": lambda: iter([f'"__metadata__":{distinct(8 << 20, chr(34) * 2)}']),
    "names with escapes": lambda: (f'"\\u0061{name}":{ENTRY}' for name in names()),
    "one long name": lambda: iter([f'"{"a." * (4 << 20)}":{ENTRY}']),
    "one long dtype": lambda: iter(
        ['"a":{"dtype":"' + "x" * (8 << 20) + '","shape":[],"data_offsets":[0,0]}']
    ),
    "matrices": lambda: (
        f'"{name}.weight":{{"dtype":"U8","shape":[0,0],"data_offsets":[0,0]}}' for name in names()
    ),
    "stacks of one layer": lambda: (f'"{name}.0.self_attn.q_proj.weight":{ENTRY}' for name in names()),
    "layers": lambda: (f'"model.layers.{at}.self_attn.q_proj.weight":{ENTRY}' for at in itertools.count()),
    "names with attn": lambda: (f'"attn{name}":{ENTRY}' for name in names()),
    "wrappers": lambda: (f'"_orig_mod.{name}":{ENTRY}' for name in names()),
    "the same name": lambda: itertools.repeat(f'"a":{ENTRY}'),
    "packed modules": lambda: (f'"{name}.0.self_attn.q_proj.qweight":{ENTRY}' for name in names()),
}


def write_all(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes every kind. Returns what reads each, and its path."""
    found: dict[str, tuple[str, str]] = {}
    for kind, members in HEADERS.items():
        write_model(folder / kind, header(members(), 8 << 20))
        found[f"header: {kind}"] = "geometry", str(folder / kind)
    large = folder / "large header"
    write_model(large, header(HEADERS["tiny tensors"](), 40 << 20))
    found["header: 40 MB"] = "geometry", str(large)
    hybrid = CONFIG | {"model_type": "jamba", "num_hidden_layers": 2**31}
    for name, layer in (("far layer", 2**31 - 1), ("many layers", 4000)):
        member = f'"model.layers.{layer}.self_attn.q_proj.weight":{ENTRY}'
        write_model(
            folder / name, header(itertools.chain([member], HEADERS["tiny tensors"]()), 4 << 20), hybrid
        )
        found[f"header: {name}"] = "geometry", str(folder / name)

    tiny = header(HEADERS["tiny tensors"](), 100)
    shard = '"b"'
    for kind, weight_map in {
        "missing tensors": distinct(16 << 20, shard),
        "shards": "{" + ",".join(f'"{name}":"{name}"' for name in itertools.islice(names(), 1 << 20)) + "}",
        "a list": dense("0", 16 << 20),
        "one long name": '{"' + "a/" * (4 << 20) + '":"b"}',
        "one long shard": '{"a":"' + "./" * (4 << 20) + 'b"}',
    }.items():
        model = folder / f"index {kind}"
        write_model(model, tiny)
        (model / "b").write_bytes((model / "model.safetensors").read_bytes())
        (model / "model.safetensors").unlink()
        index = f'{{"metadata":{dense("{}", 1 << 20)},"weight_map":{weight_map}}}'
        (model / "model.safetensors.index.json").write_text(index)
        found[f"index: {kind}"] = "geometry", str(model)

    for kind, piece in DENSE.items():
        value = dense(piece, (8 << 20) - 4096)
        write_model(folder / f"config {kind}", tiny, '{"model_type":"llama","a":' + value + "}")
        found[f"config: {kind}"] = "geometry", str(folder / f"config {kind}")
        adapter = folder / f"adapter {kind}"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(safetensors(tiny))
        (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER)[:-1] + f',"a":{value}}}')
        found[f"adapter: {kind}"] = "geometry", str(adapter)
        heads = folder / f"heads {kind}.json"
        heads.write_text('{"format":"alps-heads","a":' + value + "}")
        found[f"heads: {kind}"] = "heads", str(heads)
        scores = folder / f"scores {kind}.safetensors"
        scores.write_bytes(safetensors(json.dumps({"__metadata__": {"alps": f'{{"a":{value}}}'}})))
        found[f"scores: {kind}"] = "scores", str(scores)
    write_model(folder / "config members", tiny, '{"model_type":"llama","a":' + distinct(8_000_000) + "}")
    found["config: members"] = "geometry", str(folder / "config members")
    write_model(
        folder / "config dense", tiny, json.dumps(CONFIG)[:-1] + ',"a":' + dense('{"":0}', 60_000) + "}"
    )
    found["config: all that is allowed"] = "geometry", str(folder / "config dense")
    (folder / "heads members.json").write_text(distinct(8 << 20))
    (folder / "heads text.json").write_text('{"a":"' + "x" * ((8 << 20) - 100) + '🙂"}', encoding="utf-8")
    found |= {f"heads: {kind}": ("heads", str(folder / f"heads {kind}.json")) for kind in ("members", "text")}
    for kind, text in {"tensors": tiny_header(4 << 20), "metadata": header(HEADERS["metadata"](), 1)}.items():
        (folder / f"part {kind}").write_bytes(safetensors(text))
        found[f"part: {kind}"] = "part", str(folder / f"part {kind}")

    for kind, patterns in {
        "60 patterns": [rf"(?:\w{{{100 + number}}}){{100}}" for number in range(60)],
        "60 allowed patterns": [rf"\w+\.\w+\.{number}\.[qkv]_proj" for number in range(60)],
        "one long pattern": [".*" * (1 << 20)],
        "a long alternative": ["|".join(f"a{number}" for number in range(100_000))],
        "lookaround": [r"(?=\w{9})" * 10_000],
        "a count after a boundary": [r"\ba{9551615}"],
        "100 patterns": [rf"\d+{number}" for number in range(100)],
        "steps": [r"(?=(\w|\w\w)*$)(?:(\w|\w\w)*)(?!.)\1x" for _ in range(1)],
        "names": [f"model.layers.{number}.self_attn.q_proj" for number in range(20_000)],
    }.items():
        adapter = folder / f"adapter {kind}"
        adapter.mkdir()
        module = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        (adapter / "adapter_model.safetensors").write_bytes(
            safetensors(
                f'{{"{module}A.weight":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}},'
                f'"{module}B.weight":{{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}}}',
                8,
            )
        )
        pattern = {"rank_pattern": dict.fromkeys(patterns, 1), "alpha_pattern": dict.fromkeys(patterns, 1)}
        (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER | pattern))
        found[f"adapter: {kind}"] = "scan", str(adapter)
    write_base(folder / "base")
    for kind, ending in {"modules": "lora_A.weight", "whole modules": "weight", "biases": "bias"}.items():
        modules = (f'"{name}.{ending}":{ENTRY}' for name in names())
        adapter = folder / f"adapter {kind}"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(safetensors(header(modules, 8 << 20)))
        (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER))
        found[f"adapter: {kind}"] = "scan", str(adapter)
    return found


def write_base(folder: Path) -> None:
    """Writes a model with one head of one weight in each matrix."""
    members = (
        f'"model.layers.0.self_attn.{matrix}_proj.weight":{{"dtype":"F32","shape":[1,1],"data_offsets":[{at},{at + 4}]}}'
        for at, matrix in ((0, "q"), (4, "k"), (8, "v"))
    )
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors("{" + ",".join(members) + "}", 12))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def tiny_header(size: int) -> str:
    """A header of tensors without entries."""
    return header(HEADERS["tiny tensors"](), size)


def json_bytes(path: Path) -> int:
    """The bytes of JSON in a file, or in the files of a folder and of the base beside it."""
    if path.is_dir():
        beside = [path.with_name("base")] if (path / "adapter_config.json").exists() else []
        return sum(json_bytes(file) for folder in [path, *beside] for file in folder.iterdir())
    if path.suffix == ".json":
        return path.stat().st_size
    with path.open("rb") as file:
        return min(int.from_bytes(file.read(8), "little"), path.stat().st_size)


def _measure(how: str, path: str) -> dict[str, Any]:
    import time

    import alps

    base = str(Path(path).with_name("base"))
    started = time.process_time()
    reads: dict[str, Callable[[], object]] = {
        "geometry": lambda: alps.geometry(path),
        "scan": lambda: alps.scan(base, path),
        "heads": lambda: alps.HeadSet.load(path),
        "scores": lambda: alps.HeadScores.load(path),
        "part": lambda: alps.Part.load(path),
    }
    try:
        reads[how]()
        said = "read"
    except (alps.AlpsError, OSError) as error:
        said = f"{type(error).__name__}: {error}"
    took = time.process_time() - started
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return {"said": said, "peak": peak, "seconds": took}


def main() -> None:
    import alps  # noqa: F401  # each process has it at once

    found = {}
    os.chdir(sys.argv[1])
    for kind, (how, path) in json.loads(sys.stdin.read()).items():
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, json.dumps(_measure(how, path)).encode()[:4000])
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        found[kind] = (
            json.loads(text) if status == 0 else {"said": f"status {status}", "peak": 0, "seconds": 0}
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
