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


ALLOWED = {
    "adapter: 60 allowed patterns",
    "adapter: names",
    "adapter: modules",
    "adapter: biases",
    "adapter: whole modules",
}
"""What is dense and fits."""

LIMITED = """
import resource, sys, warnings
import alps.cli, alps.cli.program, alps.cli.scores, alps.remote.store
from pathlib import Path
size = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
limit = size * 1024 + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
alps.cli.main()
"""


@pytest.mark.parametrize("kind", ["a wide pair", "large headers"])
def test_a_scan_without_memory_ends_with_an_error(kind: str, tmp_path: Path) -> None:
    if kind == "a wide pair":
        shape = Shape(layers=12, query_heads=32, key_value_heads=8, head_size=64, hidden_size=2048)
        models = write_zeros(tmp_path, shape)
    else:
        hostile_files.write_model(tmp_path / "model", hostile_files.tiny_header(20 << 20))
        models = tmp_path / "model", tmp_path / "model"
    arguments = [
        "scan",
        *map(str, models),
        "--threads",
        "4096",
        "--scores",
        str(tmp_path / "scores.safetensors"),
    ]
    codes = []
    for number in range(20):
        more = int(0.25e6 * 1.5**number)  # to 550 MB
        command = [sys.executable, "-c", LIMITED, str(more), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        codes.append(ran.returncode)
        lines = [line for line in ran.stderr.splitlines() if not line.startswith("alps: warning: ")]
        assert ran.returncode in (0, 1), f"{more} bytes: {ran.returncode}: {ran.stderr[-2000:]}"
        if ran.returncode:
            assert len(lines) == 1 and lines[0].startswith("alps: error: "), (
                f"{more} bytes: {ran.stderr[-2000:]}"
            )
    print(kind, codes)


def test_memory_is_bounded_by_the_bytes_of_json(tmp_path: Path) -> None:
    kinds = hostile_files.write_all(tmp_path)
    program = Path(hostile_files.__file__)
    ran = subprocess.run(
        [sys.executable, program, tmp_path],
        input=json.dumps(kinds),
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    too_much, unexpected = [], []
    for kind, (_, path) in kinds.items():
        measured, size = found[kind], hostile_files.json_bytes(Path(path))
        if measured["peak"] > 100e6 + 4 * size:
            too_much.append(
                f"{kind}: {measured['peak'] / 1e6:.0f} MB for {size / 1e6:.1f} MB: {measured['said'][:200]}"
            )
        is_refused = ": " in measured["said"]
        if measured["seconds"] > 2 + size / 2e6 or is_refused == (kind in ALLOWED):
            unexpected.append(f"{kind}: {measured['seconds']:.1f} s: {measured['said'][:200]}")
    assert found.keys() == kinds.keys()
    assert not too_much, "\n".join(too_much)
    assert not unexpected, "\n".join(unexpected)
