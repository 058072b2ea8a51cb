"""Files that another program changes while they are scanned: the scan is refused or right, never wrong.

ALPS_TRIES sets how often each way is tried; a few times when it is not set.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import alps
from alps.statistics import Form
from support.checkpoints import Shape, random_weights, write_pair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="punches holes, and renames what is open")

TRIES = int(os.environ.get("ALPS_TRIES", "8"))

SHAPE = Shape(layers=4, query_heads=8, key_value_heads=4, head_size=64, hidden_size=768)


def rewrite(file: Path) -> None:
    """Writes other weights over the second half, in pieces."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        for start in range(size // 2, size - 8, size // 16):
            opened.seek(start)
            opened.write(bytes(size // 32))
            opened.flush()


def replace(file: Path) -> None:
    """Puts another file of the same size in its place."""
    other = file.with_name("other")
    shutil.copyfile(file, other)
    rewrite(other)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


def truncate_and_extend(file: Path) -> None:
    """Loses the second half, which then reads as zeros."""
    size = file.stat().st_size
    os.truncate(file, size // 2)
    os.truncate(file, size)


def punch(file: Path) -> None:
    """Makes a hole in the middle."""
    size = file.stat().st_size
    keep_size, punch_hole = 1, 2
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("r+b") as opened:
        start, length = ctypes.c_long(size // 2), ctypes.c_long(size // 4)
        if libc.fallocate(opened.fileno(), keep_size | punch_hole, start, length):
            pytest.skip("the file system punches no holes")


def append(file: Path) -> None:
    """Adds bytes at the end."""
    with file.open("ab") as opened:
        opened.write(bytes(1000))


def write_back_times(file: Path) -> None:
    """Writes other weights and sets the time of the last change back."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    rewrite(file)
    os.utime(file, ns=times)


def configure(file: Path) -> None:
    """Puts another configuration beside the weights, of heads of half the size."""
    config = file.with_name("config.json")
    other = json.loads(config.read_text()) | {
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 32,
    }
    config.with_name("other").write_text(json.dumps(other))
    config.with_name("other").replace(config)


WAYS: list[Callable[[Path], None]] = [
    rewrite, replace, truncate_and_extend, punch, append, write_back_times, configure,
]  # fmt: skip

Scores = dict[str, np.ndarray]


def scanned(models: tuple[Path, Path], mmap: bool, form: Form = "qkv") -> Scores | str:
    """The scores, or why there are none."""
    try:
        return dict(alps.scan(*models, mmap=mmap, form=form).items())
    except (alps.AlpsError, OSError) as error:
        return str(error)


def equal(one: Scores | str, other: Scores | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return False
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


@pytest.mark.parametrize("change", WAYS, ids=[way.__name__ for way in WAYS])
def test_a_changing_file_is_refused_or_right(change: Callable[[Path], None], tmp_path: Path) -> None:
    weights = random_weights(SHAPE, 1), random_weights(SHAPE, 2)
    models = write_pair(tmp_path, SHAPE.config(), *weights)
    shutil.copytree(tmp_path / "tuned", tmp_path / "pristine")
    file = models[1] / "model.safetensors"
    started = time.monotonic()
    before = scanned(models, True)
    took = time.monotonic() - started
    change(file)
    after = scanned(models, False)
    refused = 0
    for _ in range(TRIES):
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(tmp_path / "pristine" / name, tmp_path / "copy")
            (tmp_path / "copy").replace(models[1] / name)
        changing = threading.Timer(random.uniform(0, 1.1 * took), change, [file])
        changing.start()
        found = scanned(models, random.random() < 0.5)
        changing.join()
        if isinstance(found, str):
            refused += 1
        else:
            assert equal(found, before) or equal(found, after), "wrong scores without a word"
    print(f"{change.__name__}: {refused} of {TRIES} refused")
