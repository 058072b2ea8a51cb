"""Describes the machine and the versions that the figures were measured with."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import alps
from alps import _alps

PACKAGES = ("numpy", "torch", "scipy", "safetensors")
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
"""Vector instruction sets by their flags in `/proc/cpuinfo`, widest first."""


def describe() -> list[str]:
    """Returns a line about the machine and its load, and a line with the versions."""
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", processor, re.MULTILINE)
    vectors = next(iter(vector_sets()), "no vector instructions")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    build = "debug" if _alps.DEBUG_BUILD else "release"
    return [
        f"{model[1] if model else platform.machine()}, {cores()} cores, {vectors}, {memory:.0f} GiB of memory, "
        f"Linux {platform.release().partition('-')[0]}; load average before the run {os.getloadavg()[0]:.2f}",
        f"alps {alps.__version__} ({build} build), Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    ]


def vector_sets() -> list[str]:
    """Returns the names of the vector instruction sets of this machine, widest first."""
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(re.findall(r"^(?:flags|Features)\s*: (.*)$", processor, re.MULTILINE)[0].split())
    return [name for flag, name in VECTORS.items() if flag in flags]


def cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0))
