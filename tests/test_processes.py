"""Forks, signals, threads and kills: what other parts of a process, and other processes, may do during a call.

ALPS_TRIES sets how often the tests try; a few times when it is not set.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import alps
from support import hostile_files
from support.checkpoints import Shape, random_weights, write_pair, write_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and sends signals")

TRIES = int(os.environ.get("ALPS_TRIES", "6"))

FORK = """
import os, sys, threading, time, warnings
import alps
warnings.simplefilter("ignore")
base, tuned, forks = sys.argv[1], sys.argv[2], int(sys.argv[3])
stop = threading.Event()
alps.scan(base, tuned)  # imports all that it needs, whose locks are Python's
def scan():
    while not stop.is_set():
        alps.scan(base, tuned)
threads = [threading.Thread(target=scan) for _ in range(2)]
for thread in threads:
    thread.start()
time.sleep(0.2)
hung = failed = 0
for _ in range(forks):
    child = os.fork()
    if child == 0:
        try:
            alps.scan(base, tuned)
            os._exit(0)
        finally:
            os._exit(1)
    end = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.001)
    if ended == (0, 0):
        hung += 1
        os.kill(child, 9)
        os.waitpid(child, 0)
    failed += ended[1] != 0
stop.set()
for thread in threads:
    thread.join()
print(hung, failed)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    shape = Shape(layers=2)
    weights = random_weights(shape, 1), random_weights(shape, 2)
    return write_pair(tmp_path_factory.mktemp("pair"), shape.config(), *weights)


@pytest.fixture(scope="module")
def wide_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of some hundred MB of zeros."""
    shape = Shape(layers=12, query_heads=32, key_value_heads=8, head_size=64, hidden_size=2048)
    return write_zeros(tmp_path_factory.mktemp("wide"), shape)


@pytest.fixture(scope="module")
def large_header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose header has almost as many bytes as the format allows."""
    folder = tmp_path_factory.mktemp("large") / "model"
    hostile_files.write_model(folder, hostile_files.tiny_header(95_000_000))
    return folder


def test_a_child_scans_while_the_parent_did(pair: tuple[Path, Path]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORK, *pair, str(max(60, TRIES))], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "0 0\n"


GAPS = """
import sys, threading, time
import alps
gaps, stop = [], threading.Event()
def tick():
    last = time.monotonic()
    while not stop.is_set():
        time.sleep(0.002)
        gaps.append(time.monotonic() - last)
        last += gaps[-1]
thread = threading.Thread(target=tick)
thread.start()
started = time.monotonic()
try:
    alps.geometry(sys.argv[1])
except alps.AlpsError:
    pass
took = time.monotonic() - started
stop.set()
thread.join()
print(max(gaps), took)
"""


def test_other_threads_run_while_a_header_is_read(large_header: Path) -> None:
    gaps = []
    for _ in range(3):  # other programs may take the cores for a while
        ran = subprocess.run(
            [sys.executable, "-c", GAPS, large_header], capture_output=True, text=True, check=True
        )
        gap, took = map(float, ran.stdout.split())
        assert took > 0.2, "the header was to take a while"
        gaps.append(gap)
        if gap < 0.1:
            return
    pytest.fail(f"other threads waited for {gaps} s")


STARTED = "started"
COMMAND = f"""
import signal, sys
from alps import cli
signal.signal(signal.SIGINT, cli.end_at_once)
print({STARTED!r}, file=sys.stderr, flush=True)
cli.main()
"""
"""The command, which says when it begins: before that, Ctrl-C is answered by Python, with a traceback or without."""


def interrupt(arguments: list[str], wait: float) -> tuple[float, int, str]:
    """Starts the command, and sends it Ctrl-C a while after it has begun. Returns what `answer` does."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().strip() == STARTED
    return answer(process, wait)


def answer(process: subprocess.Popen[str], wait: float) -> tuple[float, int, str]:
    """Sends Ctrl-C to a process after a while. Returns what it took to answer, the exit code, and the messages."""
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, messages = process.communicate(timeout=60)
    return time.monotonic() - sent, process.returncode, messages


SLEEP = "import alps.cli, alps.cli.scores, time; alps.scan, alps.HeadScores; time.sleep(100)"


def usual_answer() -> float:
    """Seconds after which a process that only sleeps has ended after Ctrl-C, on this machine at this moment."""
    answers = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", SLEEP], stderr=subprocess.PIPE, text=True)
        took, _, _ = answer(process, 2 * start_up())
        answers.append(took)
    return max(answers)


def start_up() -> float:
    """Seconds that the command takes before it reads anything."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "alps.cli", "--version"], capture_output=True, check=True)
    return time.monotonic() - started


@pytest.mark.parametrize("kind", ["large headers", "a wide pair"])
def test_ctrl_c_is_answered_at_any_moment(
    kind: str, large_header: Path, wide_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    models = [large_header, large_header] if kind == "large headers" else wide_pair
    scores = tmp_path / "scores.safetensors"
    arguments = ["scan", *map(str, models), "--scores", str(scores)]
    usual, started = usual_answer(), time.monotonic()
    subprocess.run([sys.executable, "-m", "alps.cli", *arguments], capture_output=True, check=False)
    whole = time.monotonic() - started
    scores.unlink(missing_ok=True)
    slow, codes = [], []
    for _ in range(TRIES):
        took, code, messages = interrupt(arguments, random.uniform(0, whole))
        codes.append(code)
        if took > usual + 0.5:
            slow.append(took)
        assert code in (0, 1, 130), (code, messages)  # it may have ended before
        assert "Traceback" not in messages
        left = {path.name for path in tmp_path.iterdir()}
        assert left <= (set() if code == 1 else {scores.name})
        if left:  # Ctrl-C came after the file was whole, while the table was printed
            alps.HeadScores.load(scores)
        scores.unlink(missing_ok=True)
    print(
        f"{kind}: {len(codes)} tries, {codes.count(130)} answered with 130, slow: {slow}, a process that sleeps: {usual}"
    )


INTERRUPTED = """
import random, signal, sys, threading, time
import alps
answers = []
def interrupt():
    global sent
    sent = time.monotonic()
    signal.raise_signal(signal.SIGINT)
for _ in range(int(sys.argv[2])):
    timer = threading.Timer(random.uniform(0.05, 1.5), interrupt)
    timer.start()
    try:
        alps.scan(sys.argv[1], sys.argv[1])
    except KeyboardInterrupt:
        answers.append(time.monotonic() - sent)
    except alps.AlpsError:
        timer.cancel()
    timer.join()
print(max(answers, default=0), len(answers))
"""


def test_ctrl_c_is_raised_within_half_a_second(large_header: Path) -> None:
    """What the end of a process takes comes on top, which this machine decides."""
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, large_header, str(TRIES)],
        capture_output=True,
        text=True,
        check=True,
    )
    longest, count = map(float, ran.stdout.split())
    assert count > 0
    assert longest < 0.5


KILLED: dict[str, Callable[[Path, list[str]], list[str]]] = {
    "scan": lambda folder, pair: ["scan", *pair, "--scores", str(folder / "result.safetensors")],
    "graft": lambda folder, pair: [
        "graft",
        *pair,
        "--heads",
        str(folder.parent / "heads.json"),
        "-o",
        str(folder / "result"),
    ],
}


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_command_leaves_nothing_half_written(
    kind: str, wide_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    geometry = alps.geometry(wide_pair[0])
    alps.HeadSet.from_pairs([(0, 0)], geometry).save(tmp_path / "heads.json")
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "alps.cli", *KILLED[kind](folder, list(map(str, wide_pair)))]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = time.monotonic() - started
    expected = _content(folder)
    _empty(folder)
    left = 0
    for _ in range(TRIES):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.5, 1.05) * whole)
        process.kill()
        process.wait()
        left += any(path.name.startswith(".") for path in folder.iterdir())
        named = {name: size for name, size in _content(folder).items() if not name.startswith(".")}
        assert named in ({}, expected), "half written under the final name"
        _empty(folder, "result*")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert _content(folder) == expected, "a leftover was not removed"
    print(f"{kind}: {left} of {TRIES} kills left a temporary file")


def test_leftovers_of_a_name_are_removed_and_files_in_use_are_not(tmp_path: Path) -> None:
    from alps.files import write_whole
    from alps.temporary import temporary_file, temporary_folder

    target = tmp_path / "heads.json"
    stale = [tmp_path / f".heads.json.{number:016x}" for number in range(3)]
    for path in stale:
        path.write_text("half")
    others = [".heads.json.0123", ".other.json.0123456789abcdef", ".heads.json.0123456789abcdef.partial"]
    for name in others:
        (tmp_path / name).write_text("kept")
    with temporary_file(target) as (used, file):
        file.write(b"in use")
        assert not any(path.exists() for path in stale)
        write_whole(target, b"{}")
        assert used.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"heads.json", *others}
    folder = tmp_path / "graft"
    (tmp_path / ".graft.0123456789abcdef.partial" / "within").mkdir(parents=True)
    with temporary_folder(folder) as used, temporary_folder(folder) as other:
        assert used.exists()
        assert other.exists()
        other.rename(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"heads.json", *others, "graft"}


def _content(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def _empty(folder: Path, pattern: str = "*") -> None:
    import shutil

    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


FIRST_ARRAY = """
import numpy as np
import numpy.lib
import alps.files
import alps._alps

def interrupted(version):
    raise KeyboardInterrupt

numpy.lib.NumpyVersion = interrupted
print(alps._alps.ranking(np.zeros((1, 2))).tolist())
"""
"""Makes an array after the binding of numpy, which asks for the version once, has been prepared."""


def test_the_first_array_runs_no_code_that_an_interruption_reaches() -> None:
    ran = subprocess.run([sys.executable, "-c", FIRST_ARRAY], capture_output=True, text=True, check=False)
    assert ran.stdout == "[0, 1]\n", ran.stderr
