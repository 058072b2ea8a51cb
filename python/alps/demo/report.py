"""The report of the demo: the table of the training methods, a figure, findings in words, and the files."""

from itertools import combinations
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from alps.demo.experiment import EVERYTHING, FROZEN, LORA, RANDOM, RANDOM_ALONE, SELECTED, SELECTED_ALONE
from alps.demo.results import Results, Sample
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.visual import colours, html_report, image_file
from alps.visual.style import in_our_style

FILES = {
    "base/": "the base, a checkpoint with its tokenizer",
    "tuned/": "the tuned copy of the first seed",
    "trained/": "the base, its selected heads and all but Q/K/V trained",
    "task.txt": "unseen text of the task, as alps audit takes it",
    "scores.safetensors": "what alps scan found; alps show prints it",
    "heads.json": "the selected heads",
    "heads.png": "a picture of both",
    "ways.png": "a picture of what each way to train learns and forgets",
    "results.json": "every number of every seed",
    "results.md": "the table above",
    "report.html": "all of this on a page",
}
"""The files and folders that the demo leaves."""

HEADINGS = ("", "task loss", "general loss", "trainable\nparameters", "ms per\nstep", "memory\nMB")

_BASE = "base, untouched"
_MARKERS = {
    EVERYTHING.name: ("o", colours.BLUE, "full"),
    FROZEN.name: ("o", colours.PALE, "full"),
    RANDOM.name: ("s", colours.PALE, "full"),
    SELECTED.name: ("s", colours.SELECTED, "full"),
    LORA.name: ("D", colours.BLUE, "full"),
    RANDOM_ALONE.name: ("s", colours.PALE, "none"),
    SELECTED_ALONE.name: ("s", colours.SELECTED, "none"),
}
"""Marker, colour and fill style of each method. Orange: selected heads; hollow: nothing but heads trains."""


def rows(results: Results) -> list[tuple[str, ...]]:
    """The cells of the table, row by row; the base comes first."""
    table: list[tuple[str, ...]] = [
        (_BASE, f"{results.base.task:.3f}", f"{results.base.general:.3f}", "", "", "")
    ]
    for method in results.methods:
        losses = (results.sample(method, f"losses.{text}").text(3) for text in ("task", "general"))
        trainable, seconds, size = (
            results.sample(method, measure).mean for measure in ("trainable", "step_seconds", "bytes")
        )
        table.append((method, *losses, f"{trainable:,.0f}", f"{1e3 * seconds:.1f}", f"{size / 1e6:.2f}"))
    return table


def terminal_table(results: Results) -> Table:
    """The table for a terminal, with the lowest losses of the training methods in bold."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True, vertical="bottom")
    lowest = [
        min(results.methods, key=lambda method: results.sample(method, f"losses.{text}").mean)
        for text in ("task", "general")
    ]
    for method, *cells in rows(results):
        for column, best in enumerate(lowest):
            if method == best:
                cells[column] = f"[bold]{cells[column]}[/bold]"
        table.add_row(method, *cells, end_section=method in (_BASE, LORA.name))
    return table


def markdown_table(results: Results) -> str:
    """The table in Markdown."""
    headings = [heading.replace("\n", " ") for heading in HEADINGS]
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows(results)))


def explanation(results: Results) -> str:
    """Explains the columns of the table."""
    seeds = len(results.trials)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "a single seed, so no spread"
    return (
        f"{results.steps} steps on the same batches for every way; {spread}. Losses are in nats for each token of "
        "unseen text; what the general loss rises above the base's is what was forgotten. Parameters, time and "
        "memory are means. Time is the processor's, on one thread. Memory is counted, not sampled: all parameters, "
        "gradients and the optimizer's state, without activations."
    )


def findings(results: Results) -> list[str]:
    """Answers one question in each sentence, from the numbers alone."""
    return [
        _compare(results, FROZEN.name, EVERYTHING.name),
        _compare(results, SELECTED.name, RANDOM.name),
        _compare(results, SELECTED_ALONE.name, RANDOM_ALONE.name),
        _compare(results, SELECTED_ALONE.name, LORA.name),
        _compare_forgetting(results),
        *_compare_selections(results),
    ]


def _compare(results: Results, method: str, other: str) -> str:
    """Compares two methods seed by seed, since both have trained on the same batches."""
    losses = (results.sample(name, "losses.task").values for name in (method, other))
    differences = [ours - theirs for ours, theirs in zip(*losses, strict=True)]
    lower = sum(difference < 0 for difference in differences)
    return (
        f"{method[0].upper()}{method[1:]} against {other}: task loss {Sample(differences).text(3, signed=True)}; "
        f"lower, so better, with {lower} of {len(differences)} seeds."
    )


def _compare_forgetting(results: Results) -> str:
    rises = {
        method: Sample(
            [loss - results.base.general for loss in results.sample(method, "losses.general").values]
        )
        for method in results.methods
    }
    least, most = (choose(rises, key=lambda method: rises[method].mean) for choose in (min, max))
    return (
        f"Least of the general text is forgotten by {least} (loss {rises[least].text(3, signed=True)}), "
        f"most by {most} ({rises[most].text(3, signed=True)})."
    )


def _compare_selections(results: Results) -> list[str]:
    """Compares the heads that the seeds selected; nothing for a single seed."""
    sets = [set(trial.selected) for trial in results.trials]
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(sets, 2) if a | b]
    if not overlaps:
        return []
    return [
        f"Selected with every seed's tuned copy: {len(set.intersection(*sets))} of {len(sets[0])} heads; the overlap "
        f"of two selections (Jaccard) is {sum(overlaps) / len(overlaps):.2f} on average."
    ]


@in_our_style
def trade_off(results: Results, *, of_page: bool = False) -> Figure:
    """Draws task loss against general loss: small markers for the seeds of each method, a large one for their mean.

    The picture of a page is narrow enough for a phone.
    """
    figure = Figure(figsize=(4.2, 5.0) if of_page else (6.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    base = results.base
    axes.axvline(base.general, color=colours.PALE, linewidth=0.6, zorder=0)
    axes.axhline(base.task, color=colours.PALE, linewidth=0.6, zorder=0)
    axes.plot(base.general, base.task, "*", markersize=9, color=colours.INK, linestyle="", label=_BASE)
    for method in results.methods:
        marker, colour, fill = _MARKERS[method]
        line: dict[str, Any] = {"color": colour, "fillstyle": fill, "linestyle": ""}
        task, general = (results.sample(method, f"losses.{text}") for text in ("task", "general"))
        axes.plot(general.values, task.values, marker, markersize=2.5, **line)
        bars: dict[str, Any] = {"xerr": general.deviation, "yerr": task.deviation, "elinewidth": 0.8}
        axes.errorbar(general.mean, task.mean, fmt=marker, markersize=5.5, label=method, **bars, **line)
    between = "\n" if of_page else " "
    axes.set_xlabel(f"loss on general text, nats per token:{between}further right, more is forgotten")
    axes.set_ylabel("loss on the task, nats per token:\nlower, more is learnt")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left" if of_page else "outside right center", frameon=False)
    return figure


def write(folder: Path, scores: HeadScores, heads: HeadSet, results: Results, task: str) -> None:
    """Writes all `FILES` but the checkpoints."""
    (folder / "task.txt").write_text(task, encoding="utf-8")
    scores.save(folder / "scores.safetensors")
    heads.save(folder / "heads.json")
    image_file.save(scores.plot(heads), folder / "heads.png")
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    image_file.save(trade_off(results), folder / "ways.png")
    picture = html_report.picture(
        trade_off(results, of_page=True), "Task loss against general loss of each way to train"
    )
    context = html_report.of_scores(scores, heads, None) | {
        "parameters": f"{results.parameters:,}",
        "headings": [heading.replace("\n", " ") for heading in HEADINGS],
        "losses": [cells[:3] for cells in rows(results)],
        "costs": [cells[:1] + cells[3:] for cells in rows(results) if any(cells[3:])],
        "explanation": explanation(results),
        "trade_off": picture,
        "findings": findings(results),
    }
    (folder / "report.html").write_text(html_report.render("demo.html", context), encoding="utf-8")
    points = "\n".join(f"- {finding}" for finding in findings(results))
    page = "\n\n".join([markdown_table(results), explanation(results), points])
    (folder / "results.md").write_text(page + "\n", encoding="utf-8")
