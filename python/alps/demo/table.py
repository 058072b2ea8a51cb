"""The table of the ways to train, for a terminal and for a page."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from alps.demo.results import Results

HEADINGS = ("", "task loss", "general loss", "trainable\nparameters", "CPU ms\nper step", "memory\nMB")


def rows(results: Results) -> list[tuple[str, ...]]:
    """The cells of each row; the base comes first."""
    base = results.base
    found: list[tuple[str, ...]] = [
        ("base, untouched", f"{base.task:.3f}", f"{base.general:.3f}", "", "", "")
    ]
    for way in results.ways:
        found.append(
            (
                way,
                results.measured(way, lambda outcome: outcome.losses.task).text(3),
                results.measured(way, lambda outcome: outcome.losses.general).text(3),
                f"{results.measured(way, lambda outcome: outcome.trainable).mean:,.0f}",
                f"{results.measured(way, lambda outcome: 1e3 * outcome.step_seconds).mean:.1f}",
                f"{results.measured(way, lambda outcome: outcome.bytes / 1e6).mean:.2f}",
            )
        )
    return found


def for_terminal(results: Results) -> Table:
    """The table, the best losses of the ways to train in bold."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True, vertical="bottom")
    lowest = [_lowest(results, name) for name in ("task", "general")]
    for row in rows(results):
        way, task, general, *others = row
        marked = (
            f"[bold]{cell}[/bold]" if way in best else cell
            for cell, best in zip((task, general), lowest, strict=True)
        )
        table.add_row(way, *marked, *others, end_section=way in ("base, untouched", "LoRA on Q/K/V"))
    return table


def for_page(results: Results) -> str:
    """The table in Markdown."""
    headings = [heading.replace("\n", " ") for heading in HEADINGS]
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows(results)))


def explanation(results: Results) -> str:
    """What the columns are."""
    seeds = len(results.trials)
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "a single seed, so no spread"
    return (
        f"{results.steps} steps on the same batches for every way; {spread}. Losses are in nats for each token of "
        "unseen text; what the general loss rises above the base's is what was forgotten. Parameters, time and "
        "memory are means. Time is the processor's, on one thread. Memory is counted, not sampled: all parameters, gradients and the optimizer's state, "
        "without activations."
    )


def _lowest(results: Results, loss: str) -> set[str]:
    def mean(way: str) -> float:
        return results.measured(way, lambda outcome: getattr(outcome.losses, loss)).mean

    return {min(results.ways, key=mean)}
