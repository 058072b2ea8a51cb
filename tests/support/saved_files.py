"""What has to hold for any content of a saved file, for `test_fuzz.py` and for `fuzz/saved_files.py`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alps
from alps.errors import CheckpointError

LONGEST_MESSAGE = 2000


def check_heads(content: bytes) -> None:
    """The text of a head set is refused, or is saved again as a set that is the same."""
    heads = _read(lambda: alps.HeadSet.from_json(content))
    if heads is not None:
        assert alps.HeadSet.from_json(heads.to_json()) == heads
        assert heads.report.heads == len(heads.pairs())


def check_scores(content: bytes) -> None:
    """A file with this header is refused, or is saved again as scores that are the same."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        file, again = Path(folder, "scores"), Path(folder, "again")
        file.write_bytes(with_data(content))
        scores = _read(lambda: alps.HeadScores.load(file))
        if scores is not None:
            scores.save(again)
            assert alps.HeadScores.load(again) == scores


def check_part(content: bytes) -> None:
    """A file with this header is refused, or is saved again as a part that is the same."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        file, again = Path(folder, "part"), Path(folder, "again")
        file.write_bytes(with_data(content))
        part = _read(lambda: alps.Part.load(file))
        if part is not None:
            part.save(again)
            assert sorted(alps.Part.load(again).rows) == sorted(part.rows)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "heads": check_heads,
    "scores": check_scores,
    "part": check_part,
}
"""By the names of their folders in `fuzz/corpus/`."""


def with_data(header: bytes) -> bytes:
    """A safetensors file with this header, and as many zeros as its tensors claim, within bounds."""
    try:
        ends = [
            entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"
        ]
        length = min(max([0, *ends]), 1 << 16)
        data = bytes(length)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
        MemoryError,
        OverflowError,
    ):
        data = b""
    return len(header).to_bytes(8, "little") + header + data


def _read(read: Callable[[], Any]) -> Any:
    """What is read, or nothing if it is refused in one short line."""
    try:
        return read()
    except CheckpointError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < LONGEST_MESSAGE
    return None


def _memory() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
