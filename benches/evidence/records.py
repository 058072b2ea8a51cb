"""Files of results: one JSON document a line, appended as it comes, read back to go on from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, records: list[Record]) -> None:
    """Adds lines to a file."""
    if not records:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(it, separators=(",", ":")) + "\n" for it in records))


def read(path: Path) -> Iterator[Record]:
    """The lines of a file, if it is there; a last line that was cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record: Record = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield record


def read_all(folders: list[Path], name: str) -> list[Record]:
    """The lines of all files of a kind, `NAME.jsonl` and `NAME-*.jsonl`, of some folders."""
    files = sorted(file for folder in folders for file in folder.glob(f"{name}*.jsonl"))
    return [record for file in files for record in read(file)]


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")
