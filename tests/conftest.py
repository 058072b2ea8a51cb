"""The option `--quick`, and the fixtures that several test files use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.scores import small_scores

# A second thread slows tiny models down, by a factor of a hundred where other programs use the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks the network; those of the hub have a server of their own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

QUICK = {
    "test_compare.py",
    "test_documents.py",
    "test_heads.py",
    "test_import.py",
    "test_installation.py",
    "test_notebook.py",
    "test_release.py",
    "test_report.py",
    "test_scores.py",
    "test_select.py",
}
"""The files that `make check` runs: none of them imports torch, and together they take a few seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run only the test files that need no torch")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the other files unread, since collecting a file imports what it needs."""
    if config.getoption("--quick") and collection_path.suffix == ".py" and collection_path.name not in QUICK:
        return True
    return None


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Heeds Ctrl-C where the shell has it ignored, as of a run in the background: tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_torch(pytestconfig: pytest.Config) -> Iterator[None]:
    """Holds `QUICK` to its promise."""
    yield
    if pytestconfig.getoption("--quick"):
        assert "torch" not in sys.modules, "a file that conftest.py lists in QUICK imports torch"


@pytest.fixture
def scores_file(tmp_path: Path) -> Path:
    """`small_scores` in a file."""
    path = tmp_path / "scores.safetensors"
    small_scores().save(path)
    return path
