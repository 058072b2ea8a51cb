"""The examples of a page of documentation: what they run and what they are said to print."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Example:
    """Something to run, and what it is said to print."""

    language: str
    code: str
    shown: str = ""

    def run(self, names: dict[str, Any]) -> str:
        """What it prints; `names` are the variables of the page's Python so far."""
        if self.language == "python":
            return _run_python(self.code, names)
        return _run_command(self.code)


def examples(document: Path) -> Iterator[Example]:
    """The examples of a page, in order."""
    fences = FENCE.findall(document.read_text(encoding="utf-8"))
    for (language, content), (following, output) in zip(fences, [*fences, ("", "")][1:], strict=True):
        if language == "console":
            for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                code, _, shown = part.partition("\n")
                yield Example(language, code, shown)
        elif language != "text":
            yield Example(language, content, output if following == "text" else "")


def rewrite(document: Path) -> str:
    """The page with what its examples print now, where it shows something."""
    text = document.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for example in examples(document):
        if example.language not in ("python", "console"):
            continue
        printed = "".join(f"{line.rstrip()}\n" for line in example.run(names).splitlines())
        if not example.shown:
            continue
        if example.language == "python":
            before = f"```python\n{example.code}```\n\n```text\n"
        else:
            before = f"$ {example.code}\n"
        assert text.count(before + example.shown) == 1, example.code
        text = text.replace(before + example.shown, before + printed)
    return text


def _run_python(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "example", "exec"), names)
    return printed.getvalue()


def _run_command(line: str) -> str:
    program, *arguments = shlex.split(line)
    assert program == "alps", line
    ran = subprocess.run(
        [sys.executable, "-m", "alps.cli", *arguments],
        capture_output=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "COLUMNS"}
        | {"PYTHONIOENCODING": "utf-8"},
    )
    assert (ran.returncode, ran.stderr) == (0, b""), line
    return ran.stdout.decode()
