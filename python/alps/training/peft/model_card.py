"""Describes an adapter in its model card, the README.md that PEFT writes beside it."""

import re
from pathlib import Path

from alps.files import write_whole
from alps.heads import HeadSet

_START, _END = "<!-- alps -->", "<!-- /alps -->"


def describe(folder: Path, heads: HeadSet, base: str | None) -> None:
    """Adds a section to the card in a folder, or replaces it. Makes a card if there is none."""
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{_START}\n{_section(heads, base)}\n{_END}\n"
    old = re.compile(f"{_START}.*?{_END}\\n?", re.DOTALL)
    card, count = old.subn(lambda _: section, card)
    write_whole(path, (card if count else f"{card.rstrip()}\n\n{section}".lstrip()).encode())


def _section(heads: HeadSet, base: str | None) -> str:
    by_layer: dict[int, list[str]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(str(head))
    lines = [f"| {layer} | {', '.join(numbers)} |" for layer, numbers in by_layer.items()]
    of = f" of `{re.sub(r'[^ -_a-~]', '?', base)}`" if base else ""
    return "\n".join(
        [
            "## An adapter of attention heads",
            "",
            f"This adapter of [alps](https://pypi.org/project/alps-heads) replaces the query, key and value weights of "
            f"{heads.report.summary}{of}. To load it:",
            "",
            "```python",
            "import alps  # registers the kind of the adapter with PEFT",
            "from peft import AutoPeftModelForCausalLM",
            "",
            'model = AutoPeftModelForCausalLM.from_pretrained("the folder or the hub name of this adapter")',
            "```",
            "",
            "| layer | heads |",
            "|---|---|",
            *lines,
        ]
    )
