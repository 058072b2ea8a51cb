"""Measures the peak memory of a scan and the time of an import, each in a new process."""

import subprocess
import sys
from pathlib import Path

from compare.pairs import CheckpointPair

_BENCHES = Path(__file__).parent.parent

_IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def peak_memory(pair: CheckpointPair, form: str, threads: int) -> int:
    """Returns the bytes by which a scan raises the peak of resident memory above that of `import alps`."""
    return int(_run("-m", "compare.peak", str(pair.base), str(pair.tuned), form, str(threads)))


def import_time(module: str) -> float:
    """Returns the seconds that the import of a module takes."""
    return float(_run("-c", _IMPORT.format(module=module)))


def _run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_BENCHES).stdout
