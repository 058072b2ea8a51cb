"""Text from files in pages of Markdown, such as model cards, and sections of such pages that are written anew."""

import re
from collections.abc import Sequence

from alps.escaping import escape

_LONGEST = 200
"""Characters of a text from a file."""
_HARMLESS = re.compile(r"[A-Za-z0-9./_@+=:,~-]([A-Za-z0-9 ./_@+=:,()~-]*[A-Za-z0-9./_@+=:,()~-])?")
"""What nothing in a code span or in a cell of a table gives a meaning to."""
_LITERAL = re.compile(r"[^A-Za-z0-9 ]")


def code(text: str) -> str:
    """The text on one line as inline code, which is shown as it is whatever it holds, cut where it is long.

    Names and numbers become a code span. In anything else all but letters, digits and spaces become character
    references, which Markdown and HTML show and never take for their own signs.
    """
    line = escape(text)
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    if _HARMLESS.fullmatch(line):
        return f"`{line}`"
    return f"<code>{_LITERAL.sub(lambda found: f'&#{ord(found[0])};', line)}</code>"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table; its cells are Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put_section(page: str, name: str, section: str) -> str:
    """The page with a section, in place of the one of that name if there is one, else at the end.

    Comments mark where a section begins and ends. What `code` returns holds none.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    marked = f"{start}\n{section}\n{end}\n"
    before, opened, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if opened and closed:
        return before + marked + after.removeprefix("\n")
    return f"{page.rstrip()}\n\n{marked}".lstrip()
