"""Plain text from manual pages, from the pages of a handbook and from Python sources."""

import ast
import gzip
import html
import re
from collections.abc import Iterator
from pathlib import Path


def manual_pages(folder: Path) -> Iterator[str]:
    """The words of every compressed manual page below a folder, without its markup."""
    for file in sorted(folder.rglob("*.gz")):
        text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
        if not text.startswith(".so "):
            yield manual_text(text)


def manual_text(source: str) -> str:
    """A manual page without requests, comments and escapes, a paragraph a line."""
    paragraphs: list[list[str]] = [[]]
    for line in source.splitlines():
        request = re.match(r"[.'](\w*)\s*(.*)", line)
        if not line.strip() or (
            request and request[1] in {"SH", "SS", "PP", "P", "LP", "TP", "IP", "Sh", "Pp"}
        ):
            paragraphs.append([])
        if request and request[1] in {"SH", "SS", "B", "I", "BR", "IR", "BI", "RB", "RI", "IB", "SM"}:
            line = request[2].replace('"', "")
        elif request or line.startswith((".", "'")):
            continue
        paragraphs[-1].append(_unescaped(line))
    joined = (" ".join(" ".join(lines).split()) for lines in paragraphs)
    return "\n".join(line for line in joined if line)


def _unescaped(line: str) -> str:
    line = re.sub(r'\\".*', "", line)
    line = re.sub(r"\\f(\[\w*\]|\(\w\w|\w)|\\s[-+]?\d+|\\[&/,:|^%cdtup]", "", line)
    line = re.sub(r"\\\*?\((\w\w|..)|\\\[[^]]*\]", "", line)
    return (
        line.replace("\\-", "-")
        .replace("\\(", "")
        .replace("\\e", "\\")
        .replace("\\ ", " ")
        .replace("\\~", " ")
    )


def handbook(folder: Path) -> Iterator[str]:
    """The words of every HTML page of a folder."""
    for file in sorted(folder.glob("*.html")):
        body = file.read_text(encoding="utf-8", errors="replace").partition("<body")[2]
        body = re.sub(r"(?s)<(script|style|pre)\b.*?</\1>", "", body)
        body = re.sub(r"</(p|h\d|li|dt|dd|div)>", "\n", body)
        text = html.unescape(re.sub(r"<[^>]*>", "", body.partition(">")[2]))
        lines = (" ".join(line.split()) for line in text.splitlines())
        yield "\n".join(line for line in lines if len(line) > 40)


def python_code(folder: Path) -> Iterator[str]:
    """Every Python file below a folder, without comments and docstrings, as `ast.unparse` writes it."""
    for file in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0] if node.body else None
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    node.body = node.body[1:] or [ast.Pass()]
        text = ast.unparse(tree)
        if len(text) > 500:
            yield text
