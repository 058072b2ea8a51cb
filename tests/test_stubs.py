"""The type stubs of the extension."""

import subprocess
import sys


def test_the_stub_describes_the_extension() -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "alps._alps"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
