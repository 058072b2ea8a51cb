"""Model cards of head sets and scores: the README.md of a repository on the hub."""

import re
from collections.abc import Mapping
from typing import Any

from alps import markdown
from alps.errors import CheckpointError
from alps.escaping import escape, shorten
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.statistics import DEFAULT
from alps.visual.text import ranked_cells

_ALPS = "[alps](https://pypi.org/project/alps-heads)"
_TAGS = ("alps", "attention-heads")
_METADATA = re.compile(r"\s*---[\r\n]")
"""The beginning of a card that has metadata."""
_TOP = 10
"""The number of heads that a card of scores lists."""


def update(
    card: str, what: HeadSet | HeadScores, name: str | None, picture: str | None, base_model: str | None
) -> str:
    """The card of a repository with a section about a head set or scores, which replaces an older one.

    All else of the card stays. Its metadata gets the tags of alps, and the base model if it names none.

    Args:
        card: The card so far, which may be empty.
        what: The head set or the scores.
        name: The repository, as `from_pretrained` takes it; None for a folder, which may be moved.
        picture: The file with their map, if there is one.
        base_model: The id of the base on the hub.

    Raises:
        CheckpointError: The metadata of the card is not what a card has.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        parsed: Any = ModelCard(card if _METADATA.match(card) else f"---\n{{}}\n---\n{card}")
    except (ValueError, TypeError, AttributeError, YAMLError) as error:
        reason = shorten(escape(str(error)))
        raise CheckpointError(
            f"{name or 'the folder'}: the metadata of README.md cannot be read: {reason}"
        ) from None
    tags = parsed.data.tags or []
    parsed.data.tags = [*tags, *(tag for tag in _TAGS if tag not in tags)]
    if base_model is not None and not parsed.data.base_model:
        parsed.data.base_model = base_model
    if not card:
        parsed.data.library_name = "alps"
    name = name or "this folder, or its name on the hub"
    if isinstance(what, HeadSet):
        kind, section = "alps:heads", _heads(what, name, picture)
    else:
        kind, section = "alps:scores", _scores(what, name, picture)
    parsed.text = "\n" + markdown.put_section(parsed.text.lstrip("\n"), kind, section)
    return str(parsed)


def heads_by_layer(heads: HeadSet) -> str:
    """A table with a row for each layer that has heads of the set."""
    by_layer: dict[int, list[str]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(str(head))
    rows = [(str(layer), ", ".join(numbers)) for layer, numbers in by_layer.items()]
    return markdown.table(("layer", "heads"), rows)


def _heads(heads: HeadSet, name: str, picture: str | None) -> str:
    return _section(
        "## Attention heads",
        f"`heads.json` names {heads.report.summary}, of a model {_model(heads.geometry)}. {_ALPS} trains only these:",
        _python(
            "import alps",
            "",
            f'heads = alps.HeadSet.from_pretrained("{name}")',
            "alps.restrict(model, heads)  # a model of transformers; then train it as usual",
        ),
        _picture(picture, "A map of the selected heads by layer"),
        f"<details><summary>The heads of each layer</summary>\n\n{heads_by_layer(heads)}\n\n</details>",
        _provenance("How they were selected", heads.provenance),
    )


def _scores(scores: HeadScores, name: str, picture: str | None) -> str:
    best = DEFAULT if DEFAULT in scores else scores.statistics[0]
    rows = [tuple(map(str, cells)) for cells in ranked_cells(scores, best, [best], _TOP)]
    return _section(
        "## Scores of attention heads",
        f"`scores.safetensors` has {len(scores)} statistics of every head of a model {_model(scores.geometry)}, "
        f"which say how far its weights have moved. {_ALPS} selects heads by them:",
        _python(
            "import alps",
            "",
            f'scores = alps.HeadScores.from_pretrained("{name}")',
            f"heads = scores.select(ratio=0.1{_argument(scores, best)})",
        ),
        _picture(picture, "A map of the scores by layer"),
        f"The best heads by {markdown.code(best)}:",
        markdown.table(("rank", "layer", "head", "key/value group", "score"), rows),
        f"The statistics: {', '.join(map(markdown.code, scores))}.",
        _provenance("Where they come from", scores.provenance),
    )


def _argument(scores: HeadScores, best: str) -> str:
    """The argument that names the statistic where one is needed and its name is an ordinary one."""
    is_needed = len(scores) > 1 and best != DEFAULT and best.isascii() and best.isidentifier()
    return f', statistic="{best}"' if is_needed else ""


def _model(geometry: Geometry) -> str:
    layers, heads = geometry.shape
    groups = geometry.key_value_heads
    kind = markdown.code(geometry.model_type)
    return f"of type {kind} with {layers} layers, {heads} heads and {groups} key/value groups in each"


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _picture(file: str | None, description: str) -> str:
    return f"![{description}]({file})" if file else ""


def _provenance(title: str, provenance: Mapping[str, str]) -> str:
    if not provenance:
        return ""
    rows = [(markdown.code(name), markdown.code(value)) for name, value in provenance.items()]
    return f"{title}:\n\n{markdown.table(('', ''), rows)}"


def _section(*paragraphs: str) -> str:
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
