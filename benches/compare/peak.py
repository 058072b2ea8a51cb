"""Prints by how many bytes a scan raises the peak of its process' resident memory.

python -m compare.peak BASE TUNED FORM THREADS
"""

import re
import sys
from pathlib import Path

import alps


def peak() -> int:
    """Returns the peak of the resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status: expected a line VmHWM, found {status!r}")
    return 1024 * int(found[1])


def main() -> None:
    """Scans once."""
    base, tuned, form, threads = sys.argv[1:]
    if form not in ("qkv", "product"):
        raise SystemExit(f"no form {form!r}")
    scan = alps.scan  # imports what it needs
    before = peak()
    scan(base, tuned, form="product" if form == "product" else "qkv", threads=int(threads))
    print(peak() - before)


if __name__ == "__main__":
    main()
