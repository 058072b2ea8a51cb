"""Mapped files: what happens to the process when one becomes shorter, and how mapping is switched off.

The accesses that fail are made in processes of their own, since they may end them.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import alps
from alps import cli
from support.checkpoints import Shape, write_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are mapped on Linux only")

PRELUDE = """
import faulthandler, mmap, os, re, sys
from pathlib import Path
import alps

folder = Path(sys.argv[1])
base, weights = (folder / side / "model.safetensors" for side in ("base", "tuned"))
whole = weights.stat().st_size

def scan(meanwhile, **arguments):
    # What is not in memory is read instead.
    buffer = bytearray(1 << 20)
    for path in (base, weights):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    # Once some bytes are done, others are mapped.
    progress = lambda done, total: done and meanwhile()
    return alps.scan(base.parent, weights.parent, threads=2, progress=progress, **arguments)

def has_handler():
    # By the kernel, since Python knows only of its own.
    caught = re.search(r"^SigCgt:\\s+(\\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(caught[1], 16) >> (7 - 1) & 1)

def cut():
    os.truncate(weights, 30_000)

def scan_while_it_is_cut(before=lambda: None):
    os.truncate(weights, whole)
    def meanwhile():
        before()
        cut()
    try:
        scan(meanwhile)
    except alps.CheckpointError as error:
        assert "truncated meanwhile" in str(error), error
    else:
        raise AssertionError("nothing was noticed")

def read_a_lost_page():
    path = folder / "other"
    path.write_bytes(bytes(100_000))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.truncate(path, 10)
    mapped[90_000]
"""


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Long enough to look at that there is time for something else: 1.5 GiB of zeros, half of them on either side."""
    shape = Shape(layers=8, query_heads=32, key_value_heads=8, head_size=128, hidden_size=8192)
    write_zeros(tmp_path, shape)
    return tmp_path


def run(pair: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # The zeros of both checkpoints are equal, of which a scan warns.
        [sys.executable, "-W", "ignore::UserWarning", "-c", PRELUDE + script, pair],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_ended_by_python(ran: subprocess.CompletedProcess[str]) -> None:
    """Its own handler was called: it says where the process was, and ends it."""
    assert ran.returncode == -signal.SIGBUS, ran.stderr
    assert ran.stderr.startswith("Fatal Python error: Bus error"), ran.stderr


def test_the_handler_is_there_during_a_scan_and_no_longer(pair: Path) -> None:
    ran = run(
        pair,
        """
assert not has_handler()
seen = []
scan(lambda: seen.append(has_handler()))
assert seen[0], seen
assert not has_handler()
scan_while_it_is_cut()
assert not has_handler()
""",
    )
    assert ran.returncode == 0, ran.stderr


def test_another_handler_is_there_again_after_a_scan(pair: Path) -> None:
    ran = run(pair, "faulthandler.enable()\nscan_while_it_is_cut()\nread_a_lost_page()")
    assert_ended_by_python(ran)
    assert "read_a_lost_page" in ran.stderr


def test_what_is_missing_elsewhere_ends_the_process_during_a_scan(pair: Path) -> None:
    ran = run(pair, "scan(read_a_lost_page)")
    assert ran.returncode == -signal.SIGBUS, ran.stderr
    assert ran.stderr == ""


def test_what_is_missing_elsewhere_is_for_the_handler_before(pair: Path) -> None:
    ran = run(pair, "faulthandler.enable()\nscan(read_a_lost_page)")
    assert_ended_by_python(ran)
    assert "read_a_lost_page" in ran.stderr


def test_a_signal_that_was_sent_ends_the_process(pair: Path) -> None:
    ran = run(pair, "scan(lambda: os.kill(os.getpid(), 7))")
    assert ran.returncode == -signal.SIGBUS, ran.stderr


def test_a_handler_put_over_it_comes_first(pair: Path) -> None:
    """What it does is its own affair; Python's ends the process."""
    ran = run(pair, "scan_while_it_is_cut(faulthandler.enable)")
    assert_ended_by_python(ran)


def test_a_handler_put_over_it_stays(pair: Path) -> None:
    """Files are read from then on, since nobody could answer for what goes missing."""
    ran = run(
        pair,
        """
scan(faulthandler.enable)
assert has_handler()
scan_while_it_is_cut()
faulthandler.disable()
scan_while_it_is_cut()
""",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("variable", "arguments", "maps"),
    [
        ({}, "", True),
        ({}, "mmap=False", False),
        ({"ALPS_MMAP": "0"}, "", False),
        ({"ALPS_MMAP": "1"}, "", True),
        ({"ALPS_MMAP": "0"}, "mmap=True", True),
        ({"ALPS_MMAP": "1"}, "mmap=False", False),
    ],
)
def test_mapping_can_be_switched_off(
    pair: Path, variable: dict[str, str], arguments: str, maps: bool
) -> None:
    script = (
        f"seen = []\nscan(lambda: seen.append(has_handler()), {arguments})\nassert any(seen) is {maps}, seen"
    )
    ran = run(pair, script, **variable)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("value", ["", "2", "yes", " 1"])
def test_another_value_of_the_variable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ALPS_MMAP", value)
    with pytest.raises(alps.ArgumentError) as caught:
        alps.scan(tmp_path, tmp_path)
    assert str(caught.value) == f"the environment variable ALPS_MMAP must be 0 or 1, found {value!r}"


@pytest.mark.parametrize(("option", "expected"), [([], None), (["--mmap"], True), (["--no-mmap"], False)])
def test_the_command_passes_the_option_on(
    monkeypatch: pytest.MonkeyPatch, option: list[str], expected: bool | None
) -> None:
    seen: list[bool | None] = []

    def scan(*_: object, mmap: bool | None, **__: object) -> None:
        seen.append(mmap)
        raise alps.ArgumentError("seen")

    monkeypatch.setattr(alps, "scan", scan)
    CliRunner().invoke(cli.app, ["scan", "base", "tuned", *option])
    assert seen == [expected]
