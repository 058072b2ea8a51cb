"""Describes an adapter in its model card, the README.md that PEFT writes beside it."""

from pathlib import Path

from alps import markdown
from alps.errors import CheckpointError
from alps.files import write_whole
from alps.heads import HeadSet
from alps.visual import model_card


def describe(folder: Path, heads: HeadSet, base: str | None) -> None:
    """Adds a section to the card in a folder, or replaces it. Makes a card if there is none.

    Raises:
        CheckpointError: The card is not of text in UTF-8.
        OSError: The card cannot be read or written.
    """
    path = folder / "README.md"
    try:
        card = path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: expected text in UTF-8: {error}") from None
    write_whole(path, markdown.put_section(card, "alps", _section(heads, base)).encode())


def _section(heads: HeadSet, base: str | None) -> str:
    of = f" of {markdown.code(base)}" if base else ""
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
            model_card.heads_by_layer(heads),
        ]
    )
