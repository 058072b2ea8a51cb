"""Long calls report their progress, can be stopped, and let other threads run."""

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import alps
from alps.statistics import Form
from support.checkpoints import Shape, random_weights, write, write_long_pair

SOON = 0.5
"""Seconds."""


def write_small(folder: Path) -> Path:
    shape = Shape(layers=2, query_heads=32, key_value_heads=8, head_size=8, hidden_size=256)
    return write(folder, shape.config(), random_weights(shape, seed=0))


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_long_pair(tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def short_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("short")
    return write_small(folder / "base"), write_small(folder / "tuned")


class Stopped(Exception):  # noqa: N818
    """What a callback raises."""


class StopAfter:
    """A progress callback that raises when some time has passed."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.raised = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() > self.at:
            self.raised = time.monotonic()
            raise Stopped


@pytest.mark.parametrize("threads", [1, None])
@pytest.mark.parametrize("form", ["qkv", "product"])
def test_an_exception_of_the_callback_stops_the_scan(
    long_pair: tuple[Path, Path], form: Form, threads: int | None
) -> None:
    stop = StopAfter(0.3)
    with pytest.raises(Stopped):
        alps.scan(*long_pair, form=form, threads=threads, progress=stop)
    assert time.monotonic() - stop.raised < SOON


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("form", ["qkv", "product"])
def test_ctrl_c_stops_the_scan(long_pair: tuple[Path, Path], form: Form) -> None:
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        alps.scan(*long_pair, form=form)
    assert time.monotonic() - sent[0] < SOON
    timer.join()


def test_an_exception_in_a_signal_handler_stops_the_scan(long_pair: tuple[Path, Path]) -> None:
    def handle(number: int, frame: object) -> None:
        raise Stopped

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stopped):
            alps.scan(*long_pair)
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_progress_rises_to_all_bytes_on_the_thread_of_the_caller(short_pair: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        threads.add(threading.get_ident())

    alps.scan(*short_pair, progress=progress)
    everything = 2 * 2 * 8 * (32 + 8 + 8) * 8 * 256  # sides, layers, bytes of a float64; rows x columns
    assert seen[-1] == (everything, everything)
    assert seen == sorted(seen)
    assert threads == {threading.get_ident()}


def test_other_threads_run_during_a_scan(long_pair: tuple[Path, Path]) -> None:
    ticks = 0
    stopped = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stopped.wait(0.002):
            ticks += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = ticks
    with pytest.raises(Stopped):
        alps.scan(*long_pair, threads=1, progress=StopAfter(0.5))
    during = ticks - before
    stopped.set()
    ticker.join()
    assert during > 50


def test_scans_run_at_the_same_time(short_pair: tuple[Path, Path], long_pair: tuple[Path, Path]) -> None:
    def scan_long() -> None:
        with pytest.raises(Stopped):
            alps.scan(*long_pair, threads=1, progress=StopAfter(1.0))

    other = threading.Thread(target=scan_long)
    other.start()
    assert alps.scan(*short_pair).geometry.layers == (0, 1)
    assert other.is_alive()
    other.join()


def test_an_error_of_the_operating_system_stays_pythons_own(
    short_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = short_pair
    with pytest.raises(FileNotFoundError) as missing:
        alps.scan(base, tmp_path / "missing")
    assert missing.value.errno == errno.ENOENT
    assert missing.value.filename == str(tmp_path / "missing")

    weights = write_small(tmp_path / "loop") / "model.safetensors"
    weights.unlink()
    for target, number, class_ in (
        ("missing", errno.ENOENT, FileNotFoundError),
        (weights.name, errno.ELOOP, OSError),
    ):
        weights.unlink(missing_ok=True)
        weights.symlink_to(target)
        with pytest.raises(class_) as refused:
            alps.scan(base, weights.parent)
        assert (refused.value.errno, refused.value.filename) == (number, str(weights))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is readable to root")
def test_an_unreadable_file_is_a_permission_error(short_pair: tuple[Path, Path], tmp_path: Path) -> None:
    closed = write_small(tmp_path / "closed")
    (closed / "model.safetensors").chmod(0)
    with pytest.raises(PermissionError) as refused:
        alps.scan(short_pair[0], closed)
    assert refused.value.errno == errno.EACCES
    assert refused.value.filename == str(closed / "model.safetensors")


def test_true_shows_a_bar_in_a_terminal_only(
    short_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    heads = alps.HeadSet.from_pairs([(0, 1)], alps.scan(*short_pair, progress=True).geometry)
    alps.graft(*short_pair, heads, tmp_path / "one", progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes any stream for a terminal
    alps.scan(*short_pair, progress=True)
    alps.scan_part(*short_pair, 1, 2, progress=True)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("reading") >= 2
    alps.graft(*short_pair, heads, tmp_path / "two", progress=True)
    assert "copying" in capfd.readouterr().err
    alps.scan(*short_pair, progress=False)
    assert capfd.readouterr() == ("", "")
