"""Runs the comparisons, prints the table, and writes it to a file.

`make bench` runs all of them. Some only, with the extension built as `make develop` does:

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
from compare.pairs import SHAPES, Pairs
from compare.result import Result
from compare.rows import ROWS
from compare.table import table


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parse(arguments)
    refuse_what_would_mislead()
    folder = options.folder or options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    for path in (options.output, options.output.with_suffix(".json")):
        check_writable(path)
    torch.set_num_threads(options.threads)
    described = machine.describe()
    folder = Path(tempfile.mkdtemp(prefix="pairs-", dir=folder))
    bench = Bench(Pairs(folder), SHAPES, options.layers, options.rounds, options.threads)
    results: list[Result] = []
    try:
        for row in options.rows or ROWS:
            print(f"measuring: {row}", file=sys.stderr)
            results += ROWS[row](bench)
    finally:
        if options.keep:
            print(f"the pairs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    text = "".join(f"- {line}\n" for line in described) + "\n" + table(results)
    print(text)
    write_whole(options.output, text.encode())
    document = {"machine": described, "results": [asdict(result) for result in results]}
    write_whole(options.output.with_suffix(".json"), json.dumps(document, indent=1).encode())
    print(f"written to {options.output} and, with the same name, .json", file=sys.stderr)


def refuse_what_would_mislead() -> None:
    """Ends the program where its figures would mean nothing.

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
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all of them if none is named:\n{described}")
    parser.add_argument("--layers", type=int, default=4, help="of the pairs, where a row does not say")
    parser.add_argument(
        "--rounds", type=int, default=7, help="how often each is timed; what is slow less often"
    )
    parser.add_argument("--threads", type=int, default=2, help="of alps, and of what it is compared with")
    parser.add_argument(
        "--output", type=Path, default=Path("build/bench.md"), help="where the table goes, in Markdown"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the pairs go, on the disk to measure; beside the table if not given",
    )
    parser.add_argument("--keep", action="store_true", help="leave the pairs there")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(ROWS)
    if unknown or min(options.layers, options.rounds, options.threads) < 1:
        parser.error(f"no rows {sorted(unknown)}" if unknown else "numbers must be 1 or more")
    return options


if __name__ == "__main__":
    main()
