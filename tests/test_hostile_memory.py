"""Memory and time of hostile files: at most 100 MB and four bytes for each byte of JSON, whatever it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import hostile_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")


def test_memory_is_bounded_by_the_bytes_of_json(tmp_path: Path) -> None:
    kinds = hostile_files.write_all(tmp_path)
    program = Path(hostile_files.__file__)
    ran = subprocess.run(
        [sys.executable, program, tmp_path], input=json.dumps(kinds), capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    too_much, unexpected = [], []
    for kind, (_, path) in kinds.items():
        measured, size = found[kind], hostile_files.json_bytes(Path(path))
        if measured["peak"] > 100e6 + 4 * size:
            too_much.append(f"{kind}: {measured['peak'] / 1e6:.0f} MB for {size / 1e6:.1f} MB: {measured['said'][:200]}")
        if measured["seconds"] > 2 + size / 2e6 or ": " not in measured["said"]:
            unexpected.append(f"{kind}: {measured['seconds']:.1f} s: {measured['said'][:200]}")
    assert found.keys() == kinds.keys()
    assert not too_much, "\n".join(too_much)
    assert not unexpected, "\n".join(unexpected)
