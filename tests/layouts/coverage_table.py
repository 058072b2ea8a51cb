"""Writes and reads the table of `docs/models.md`: what alps reads of every model type of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from layouts import proof
from support import types_elsewhere

FILE = Path(__file__).parents[2] / "docs" / "models.md"
Status = Literal["read", "refused", "wrong", "none", "unbuilt"]


@dataclass(frozen=True)
class Row:
    """What alps reads of one model type."""

    status: Status
    components: tuple[tuple[str, str, bool], ...] = ()
    """Component, layout, and whether its heads were compared with those of a model that runs."""
    unread: tuple[str, ...] = ()
    """The patterns of attention that is in no component."""
    reason: str = ""
    training: str = field(default="", compare=False)
    """Whether the heads of the components can be trained, as the survey found."""
    forms: str = field(default="", compare=False)
    """The other forms of the configuration that are read."""

    @classmethod
    def of(cls, found: proof.Proof) -> Row:
        """Makes the row of a model that has softmax attention."""
        problems = [verdict.problem for verdict in found.verdicts.values() if verdict.problem]
        if problems:
            return cls("wrong", reason=problems[0])
        if found.default is None:
            return cls("refused", reason=_one_line(found.refusal))
        verified = {verdict.component for verdict in found.verdicts.values()}
        return cls(
            "read",
            tuple((name, layout, name in verified) for name, layout in sorted(found.components.items())),
            tuple(
                sorted(pattern for pattern, verdict in found.verdicts.items() if verdict.component is None)
            ),
        )

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Row:
        """Makes the row from what the survey found of a model type."""
        if not facts["built"]:
            return cls("unbuilt", reason=_one_line(facts["why"]))
        found = proof.Proof.from_json(facts["proof"])
        if not facts["attention_ran"] and not facts["attention_not_run"] and found.default is None:
            return cls("none", reason=_one_line(found.refusal))
        forms = ", ".join(
            form if said == "read" else f"{form} ({_one_line(said)})"
            for form, said in facts.get("forms", {}).items()
        )
        return replace(
            cls.of(found), training=training_cell(found.components, facts.get("training", {})), forms=forms
        )


def training_cell(components: Iterable[str], training: Mapping[str, str]) -> str:
    """What the table says of the training of these components."""
    missing = "refused: the running model has other tensors than its file"
    said = {component: _one_line(training.get(component, missing)) for component in sorted(components)}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{component} {what}" for component, what in said.items())


def _one_line(text: str) -> str:
    text = re.sub(r" from '/[^']*'", "", text)  # the path of a module on this machine
    return re.sub(r"\s+", " ", text.split(";")[0].split(" | ")[0])[:200].replace("|", "\\|").strip()


_HEAD = """# Supported models

`make models` writes this page; do not edit it. For every model type of transformers {version}, a tiny model with random
weights was built. While it ran, the queries, keys and values of its softmax attention were traced back to the weights
in its file. Then the queries of one head, the keys of another and the values of a third were changed in the file, in
every layer. A scan had to report exactly the heads that need the changed weights, in one component, with the correct
score.

| of {total} model types | |
|---|---|
| have softmax attention and can be built | {able} |
| are read correctly | {right}, or {share:.1f} % of those |
| of which all components were verified in this way | {verified} |
| are refused | {refused} |
| have no softmax attention | {none} |
| could not be built | {unbuilt} |

## Read

A component in parentheses did not run here. Its shapes agree with the configuration; nothing else was verified.

*Training*: one head of each layer was restricted (`alps.restrict`), and the outputs of the model and the gradients of
the rows had to be those of the unrestricted model. "did not run" means that no gradient reached the weights here.

*Other forms*: the configurations of models within models were also read in the forms that other releases of
transformers saved, wherever transformers reads the same model from them. What is listed is read as the saved form is.

| model type | components | attention modules that are not read | training | other forms |
|---|---|---|---|---|
"""


_ELSEWHERE = """
## From outside transformers

{count} types that load by remote code or live in other libraries store their attention as a known layout does. There is
no model here to run: their names and configurations were written by hand from what was published, the order of their
rows from the code beside it. The scores had to be those of a Llama with the same matrices, to the last bit. The
repository is an example.

| model type | published as | component |
|---|---|---|
"""


def write(facts: Mapping[str, Mapping[str, Any]], version: str) -> str:
    """Writes the page from what the survey found."""
    rows = {model_type: Row.of_facts(facts[model_type]) for model_type in sorted(facts)}
    by_status = {
        status: {model_type: row for model_type, row in rows.items() if row.status == status}
        for status in ("read", "refused", "wrong", "none", "unbuilt")
    }
    able = sum(len(by_status[status]) for status in ("read", "refused", "wrong"))
    right = len(by_status["read"])
    page = _HEAD.format(
        version=version,
        total=len(rows),
        able=able,
        right=right,
        share=100 * right / max(able, 1),
        verified=sum(all(done for _, _, done in row.components) for row in by_status["read"].values()),
        refused=len(by_status["refused"]) + len(by_status["wrong"]),
        none=len(by_status["none"]),
        unbuilt=len(by_status["unbuilt"]),
    )
    for model_type, row in by_status["read"].items():
        unread = ", ".join(f"`{name}`" for name in row.unread)
        page += f"| `{model_type}` | {_cell(row.components)} | {unread} | {row.training} | {row.forms} |\n"
    for status, title in (
        ("wrong", "Wrong"),
        ("refused", "Refused"),
        ("none", "Without softmax attention"),
        ("unbuilt", "Not built"),
    ):
        if by_status[status]:
            page += f"\n## {title}\n\n| model type | reason |\n|---|---|\n"
            page += "".join(
                f"| `{model_type}` | {row.reason} |\n" for model_type, row in by_status[status].items()
            )
    return page + _elsewhere()


def _elsewhere() -> str:
    """The section of the types whose code is not in transformers."""
    rows = {(one.model_type, one.published): one.component for one in types_elsewhere.TYPES}
    rows |= {(model_type, it[0]): "decoder" for model_type, it in types_elsewhere.LATENT_TYPES.items()}
    count = len({model_type for model_type, _ in rows})
    page = _ELSEWHERE.format(count=count)
    for (model_type, published), component in sorted(
        rows.items(), key=lambda row: (row[0][0].lower(), row[0][1])
    ):
        page += f"| `{model_type}` | `{published}` | {component} |\n"
    return page


def _cell(components: tuple[tuple[str, str, bool], ...]) -> str:
    return ", ".join(
        f"{name} `{layout}`" if done else f"({name} `{layout}`)" for name, layout, done in components
    )


def read(page: str) -> dict[str, Row]:
    """Reads the rows of the page, by model type."""
    titles: dict[str, Status] = {
        "Read": "read",
        "Wrong": "wrong",
        "Refused": "refused",
        "Without softmax attention": "none",
        "Not built": "unbuilt",
    }
    rows: dict[str, Row] = {}
    for section in page.split("\n## ")[1:]:
        title = section.splitlines()[0]
        if title not in titles:
            continue
        status = titles[title]
        for model_type, first, second, training, forms in re.findall(
            r"^\| `([^`]+)` \| (.*?) \|(?: (.*?) ?\|)?(?: (.*?) ?\| (.*?) ?\|)?$", section, re.MULTILINE
        ):
            if status == "read":
                parts = re.findall(r"(\()?(\w+) `(\w+)`", first)
                components = tuple((name, layout, not doubt) for doubt, name, layout in parts)
                unread = tuple(re.findall(r"`([^`]+)`", second))
                rows[model_type] = Row(status, components, unread, training=training, forms=forms)
            else:
                rows[model_type] = Row(status, reason=first)
    return rows
