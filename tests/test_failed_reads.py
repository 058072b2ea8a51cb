"""Reads and allocations that fail, one after the other: the error is right, nothing is left, and the next call works.

`rust/failing.rs` does so for the files of this machine and for the memory of the extension.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import alps
from support.checkpoints import Shape, random_weights, write_pair

SHAPE = Shape(layers=2)


class Failing(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem of which the question number `fails_at` is refused."""

    cachable = False
    asked = 0
    fails_at: int | None = None

    def _count(self) -> None:
        Failing.asked += 1
        if Failing.asked - 1 == Failing.fails_at:
            raise PermissionError("injected")

    def ls(self, *arguments: Any, **options: Any) -> Any:
        self._count()
        return super().ls(*arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self._count()
        return super().cat_file(*arguments, **options)


def state() -> tuple[int, int]:
    """The open files and the threads of this process, once those of ended calls are gone."""
    for _ in range(100):
        gc.collect()
        if not any(thread.name == "alps-store" for thread in threading.enumerate()):
            break
        time.sleep(0.02)
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    return files, threading.active_count()


def test_a_store_that_fails_at_any_question(tmp_path: Path) -> None:
    models = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    filesystem = Failing()
    for model in models:
        for file in model.iterdir():
            filesystem.pipe_file(f"/failing/{model.name}/{file.name}", file.read_bytes())
    paths = [alps.RemotePath(filesystem, f"/failing/{model.name}") for model in models]

    def scan(fails_at: int | None, memory: int) -> alps.HeadScores:
        Failing.asked, Failing.fails_at = 0, fails_at
        return alps.scan(*paths, threads=2, memory=memory)

    try:
        for memory in (1, 1 << 20):
            expected = scan(None, memory)
            questions, before = Failing.asked, state()
            refused = 0
            for question in range(questions):
                try:
                    assert scan(question, memory) == expected  # a question whose answer is known otherwise
                except PermissionError as error:
                    assert error.strerror == "injected"
                    refused += 1
            assert refused > questions // 2
            assert scan(None, memory) == expected
            after = state()
            assert after[0] <= before[0] + 1 and after[1] <= before[1]
    finally:
        filesystem.rm("/failing", recursive=True)


WITHOUT_MEMORY = """
import sys
from pathlib import Path
import _testcapi
import alps
heads, folder = alps.HeadSet.load(sys.argv[1]), Path(sys.argv[1]).parent
def save():
    heads.save(folder / "saved.json")
    return heads
calls = {"load": lambda: alps.HeadSet.load(sys.argv[1]), "save": save}
call = calls[sys.argv[2]]
assert call() == heads
failed = 0
for number in range(100_000):
    try:
        _testcapi.set_nomemory(number, number + 1)
        try:
            call()
        finally:
            _testcapi.remove_mem_hooks()
    except Exception:  # Python itself makes a TypeError of a MemoryError here and there
        failed += 1
    else:
        if number > 50 and number - failed > 50:
            break
    assert call() == heads
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
print(failed)
"""


@pytest.mark.parametrize("call", ["load", "save"])
def test_saved_files_without_memory_for_any_object(call: str, tmp_path: Path) -> None:
    pytest.importorskip("_testcapi")
    models = write_pair(tmp_path, SHAPE.config(), random_weights(SHAPE, 1), random_weights(SHAPE, 2))
    alps.HeadSet.from_pairs([(0, 1), (1, 2)], alps.geometry(models[0])).save(tmp_path / "heads.json")
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, tmp_path / "heads.json", call],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) > 20
