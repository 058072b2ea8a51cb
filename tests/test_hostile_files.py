"""Files from strangers: bounded memory and time, no raw text on the terminal, no exception but alps' own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import alps
from alps import limits
from alps.errors import CheckpointError
from alps.escaping import escape
from alps.files import write_whole

GEOMETRY = {
    "model_type": "llama", "layout": "separate", "query_heads": 2, "key_value_heads": 1, "head_size": 1,
    "value_size": 1, "hidden_size": 1, "component": "decoder",
}  # fmt: skip


def head_set(**fields: Any) -> str:
    document = {
        "format": "alps-heads",
        "version": 1,
        "provenance": {},
        "geometry": GEOMETRY,
        "heads": {"0": [1]},
    }
    return json.dumps(document | fields)


def scores(**fields: Any) -> bytes:
    document = {
        "format": "alps-scores", "version": 1, "statistics": ["kl"], "provenance": {},
        "geometry": GEOMETRY | {"layers": [0]},
    }  # fmt: skip
    return save({"kl": np.zeros((1, 2))}, metadata={"alps": json.dumps(document | fields)})


HEAD_SETS = {
    "as many heads as a number has": head_set(geometry=GEOMETRY | {"query_heads": 2**32 - 1}),
    "more heads than a layer may have": head_set(geometry=GEOMETRY | {"query_heads": limits.MOST_HEADS + 1}),
    "more layers than a model may have": head_set(heads={str(n): [] for n in range(limits.MOST_LAYERS + 1)}),
    "more cells than a table may have": head_set(
        geometry=GEOMETRY | {"query_heads": limits.MOST_HEADS},
        heads={str(n): [] for n in range(limits.MOST_CELLS // limits.MOST_HEADS + 1)},
    ),
    "a layer of 5000 digits": head_set(heads={"1" * 5000: [1]}),
    "a version that is true": head_set(version=True),
    "a long name": head_set(geometry=GEOMETRY | {"layout": "x" * 10_000}),
    "half of a surrogate pair": head_set(provenance={"base": "\ud800"}),
    "100,000 levels": '{"a":' * 100_000 + "1" + "}" * 100_000,
    **{f"{depth} levels": '{"a":' * depth + "1" + "}" * depth for depth in (300, 600, 900)},
    "no text": b"\xff\xfe\0",
}
SCORES = {
    "statistics of two types": scores(statistics=["kl", 1]),
    "statistics of lists": scores(statistics=[["kl"]]),
    "layers that are text": scores(geometry=GEOMETRY | {"layers": "0"}),
    "an infinite size": scores(geometry=GEOMETRY | {"layers": [0], "value_size": float("inf")}),
    "a version that is true": scores(version=True),
    "many heads": scores(geometry=GEOMETRY | {"layers": [0], "query_heads": 2**32 - 1}),
    "100,000 levels": save({"kl": np.zeros((1, 2))}, metadata={"alps": "[" * 100_000}),
    "cut": scores()[:-3],
    "nothing": b"",
}


@pytest.mark.parametrize(
    ("load", "content"),
    [
        *(
            pytest.param(alps.HeadSet.load, content, id=f"heads: {name}")
            for name, content in HEAD_SETS.items()
        ),
        *(
            pytest.param(alps.HeadScores.load, content, id=f"scores: {name}")
            for name, content in SCORES.items()
        ),
        *(pytest.param(alps.Part.load, content, id=f"part: {name}") for name, content in SCORES.items()),
    ],
)
def test_a_saved_file_is_refused_in_one_short_line(
    tmp_path: Path, load: Callable[[Path], object], content: str | bytes
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    with pytest.raises(CheckpointError) as raised:
        load(file)
    said = str(raised.value).removeprefix(str(file))
    assert said.isprintable()
    assert len(said) < 1000
    assert time.monotonic() - started < 2


def test_names_that_stand_twice_are_found_in_linear_time(tmp_path: Path) -> None:
    file, took = tmp_path / "heads.json", []
    for count in (15_000, 60_000):  # more would be refused for the memory that they take
        names = [f'"{number}":0' for number in range(count)]
        file.write_text("{" + ",".join([*names, names[-1]]) + "}")
        started = time.monotonic()
        with pytest.raises(CheckpointError, match=f"the name '{count - 1}' stands twice"):
            alps.HeadSet.load(file)
        took.append(time.monotonic() - started)
    assert took[1] < 16 * took[0] + 1


def test_a_checkpoint_with_a_layer_of_many_heads_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Its scores would take ten thousand times as much memory as its files."""
    layers, heads = 600, 200_000
    header, end = {}, 0
    for layer in range(layers):
        for matrix in "qkv":
            rows = heads if matrix == "q" and layer == 0 else 1
            name = f"model.layers.{layer}.self_attn.{matrix}_proj.weight"
            header[name] = {"dtype": "BF16", "shape": [rows, 1], "data_offsets": [end, end + 2 * rows]}
            end += 2 * rows
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"\x80\x3f" * (end // 2)
    )
    config = {
        "model_type": "llama", "num_hidden_layers": layers, "num_attention_heads": [heads] + [1] * (layers - 1),
        "num_key_value_heads": 1, "head_dim": 1, "hidden_size": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    program = (
        "import alps, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try: alps.scan(sys.argv[1], sys.argv[1])\n"
        "except alps.ModelError as error: print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert "expected at most 16384 heads in a layer, found 200000" in ran.stdout


def test_a_large_configuration_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name, other in (
        ("config.json", "model.safetensors"),
        ("adapter_config.json", "adapter_model.safetensors"),
    ):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / other).write_bytes((2).to_bytes(8, "little") + b"{}")
        with (folder / name).open("wb") as file:
            file.truncate(1 << 30)
        with pytest.raises(
            CheckpointError, match=f"{name}: the file has 1073741824 bytes, more than the 8388608"
        ):
            alps.geometry(folder)


def test_the_limits_are_those_of_the_core() -> None:
    source = (Path(__file__).parents[1] / "rust/attention/find.rs").read_text()
    assert f"MOST_LAYERS: usize = {limits.MOST_LAYERS};" in source
    assert f"MOST_HEADS: usize = {limits.MOST_HEADS:_};" in source
    assert f"MOST_CELLS: usize = 1 << {limits.MOST_CELLS.bit_length() - 1};" in source


def test_text_from_files_is_escaped_on_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    forged = "model\x1b[2J\nalps: warning: forged\x07"
    file.write_text(head_set(provenance={"base": forged, "base_files": forged, "tuned": "tuned"}))
    command = [sys.executable, "-m", "alps.cli", "show", str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "base: model\\x1b[2J\\nalps: warning: forged\\x07\n" in ran.stdout
    file.write_text(head_set(geometry=GEOMETRY | {"model_type": forged, "component": "\x1b[31m"}))
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in ran.stdout
    assert "model\\x1b[2J\\nalps: warning: forged\\x07 \\x1b[31m, 1 layers" in ran.stdout
    assert str(alps.HeadSet.load(file).geometry).isprintable()
    named = tmp_path / "a\x1b[31mb.json"
    ran = subprocess.run([*command[:-1], str(named)], capture_output=True, text=True, check=False)
    assert (ran.returncode, "\x1b" in ran.stderr) == (1, False)
    assert "a\\x1b[31mb.json" in ran.stderr
    assert escape("é ü 字") == "é ü 字"
    assert escape("a\ud800\u202eb\n") == "a\\ud800\\u202eb\\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("load", [alps.HeadSet.load, alps.HeadScores.load, alps.Part.load])
def test_a_named_pipe_is_no_file(tmp_path: Path, load: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_a_number_of_threads_has_a_limit(tmp_path: Path) -> None:
    for threads in (0, 4097, 10**30, 10**5000):
        with pytest.raises(
            alps.ArgumentError, match=r"threads (must be 1 or more|is .*; expected 1 to 4096)"
        ):
            alps.scan(tmp_path, tmp_path, threads=threads)


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of POSIX")
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    write_whole(file, b"1")
    file.chmod(0o600)
    write_whole(file, b"2")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]
