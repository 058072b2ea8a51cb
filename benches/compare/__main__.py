"""Runs the comparisons, prints the table, and writes it to a file.

`make bench` runs all of them. To run some of them, after `make develop`:

    PYTHONPATH=benches:tests .venv/bin/python -m compare read product
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from alps import _alps
from alps.files import check_writable, write_whole
from compare import machine
from compare.bench import Bench
from compare.pairs import SHAPES, CheckpointPairs
from compare.result import Result
from compare.rows import ROWS
from compare.table import table


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = _parse(arguments)
    refuse_unusable_build()
    folder = options.folder or options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in (options.output, options.output.with_suffix(".json")):
        check_writable(path)
    torch.set_num_threads(options.threads)
    described = machine.describe()
    folder = Path(tempfile.mkdtemp(prefix="pairs-", dir=folder))
    bench = Bench(CheckpointPairs(folder), SHAPES, options.layers, options.rounds, options.threads)
    results: list[Result] = []
    try:
        for row in options.rows or ROWS:
            print(f"measuring: {row}", file=sys.stderr)
            results += ROWS[row](bench)
    finally:
        if options.keep:
            print(f"the checkpoints are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    text = "".join(f"- {line}\n" for line in described) + "\n" + table(results)
    print(text)
    write_whole(options.output, text.encode())
    document = {"machine": described, "results": [asdict(result) for result in results]}
    write_whole(options.output.with_suffix(".json"), json.dumps(document, indent=1).encode())
    print(f"written to {options.output} and, with the same name, .json", file=sys.stderr)


def refuse_unusable_build() -> None:
    """Ends the program if its figures would be meaningless.

    Raises:
        SystemExit: The extension is a debug build, or the system is not Linux.
    """
    if _alps.DEBUG_BUILD:
        raise SystemExit(
            f"{_alps.__file__} is a debug build, which is many times slower: run `maturin develop --release` first"
        )
    if sys.platform != "linux":
        raise SystemExit(f"the comparisons read Linux's /proc and its page cache; this is {sys.platform}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    described = "\n".join(f"{name}: {row.__doc__}" for name, row in ROWS.items())
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all if none is named:\n{described}")
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of a checkpoint, unless the row sets them"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="repetitions of each measurement; slow ones are repeated less often",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of alps and of the other programs")
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench.md"), help="file of the table, in Markdown"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for the checkpoints, on the disk to measure; by default that of the table",
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown or min(options.layers, options.rounds, options.threads) < 1:
        parser.error(f"no rows {sorted(unknown)}" if unknown else "numbers must be 1 or more")
    return options


if __name__ == "__main__":
    main()
