"""Every kind of bad input: its exception, its message, and that nothing is written or lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import alps
from alps import cli
from alps.arguments import Rule
from support.checkpoints import DTYPES, Shape, name, random_weights, write, write_pair, write_zeros

SHAPE = Shape(layers=2)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = name(1, "q")


def checkpoint(folder: Path, shape: Shape = SHAPE, dtype: str = "f32") -> Path:
    tensors = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, seed=1).items()}
    return write(folder, shape.config(), tensors)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "good")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A good checkpoint too, before a test breaks it."""
    return checkpoint(tmp_path / "bad")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(
    tmp_path: Path,
    error: type[Exception],
    pair: tuple[Path, Path],
    said: Sequence[str],
    **arguments: Any,
) -> Exception:
    """Scans what must be refused, in Python and by the command; neither may write or change anything."""
    before = contents(tmp_path)
    with pytest.raises(error) as caught:
        alps.scan(*pair, **arguments)
    assert type(caught.value) is error
    message = str(caught.value)
    for part in said:
        assert part in message, f"{part!r} is not in: {message}"
    files = tmp_path / "scores.safetensors", tmp_path / "heads.json"
    options = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    command = ["scan", *map(str, pair), "--scores", str(files[0]), "--heads", str(files[1]), *options]
    result = CliRunner().invoke(cli.app, command, prog_name="alps")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"alps: error: [^\n]+\n", result.stderr)
    if not isinstance(caught.value, OSError):
        assert result.stderr == f"alps: error: {' '.join(message.split())}\n"
    assert contents(tmp_path) == before
    return caught.value


def refused_alone(
    tmp_path: Path, error: type[Exception], good: Path, bad: Path, said: Sequence[str]
) -> Exception:
    """The same of what is bad whatever it is compared with: on either side, and by itself."""
    messages = {str(refused(tmp_path, error, pair, said)) for pair in ((good, bad), (bad, good))}
    with pytest.raises(error) as caught:
        alps.geometry(bad)
    assert type(caught.value) is error
    assert messages == {str(caught.value)}
    return caught.value


# Files.


def missing_folder(folder: Path) -> Path:
    return folder / "none"


def missing_file(folder: Path) -> Path:
    return folder / "none.safetensors"


@pytest.mark.parametrize("path", [missing_folder, missing_file])
def test_a_missing_file(tmp_path: Path, good: Path, path: Callable[[Path], Path]) -> None:
    bad = path(tmp_path)
    found = refused_alone(tmp_path, FileNotFoundError, good, bad, [str(bad)])
    assert isinstance(found, FileNotFoundError)
    assert (found.errno, found.filename) == (errno.ENOENT, str(bad))


def test_a_file_that_vanishes_after_it_was_found(tmp_path: Path, good: Path, bad: Path) -> None:
    """The refusal of the operating system itself, from below: a link that leads nowhere."""
    (bad / WEIGHTS).unlink()
    (bad / WEIGHTS).symlink_to(tmp_path / "nowhere")
    found = refused_alone(tmp_path, FileNotFoundError, good, bad, [str(bad / WEIGHTS)])
    assert isinstance(found, FileNotFoundError)
    assert (found.errno, found.filename) == (errno.ENOENT, str(bad / WEIGHTS))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="a superuser may read all files")
def test_a_file_that_may_not_be_read(tmp_path: Path, good: Path, bad: Path) -> None:
    content = (bad / WEIGHTS).read_bytes()
    (bad / WEIGHTS).chmod(0)
    with pytest.raises(PermissionError) as caught:
        alps.scan(good, bad)
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, str(bad / WEIGHTS))
    (bad / WEIGHTS).chmod(0o600)
    assert (bad / WEIGHTS).read_bytes() == content


def raw(header: str | bytes, data: int = 0, length: int | None = None) -> bytes:
    """A safetensors file of this header, which claims to be `length` bytes long, and so much data."""
    text = header.encode() if isinstance(header, str) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def entry(start: int, end: int, shape: Sequence[int] = (2,), dtype: str = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]})


HEADERS: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["is empty (0 bytes)"]),
    "cut inside the length": (b"\x08\0\0", ["3 bytes", "8 that hold the length", "truncated"]),
    "cut inside the header": (raw('{"a":', length=500), ["500 bytes", "13 of the file", "truncated"]),
    "header too long": (raw("{}", length=100_000_001), ["100000001 bytes", "100000000 that the format allows"]),
    "length of 2^64 - 1": (raw("{}", length=2**64 - 1), [f"{2**64 - 1} bytes", "100000000"]),
    "not JSON": (raw('{"a": oh}'), ["the header cannot be read", "expected value", "line 1 column 7"]),
    "not an object": (raw("[1]"), ["should begin with `{`", "begins with `[`"]),
    "no header": (raw(""), ["should begin with `{`", "is empty (0 bytes)"]),
    "not UTF-8": (raw(b'{"\xff": 1}'), ["the header is not UTF-8", "byte 2"]),
    "overlap": (raw(f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', 12), ["`b` begins at byte 4", "`a`", "overlap"]),
    "gap": (raw(f'{{"a": {entry(0, 8)}, "b": {entry(9, 17)}}}', 17), ["`b` begins at byte 9", "byte 8", "gap"]),
    "negative offset": (raw(f'{{"a": {entry(-8, 0)}}}'), ["`a`", "`-8`", "expected u64"]),
    "end before begin": (raw(f'{{"a": {entry(8, 0)}}}', 8), ["`a`", "[8, 0] end before they begin"]),
    "overflowing offset": (raw(f'{{"a": {entry(0, 2**64)}}}', 8), ["`a`", "expected u64"]),
    "overflowing shape": (raw(f'{{"a": {entry(0, 8, (2**62, 2**62))}}}', 8), ["`a`", str(2**62), "more than any file"]),
    "out of the file": (
        raw(f'{{"a": {entry(0, 8)}}}', 7),
        ["`a` is at bytes 0 to 8", "only 7 bytes of data", "truncated"],
    ),
    "data of no tensor": (raw(f'{{"a": {entry(0, 8)}}}', 9), ["end at byte 8", "9 bytes of data"]),
    "shape against offsets": (
        raw(f'{{"a": {entry(0, 8, (3,))}}}', 8),
        ["`a`", "shape [3] of F32 takes 12 bytes", "hold 8"],
    ),
    "duplicate names": (raw(f'{{"a": {entry(0, 8)}, "a": {entry(0, 8)}}}', 8), ["`a` appears twice"]),
    "unknown dtype": (raw(f'{{"a": {entry(0, 8, dtype="F12")}}}', 8), ["`a`", "dtype `F12`"]),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header(tmp_path: Path, good: Path, bad: Path, kind: str) -> None:
    content, said = HEADERS[kind]
    (bad / WEIGHTS).write_bytes(content)
    refused_alone(tmp_path, alps.CheckpointError, good, bad, [f"{bad / WEIGHTS}: ", *said])


@pytest.mark.parametrize("lost", [1, 100, 1000])
def test_a_truncated_file(tmp_path: Path, good: Path, bad: Path, lost: int) -> None:
    content = (bad / WEIGHTS).read_bytes()
    (bad / WEIGHTS).write_bytes(content[:-lost])
    said = [
        f"{bad / WEIGHTS}: ",
        f"of {len(content) - lost} bytes",
        "tensor `model.layers.",
        "it is truncated",
    ]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


def test_a_file_truncated_while_it_is_read(tmp_path: Path) -> None:
    """Long enough to read that there is time for it: 3 GiB of zeros."""
    shape = Shape(layers=16, query_heads=32, key_value_heads=8, head_size=128, hidden_size=8192)
    base, folder = write_zeros(tmp_path, shape)
    tuned = folder / WEIGHTS
    whole = tuned.stat().st_size

    def cut(done: int, total: int) -> None:
        if done:
            os.truncate(tuned, 30_000)

    with pytest.raises(alps.CheckpointError) as caught:
        alps.scan(base, folder, threads=1, progress=cut)
    message = str(caught.value)
    assert message.startswith(
        f"{tuned}: the file had {whole} bytes when it was opened, but ended before byte "
    )
    assert message.endswith("was read: it was truncated meanwhile")
    assert "tensor `model.layers." in message
    assert caught.value.path == str(tuned)
    assert caught.value.tensor is not None
    assert f"tensor `{caught.value.tensor}`" in message


# The index.


def sharded(folder: Path) -> dict[str, str]:
    """Cuts a checkpoint in two and returns the map of its index."""
    tensors = random_weights(SHAPE, seed=1)
    (folder / WEIGHTS).unlink()
    weight_map: dict[str, str] = {}
    for layer in range(SHAPE.layers):
        part = {key: weight for key, weight in tensors.items() if f".{layer}." in key}
        file = f"model-{layer + 1}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    return weight_map


INDICES: dict[str, tuple[Callable[[dict[str, str]], Any], list[str]]] = {
    "missing shard": (
        lambda m: {"weight_map": m | {QUERY: "model-3.safetensors"}},
        ["`model-3.safetensors` is missing", QUERY],
    ),
    "shard without the tensor": (
        lambda m: {"weight_map": m | {QUERY: "model-1.safetensors"}},
        [f"tensor `{QUERY}` is in `model-1.safetensors`", "has no such tensor"],
    ),
    "above its folder": (
        lambda m: {"weight_map": m | {QUERY: "../good/model.safetensors"}},
        [QUERY, "`../good/model.safetensors`", "a file beside the index"],
    ),
    "absolute path": (
        lambda m: {"weight_map": m | {QUERY: "/model.safetensors"}},
        [QUERY, "`/model.safetensors`", "a file beside the index"],
    ),
    "other separator": (
        lambda m: {"weight_map": m | {QUERY: "..\\model.safetensors"}},
        [QUERY, "a file beside the index"],
    ),
    "no map": (lambda _: {}, ["missing field `weight_map`"]),
    "empty map": (lambda _: {"weight_map": {}}, ["names no tensor"]),
    "a list": (lambda m: [m], ["expected a JSON object"]),
    "numbers for names": (lambda _: {"weight_map": {QUERY: 1}}, [QUERY, "expected a string"]),
    "pickled shard": (
        lambda m: {"weight_map": m | {QUERY: "model-1.bin"}},
        ["`model-1.bin` is a pickle file", "save_pretrained"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDICES)
def test_an_index(tmp_path: Path, good: Path, bad: Path, kind: str) -> None:
    document, said = INDICES[kind]
    (bad / INDEX).write_text(json.dumps(document(sharded(bad))))
    refused_alone(tmp_path, alps.CheckpointError, good, bad, [f"{bad / INDEX}: ", *said])


def test_an_index_that_is_not_json(tmp_path: Path, good: Path, bad: Path) -> None:
    sharded(bad)
    (bad / INDEX).write_text("{")
    refused_alone(
        tmp_path, alps.CheckpointError, good, bad, [f"{bad / INDEX}: the index cannot be read", "EOF"]
    )


def test_a_sound_index_is_read(good: Path, bad: Path) -> None:
    (bad / INDEX).write_text(json.dumps({"weight_map": sharded(bad)}))
    assert (alps.scan(good, bad)["delta_norm"] < 1e-6).all()


# The configuration.


def test_no_configuration(tmp_path: Path, good: Path, bad: Path) -> None:
    (bad / "config.json").unlink()
    said = [f"{bad}: ", "number and the size of the heads", f"there is no {bad / 'config.json'}"]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_configuration_that_is_no_object(tmp_path: Path, good: Path, bad: Path, text: str) -> None:
    (bad / "config.json").write_text(text)
    said = [f"{bad / 'config.json'}: the configuration, which should be a JSON object, cannot be read"]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


def test_a_configuration_that_is_not_utf_8(tmp_path: Path, good: Path, bad: Path) -> None:
    (bad / "config.json").write_bytes(b'{"model_type": "ll\xe4ma"}')
    said = [f"{bad / 'config.json'}: the file is not UTF-8 text: byte 18"]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


NEEDED = ["model_type", "num_hidden_layers", "num_attention_heads", "hidden_size"]


@pytest.mark.parametrize("key", NEEDED)
def test_a_configuration_without_a_needed_key(tmp_path: Path, good: Path, bad: Path, key: str) -> None:
    config = SHAPE.config()
    del config[key]
    said = "has no" if key == "model_type" else "does not say"
    (bad / "config.json").write_text(json.dumps(config))
    refused_alone(tmp_path, alps.ModelError, good, bad, [f"{bad}: ", f"`{key}`", said])


VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "zero heads": ({"num_attention_heads": 0}, ["`num_attention_heads`", "whole number from 1", "`0`"]),
    "negative size": ({"hidden_size": -24}, ["`hidden_size`", "whole number", "`-24`"]),
    "half a head": ({"num_attention_heads": 4.5}, ["`num_attention_heads`", "`4.5`"]),
    "text": ({"num_hidden_layers": "2"}, ["`num_hidden_layers`", "whole number"]),
    "absurd size": ({"hidden_size": 2**62}, ["`hidden_size`", str(2**62)]),
    "uneven groups": ({"num_key_value_heads": 3}, ["4 query heads", "3 key/value heads", "not a multiple"]),
    "unknown type": (
        {"model_type": "nonsense"},
        ["`nonsense`", "no known layout", "{layer}.self_attn.q_proj", "CONTRIBUTING.md"],
    ),
    # What contradicts the shapes.
    "more layers": ({"num_hidden_layers": 3}, [f"tensor `{name(2, 'q')}` is missing", "3 layers"]),
    "more heads": (
        {"num_attention_heads": 8},
        [f"`{name(0, 'q')}`", "[32, 24]", "[16, 24]", "8 query heads of size 4"],
    ),
    "fewer groups": ({"num_key_value_heads": 1}, [f"`{name(0, 'k')}`", "[4, 24]", "[8, 24]"]),
    "larger heads": ({"head_dim": 6}, [f"`{name(0, 'q')}`", "[24, 24]", "[16, 24]", "size 6"]),
    "head size left out": ({"head_dim": None}, [f"`{name(0, 'q')}`", "[24, 24]", "[16, 24]"]),
    "wider model": ({"hidden_size": 32}, [f"`{name(0, 'q')}`", "[16, 32]", "[16, 24]", "hidden size 32"]),
    "other layout": (
        {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 24},
        ["`attn.c_attn`", "there is nothing else"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_a_configuration(tmp_path: Path, good: Path, bad: Path, kind: str) -> None:
    changes, said = VALUES[kind]
    (bad / "config.json").write_text(json.dumps(SHAPE.config() | changes))
    refused_alone(tmp_path, alps.ModelError, good, bad, [f"{bad}: ", *said])


@pytest.mark.parametrize("matrix", ["q", "k", "v"])
def test_a_tensor_that_is_missing_in_one_checkpoint(
    tmp_path: Path, good: Path, bad: Path, matrix: str
) -> None:
    tensors = random_weights(SHAPE, seed=1)
    del tensors[name(1, matrix)]
    write(bad, SHAPE.config(), tensors)
    refused_alone(tmp_path, alps.ModelError, good, bad, [f"{bad}: tensor `{name(1, matrix)}` is missing"])


def test_a_tensor_of_another_shape(tmp_path: Path, good: Path, bad: Path) -> None:
    """As many weights as there should be, in other places."""
    tensors = random_weights(SHAPE, seed=1)
    tensors[name(1, "v")] = tensors[name(1, "v")].reshape(24, 8)
    write(bad, SHAPE.config(), tensors)
    refused_alone(
        tmp_path, alps.ModelError, good, bad, [f"{bad}: ", f"`{name(1, 'v')}`", "[8, 24]", "[24, 8]"]
    )


# Two models that are not one.

OTHERS: dict[str, tuple[Shape, str]] = {
    "layers": (Shape(layers=1), "layers with attention is 2 in the one, 1 in the other"),
    "heads": (Shape(layers=2, query_heads=8), "query heads is 4 in the one, 8 in the other"),
    "groups": (Shape(layers=2, key_value_heads=4), "key/value heads is 2 in the one, 4 in the other"),
    "head size": (Shape(layers=2, head_size=8), "size of a head is 4 in the one, 8 in the other"),
    "hidden size": (Shape(layers=2, hidden_size=16), "hidden size is 24 in the one, 16 in the other"),
    # The same tensors, cut into heads in another way.
    "equal shapes": (
        Shape(layers=2, query_heads=8, key_value_heads=4, head_size=2),
        "size of a head is 4 in the one, 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_models_of_different_geometry(tmp_path: Path, good: Path, what: str) -> None:
    shape, said = OTHERS[what]
    other = checkpoint(tmp_path / "other", shape)
    found = refused(tmp_path, alps.PairError, (good, other), [f"{good} and {other}", said])
    assert isinstance(found, alps.PairError)
    assert (found.base, found.tuned) == (str(good), str(other))


def test_models_of_different_types(tmp_path: Path) -> None:
    shape = Shape(query_heads=4, key_value_heads=4, head_size=6)
    base = checkpoint(tmp_path / "base", shape)
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 4, "n_embd": 24}
    other = write(tmp_path / "other", config, {"h.0.attn.c_attn.weight": torch.zeros(24, 72)})
    said = ["layout is separate (model type llama) in the one, transposed (model type gpt2) in the other"]
    refused(tmp_path, alps.PairError, (base, other), [f"{base} and {other}", *said])


# Weights.


@pytest.mark.parametrize("form", ["qkv", "product"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("matrix", ["q", "k", "v"])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_weight_that_is_not_finite(tmp_path: Path, side: str, matrix: str, dtype: str, form: str) -> None:
    shape = Shape(layers=2, hidden_size=300)  # blocks end inside rows
    tensors = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, seed=1).items()}
    good = write(tmp_path / "good", shape.config(), tensors)
    rows = shape.rows()[matrix]
    kind = {"q": "query", "k": "key", "v": "value"}[matrix]
    for number, text, row, column in (
        (float("nan"), "NaN", rows - 1, 299),
        (float("inf"), "inf", 0, 0),
        (float("-inf"), "-inf", rows // 2 - 1, 129),
    ):
        broken = dict(tensors)
        broken[name(1, matrix)] = tensors[name(1, matrix)].clone()
        broken[name(1, matrix)][row, column] = number
        bad = write(tmp_path / "bad", shape.config(), broken)
        pair = (bad, good) if side == "base" else (good, bad)
        found = refused(tmp_path, alps.WeightsError, pair, [], form=form)
        assert str(found) == (
            f"{bad / WEIGHTS}: tensor {name(1, matrix)} holds {text} at [{row}, {column}] "
            f"({kind} head {row // shape.head_size} of layer 1); every weight has to be finite"
        )
        assert isinstance(found, alps.WeightsError)
        head = (kind, row // shape.head_size, 1)
        assert (found.path, found.tensor) == (str(bad / WEIGHTS), name(1, matrix))
        assert (found.position, (found.role, found.head, found.layer)) == ((row, column), head)
        assert repr(found.value) == repr(number)
        assert alps.geometry(bad) == alps.geometry(good)


@pytest.mark.parametrize("form", ["qkv", "product"])
def test_a_weight_that_is_not_finite_in_both(tmp_path: Path, bad: Path, form: str) -> None:
    tensors = random_weights(SHAPE, seed=1)
    tensors[QUERY][5, 7] = float("nan")
    write(bad, SHAPE.config(), tensors)
    refused(tmp_path, alps.WeightsError, (bad, bad), [f"tensor {QUERY} holds NaN at [5, 7]"], form=form)


@pytest.mark.parametrize("form", ["qkv", "product"])
def test_a_weight_that_is_not_finite_in_a_transposed_tensor(tmp_path: Path, form: str) -> None:
    """The place is that in the file, of the key part of the columns."""
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 4, "n_embd": 24}
    weight = torch.randn(24, 72, generator=torch.Generator().manual_seed(1))
    good = write(tmp_path / "good", config, {"h.0.attn.c_attn.weight": weight})
    weight[11, 24 + 2 * 6 + 1] = float("nan")
    bad = write(tmp_path / "bad", config, {"h.0.attn.c_attn.weight": weight})
    said = ["tensor h.0.attn.c_attn.weight holds NaN at [11, 37] (key head 2 of layer 0)"]
    refused(tmp_path, alps.WeightsError, (good, bad), said, form=form)


def test_the_shard_of_a_bad_weight_is_named(tmp_path: Path, good: Path, bad: Path) -> None:
    (bad / INDEX).write_text(json.dumps({"weight_map": sharded(bad)}))
    part = {key: weight for key, weight in random_weights(SHAPE, seed=1).items() if ".1." in key}
    part[QUERY][0, 0] = float("nan")
    save_file(part, bad / "model-2.safetensors")
    refused(tmp_path, alps.WeightsError, (good, bad), [f"{bad / 'model-2.safetensors'}: tensor {QUERY}"])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_first_of_several_bad_weights_is_named(tmp_path: Path, threads: int) -> None:
    """Whatever thread finds its own first."""
    shape = Shape(layers=1, query_heads=16, key_value_heads=16, head_size=1, hidden_size=40_000)
    tensors = random_weights(shape, seed=1)
    good = write(tmp_path / "good", shape.config(), tensors)
    tensors[name(0, "q")][3, -1] = float("nan")
    tensors[name(0, "q")][4, 0] = float("nan")
    tensors[name(0, "k")][5:, 0] = float("nan")
    bad = write(tmp_path / "bad", shape.config(), tensors)
    for _ in range(20):
        with pytest.raises(alps.WeightsError, match="query head 3 of layer 0"):
            alps.scan(good, bad, threads=threads)


QUANTISED = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@pytest.mark.parametrize("dtype", QUANTISED)
@pytest.mark.parametrize("matrix", ["q", "k", "v"])
def test_quantised_weights(tmp_path: Path, good: Path, bad: Path, matrix: str, dtype: str) -> None:
    tensors = random_weights(SHAPE, seed=1)
    tensors[name(1, matrix)] = tensors[name(1, matrix)].to(QUANTISED[dtype])
    write(bad, SHAPE.config(), tensors)
    said = [
        f"{bad}: the module `{name(1, matrix).removesuffix('.weight')}` is stored as {dtype}",
        "F16, BF16, F32 or F64",
        "dequantised first",
    ]
    for pair in ((good, bad), (bad, good)):
        refused(tmp_path, alps.ModelError, pair, said)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("form", ["qkv", "product"])
def test_weights_too_large_for_a_score(tmp_path: Path, dtype: str, form: str) -> None:
    """Finite, but their difference or a statistic of them is not: refused, never an infinite score."""
    largest = torch.finfo(DTYPES[dtype]).max
    tensors = {
        key: torch.full_like(weight, largest).to(DTYPES[dtype])
        for key, weight in random_weights(SHAPE, 1).items()
    }
    base, tuned = write_pair(
        tmp_path, SHAPE.config(), tensors, {key: -weight for key, weight in tensors.items()}
    )
    if dtype == "f32" and form == "qkv":
        assert alps.scan(base, tuned)["max_delta"][0, 0] == 2 * largest
    elif dtype == "f32":
        assert alps.scan(base, tuned, form="product")["max_delta"][0, 0] == pytest.approx(
            2 * 4 * 24 * largest**3
        )
    else:
        refused(tmp_path, alps.WeightsError, (base, tuned), ["too "], form=form)


# What is not a checkpoint of weights at all.


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def pickled(tmp_path: Path) -> bytes:
    """Shown to be dangerous."""
    created = tmp_path / "created"
    content = pickle.dumps(Trap(created))
    pickle.loads(content)
    created.unlink()
    return content


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt", "weights.pkl", WEIGHTS]
)
@pytest.mark.parametrize("archive", [False, True], ids=["plain", "zip"])
def test_a_pickle_is_never_opened(
    tmp_path: Path, good: Path, bad: Path, pickled: bytes, file: str, archive: bool
) -> None:
    (bad / WEIGHTS).unlink()
    if archive:
        torch.save(Trap(tmp_path / "created"), bad / file)
    else:
        (bad / file).write_bytes(pickled)
    said = [f"`{file}` is a pickle file", "never opened", "save_pretrained(folder, safe_serialization=True)"]
    # Where the name gives it away it is not so much as read, so it need not be readable.
    if file != WEIGHTS and os.name == "posix":
        content = (bad / file).read_bytes()
        (bad / file).unlink()
        os.mkfifo(bad / file)
        for path in (bad, bad / file):
            with pytest.raises(alps.CheckpointError, match="is a pickle file"):
                alps.geometry(path)
        (bad / file).unlink()
        (bad / file).write_bytes(content)
    for path in (bad, bad / file):
        refused_alone(tmp_path, alps.CheckpointError, good, path, said)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("adapter_model.safetensors", "no `peft_type`, so this is no adapter of PEFT"),
        ("adapter_model.bin", "no `peft_type`"),
    ],
)
def test_an_adapter_of_something_else(tmp_path: Path, good: Path, bad: Path, file: str, said: str) -> None:
    """As frameworks other than PEFT write them."""
    (bad / WEIGHTS).rename(bad / file)
    (bad / "adapter_config.json").write_text('{"rank": 8, "fine_tune_type": "lora"}')
    refused_alone(tmp_path, alps.CheckpointError, good, bad, [f"{bad / 'adapter_config.json'}: ", said])


@pytest.mark.parametrize(
    ("file", "said"),
    [("adapter_model.safetensors", "is an adapter"), ("adapter_model.bin", "is a pickle file")],
)
def test_an_adapter_without_its_configuration(
    tmp_path: Path, good: Path, bad: Path, file: str, said: str
) -> None:
    (bad / WEIGHTS).rename(bad / file)
    refused_alone(tmp_path, alps.CheckpointError, good, bad, [f"{bad}: `{file}` {said}"])


def test_a_folder_without_weights(tmp_path: Path, good: Path, bad: Path) -> None:
    (bad / WEIGHTS).unlink()
    said = [f"{bad}: expected `{WEIGHTS}` or `{INDEX}`, found `config.json`"]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


def test_several_files_without_an_index(tmp_path: Path, good: Path, bad: Path) -> None:
    sharded(bad)
    said = [f"{bad}: expected", INDEX, "2 safetensors files without an index", "`model-1.safetensors`"]
    refused_alone(tmp_path, alps.CheckpointError, good, bad, said)


# Arguments.


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-7, 1e7, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["qkv", "product"])
def test_a_temperature(tmp_path: Path, good: Path, bad: Path, temperature: float, form: str) -> None:
    said = ["the temperature is", "expected a number from 1e-6 to 1e6"]
    refused(tmp_path, alps.ArgumentError, (good, bad), said, temperature=temperature, form=form)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threads": 0}, "threads must be 1 or more, found 0"),
        ({"threads": -1}, "threads must be 1 or more, found -1"),
        ({"threads": 5000}, "threads is 5000; expected 1 to 4096"),
        ({"form": "sum"}, "no form 'sum'; the forms are qkv, product"),
        ({"statistics": ["wasserstine"]}, "form 'qkv' has no statistic 'wasserstine'; it has wasserstein, "),
        ({"statistics": ["changed"], "form": "product"}, "form 'product' has no statistic 'changed'"),
        ({"statistics": []}, "no statistic is named"),
        ({"statistics": "kl"}, "write ['kl']"),
    ],
)
def test_an_argument(good: Path, bad: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(alps.ArgumentError, match=re.escape(said)) as caught:
        alps.scan(good, bad, **arguments)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("ratio", [-0.1, 1.0000001, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["global", "per_layer", "key_value_groups", "random", "layer_consistent"])
def test_a_ratio(good: Path, bad: Path, rule: Rule, ratio: float) -> None:
    with pytest.raises(alps.ArgumentError, match="ratio"):
        alps.scan(good, bad).select(ratio, rule=rule)


@pytest.mark.parametrize(
    "options",
    [["--ratio", "1.5"], ["--ratio", "nan"], ["--ratio", "-1"], ["--threads", "0"], ["--form", "sum"]],
    ids=" ".join,
)
def test_an_option_of_the_command(tmp_path: Path, good: Path, bad: Path, options: list[str]) -> None:
    before = contents(tmp_path)
    command = [
        "scan",
        str(good),
        str(bad),
        "--scores",
        str(tmp_path / "scores.safetensors"),
        "--heads",
        str(tmp_path / "heads.json"),
    ]
    result = CliRunner().invoke(cli.app, [*command, *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert contents(tmp_path) == before


# Writing.


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def move_a_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[QUERY] = tensors[QUERY].clone()
    tensors[QUERY][:1] += 0.01
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_loses_nothing(
    tmp_path: Path, good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch, function: str, existed: bool
) -> None:
    move_a_head(bad)
    scores, heads = tmp_path / "scores.safetensors", tmp_path / "heads.json"
    if existed:
        scores.write_bytes(b"scores of before")
        heads.write_bytes(b"heads of before")
    before = contents(tmp_path)
    found = alps.scan(good, bad)
    monkeypatch.setattr(os, function, full)
    for save, path in ((found.save, scores), (found.select(0.1).save, heads)):
        with pytest.raises(OSError, match="No space left") as caught:
            save(path)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    command = ["scan", str(good), str(bad), "--scores", str(scores), "--heads", str(heads)]
    result = CliRunner().invoke(cli.app, command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"alps: error: {scores}: No space left on device\n"
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("room", [0, 1, 200])
def test_an_interrupted_write_loses_nothing(tmp_path: Path, good: Path, bad: Path, room: int) -> None:
    """The operating system itself ends the file after `room` bytes."""
    move_a_head(bad)
    scores, heads = tmp_path / "scores.safetensors", tmp_path / "heads.json"
    scores.write_bytes(b"scores of before")
    heads.write_bytes(b"heads of before")
    before = contents(tmp_path)
    code = (
        "import resource, alps.cli; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY)); alps.cli.main()"
    )
    for option, path in (("--scores", scores), ("--heads", heads)):
        command = [sys.executable, "-B", "-c", code, "scan", str(good), str(bad), option, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert result.stderr == f"alps: error: {path}: {os.strerror(errno.EFBIG)}\n"
        assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["--scores", "--heads"])
def test_an_unwritable_output_is_refused_before_the_scan(
    tmp_path: Path, good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    scanned: list[object] = []
    monkeypatch.setattr(alps, "scan", lambda *paths, **_: scanned.append(paths))
    before = contents(tmp_path)
    suffix = {"--scores": ".safetensors", "--heads": ".json"}[option]
    (tmp_path / f"folder{suffix}").mkdir()
    for target, said in (
        (f"none/file{suffix}", "there is no such folder"),
        (f"folder{suffix}", "Is a directory"),
        ("file.txt", f"name ends in {suffix}; found .txt"),
    ):
        result = CliRunner().invoke(cli.app, ["scan", str(good), str(bad), option, str(tmp_path / target)])
        assert result.exit_code == 1
        assert said in result.stderr
    assert scanned == []
    assert contents(tmp_path) == before
