"""Memory and time of hostile files: at most 100 MB and four bytes for each byte of JSON, whatever it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import hostile_files
from support.checkpoints import Shape, write_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")


ALLOWED = {"adapter: 60 allowed patterns", "adapter: names", "adapter: modules", "adapter: biases", "adapter: steps"}
"""What is dense and fits."""

LIMITED = """
import resource, sys
import alps
read = alps.scan, alps.AlpsError, alps.HeadScores  # imported before there is no memory left
status = open("/proc/self/status").read().splitlines()
size = next(int(line.split()[1]) for line in status if line.startswith("VmSize"))
limit = size * 1024 + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    alps.scan(sys.argv[1], sys.argv[2], threads=4096)
except (alps.AlpsError, OSError, MemoryError) as error:
    print(type(error).__name__, error)
else:
    print("scanned")
"""


@pytest.mark.parametrize("kind", ["a wide pair", "large headers"])
def test_a_scan_without_memory_ends_with_an_error(kind: str, tmp_path: Path) -> None:
    if kind == "a wide pair":
        shape = Shape(layers=12, query_heads=32, key_value_heads=8, head_size=64, hidden_size=2048)
        models = write_zeros(tmp_path, shape)
    else:
        hostile_files.write_model(tmp_path / "model", hostile_files.tiny_header(20 << 20))
        models = tmp_path / "model", tmp_path / "model"
    said = []
    for more in [*(int(0.25e6 * 1.5**number) for number in range(19)), 8 << 30]:
        command = [sys.executable, "-W", "ignore", "-c", LIMITED, *map(str, models), str(more)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{more} bytes: {ran.returncode}: {ran.stderr[-2000:]}"
        assert ran.stdout.count("\n") == 1
        said.append(ran.stdout[:200])
    print("".join(said))
    assert any("memory" in text or "thread" in text for text in said)
    assert ("scanned" if kind == "a wide pair" else "ModelError") in said[-1]


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
        is_refused = ": " in measured["said"]
        if measured["seconds"] > 2 + size / 2e6 or is_refused == (kind in ALLOWED):
            unexpected.append(f"{kind}: {measured['seconds']:.1f} s: {measured['said'][:200]}")
    assert found.keys() == kinds.keys()
    assert not too_much, "\n".join(too_much)
    assert not unexpected, "\n".join(unexpected)
