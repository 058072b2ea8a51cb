"""Builds the fuzz targets and runs them one after the other; adds what was run to `fuzz/counts.csv`.

A target that fails leaves its input in `fuzz/artifacts/`. `cargo +nightly fuzz tmin` makes it small; it then goes to
`fuzz/corpus/`, under a name that says what it is, with the repair.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FUZZ = Path(__file__).parent
ROOT = FUZZ.parent
WORK = ROOT / "target" / "fuzz"
COUNTS = FUZZ / "counts.csv"
TARGETS = [path.stem for path in sorted((FUZZ / "fuzz_targets").glob("*.rs")) if path.stem != "bounded"]
TRIPLE = "x86_64-unknown-linux-gnu"

PUNCTUATION = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '\\"',
    "null",
    "true",
    "false",
    "-1",
    "0",
    "1e308",
    "18446744073709551615",
]


def build(sanitizer: str) -> Path:
    """Builds every target, and returns the folder of the programs."""
    folder = WORK / sanitizer
    command = ["cargo", "+nightly", "fuzz", "build", "--sanitizer", sanitizer, "--target", TRIPLE]
    if sanitizer == "none":
        # To trace compares takes up to half of the time; the dictionaries have what it would find.
        command.append("--no-trace-compares")
    subprocess.run(command, cwd=FUZZ, check=True, env=os.environ | {"CARGO_TARGET_DIR": str(folder)})
    return folder / TRIPLE / "release"


def write_dictionary(target: str) -> Path:
    """The texts in quotes in the seeds of a target, which the fuzzer puts into inputs."""
    seeds = b"".join(path.read_bytes() for path in sorted((FUZZ / "corpus" / target).iterdir()))
    texts = set(re.findall(rb'"([A-Za-z0-9_./#-]{1,40})"', seeds))
    lines = [f'"\\"{text.decode()}\\""' for text in sorted(texts)] + [f'"{text}"' for text in PUNCTUATION]
    path = WORK / "dictionaries" / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def run(program: Path, target: str, seconds: int) -> tuple[int, bool]:
    """Runs a target for so many seconds. Returns the number of inputs, and whether none failed."""
    found, artifacts = WORK / "corpus" / target, FUZZ / "artifacts" / target
    for folder in (found, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-dict={write_dictionary(target)}",
        f"-artifact_prefix={artifacts}/",
        "-timeout=10",
        # These two take up to half of the time of an input that is refused early, and in as much time find less.
        "-entropic=0",
        "-reduce_inputs=0",
        "-rss_limit_mb=2048",
        "-malloc_limit_mb=64",
        "-print_final_stats=1",
    ]
    command = [str(program), *options, str(found), str(FUZZ / "corpus" / target)]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stdout)
    if ended.returncode != 0:
        print(ended.stdout[-3000:], file=sys.stderr)
    return int(said[1]) if said else 0, ended.returncode == 0


def commit() -> str:
    """The commit that is run."""
    return subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    """Reads the arguments, builds, runs and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--rounds", type=int, default=1, help="how often to go through the targets")
    parser.add_argument("--sanitizer", choices=["none", "address"], default="none")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    version, programs, whole = commit(), build(arguments.sanitizer), True
    for _ in range(arguments.rounds):
        for target in arguments.targets or TARGETS:
            started = time.monotonic()
            count, passed = run(programs / target, target, arguments.seconds)
            took = time.monotonic() - started
            print(
                f"{target}: {count:,} inputs, {count / took:,.0f} a second{'' if passed else ', FAILED'}",
                flush=True,
            )
            with COUNTS.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(
                    [version, target, arguments.sanitizer, count, round(took)]
                )
            whole = whole and passed
    sys.exit(not whole)


if __name__ == "__main__":
    main()
