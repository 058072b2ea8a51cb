"""What the demo leaves in its folder."""

from pathlib import Path

from alps.demo import table
from alps.demo.findings import findings
from alps.demo.picture import trade_off
from alps.demo.results import Results
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.visual import html_report, image_file

CONTENTS = {
    "base/": "the base, a checkpoint with its tokenizer",
    "tuned/": "the tuned copy of the first seed",
    "trained/": "the base, its selected heads and all but Q/K/V trained",
    "scores.safetensors": "what alps scan found; alps show prints it",
    "heads.json": "the selected heads",
    "heads.png": "a picture of both",
    "ways.png": "a picture of what each way to train learns and forgets",
    "results.json": "every number of every seed",
    "results.md": "the table above",
    "report.html": "all of this on a page",
}


def renamed(scores: HeadScores, heads: HeadSet, unfinished: Path, folder: Path) -> tuple[HeadScores, HeadSet]:
    """Scores and heads that name the checkpoints as they will be called."""

    def provenance(of: HeadScores | HeadSet) -> dict[str, str]:
        return {name: value.replace(str(unfinished), str(folder)) for name, value in of.provenance.items()}

    return (
        HeadScores(scores, scores.geometry, provenance(scores)),
        HeadSet(heads.mask, heads.geometry, provenance(heads)),
    )


def write(folder: Path, scores: HeadScores, heads: HeadSet, results: Results) -> None:
    """Writes all but the checkpoints."""
    scores.save(folder / "scores.safetensors")
    heads.save(folder / "heads.json")
    image_file.save(scores.plot(heads), folder / "heads.png")
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    figure = trade_off(results)
    image_file.save(figure, folder / "ways.png")
    about = html_report.of_scores(scores, heads, None) | {
        "parameters": f"{results.parameters:,}",
        "headings": [heading.replace("\n", " ") for heading in table.HEADINGS],
        "rows": table.rows(results),
        "explanation": table.explanation(results),
        "trade_off": html_report.picture(figure, "Task loss against general loss of each way to train"),
        "findings": findings(results),
    }
    (folder / "report.html").write_text(html_report.render("demo.html", about), encoding="utf-8")
    page = [
        table.for_page(results),
        table.explanation(results),
        "\n".join(f"- {finding}" for finding in findings(results)),
    ]
    (folder / "results.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
