"""Runs the demo, and tells what each step is for."""

import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from alps.demo import artefacts, table
from alps.demo import model as models
from alps.demo.experiment import Experiment
from alps.demo.findings import findings
from alps.demo.results import Losses, Results, Trial
from alps.demo.settings import Settings
from alps.demo.surroundings import one_thread, quiet
from alps.demo.team import Team
from alps.demo.ways import SELECTED, SIDE_BY_SIDE, WAYS
from alps.errors import ArgumentError
from alps.visual.terminal_map import head_map

_WIDEST = 100
"""Characters of a line of text."""


def run(
    folder: Path, settings: Settings | None = None, console: Console | None = None, processes: int = 1
) -> Results:
    """Runs the demo.

    Everything is made in a hidden folder beside `folder`, which takes that name when all of it is there.

    Args:
        folder: What to make; it must not exist yet.
        settings: The sizes; the default ones when not given.
        console: Where the story is told; standard output when not given.
        processes: Among how many to divide the training. No number but of time depends on it. A script that
            asks for more than one needs its `if __name__ == "__main__":`, since the others import it.

    Returns:
        What was measured.

    Raises:
        ArgumentError: `folder` exists, `processes` is less than 1, or this Python comes without the source of its
            library.
        OSError: The folder cannot be written, or another process was killed.
    """
    settings = settings or Settings()
    console = console or Console(highlight=False)
    if processes < 1:
        raise ArgumentError(f"processes: expected at least 1, found {processes}")
    if folder.exists():
        raise ArgumentError(
            f"{folder}: expected a free name, found something there; remove it or name another"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary,
        one_thread(),
        quiet(),
        _progress(console, settings) as advance,
        Team.gather(settings, processes, advance) as team,
    ):
        unfinished = Path(temporary) / folder.name
        results = _tell(unfinished, folder, team, console)
        unfinished.rename(folder)
    _say(console, f"All of it is in the folder {folder}:")
    for name, content in artefacts.CONTENTS.items():
        console.print(f"   {name:<20} {content}")
    return results


def _tell(unfinished: Path, folder: Path, team: Team, console: Console) -> Results:
    experiment = team.experiment
    settings = experiment.settings
    seeds = range(settings.seeds)
    base, tuned = unfinished / "base", unfinished / "tuned"

    _head(console, "1  A base model")
    losses = experiment.make_base(base)
    parameters = models.count(models.load(base))
    _say(
        console,
        f"A Llama of {parameters:,} parameters learns English from the docstrings of Python's own library. It is the "
        f"model that you would have downloaded. {_described(losses)}",
    )

    _head(console, "2  A copy of it, tuned on a task")
    copies = [tuned, *(unfinished.parent / f"tuned-{seed}" for seed in seeds[1:])]
    located = team.share(Experiment.locate, [(base, seed, copies[seed]) for seed in seeds])
    first = located[0]
    _say(
        console,
        f"All of the copy is trained on the task, Python code, in {settings.steps} steps. It has learnt something, and "
        f"forgotten something. {_described(first.losses)}",
    )

    _head(console, "3  Which heads did that move?")
    scores, selected = artefacts.renamed(first.scores, first.heads.selected, unfinished, folder)
    _say(console, "Nothing is run for this: alps scan compares the weights of the two, head by head.")
    console.print()
    console.print(head_map(console, scores.geometry, scores["wasserstein"], selected))
    console.print()
    _say(console, selected.report.summary)

    _head(console, "4  Is it enough to train those?")
    _say(
        console,
        f"The base is trained on the task again, in {len(WAYS)} ways, and all of that with {settings.seeds} seeds: each "
        "has a tuned copy, selected heads, random heads and batches of its own.",
    )
    calls = [
        (base, it.heads, seed, ways, unfinished / "trained" if SELECTED in ways and seed == 0 else None)
        for ways in SIDE_BY_SIDE
        for seed, it in enumerate(located)
    ]
    outcomes = team.share(Experiment.train, calls)
    trials = [
        Trial(
            seed,
            it.losses,
            it.heads.selected.pairs(),
            it.heads.random.pairs(),
            {name: outcome for part in outcomes[seed :: settings.seeds] for name, outcome in part.items()},
        )
        for seed, it in enumerate(located)
    ]
    results = Results(losses, parameters, settings.steps, trials)
    console.print(table.for_terminal(results))
    _say(console, table.explanation(results), style="dim")

    _head(console, "5  What it says")
    for finding in findings(results):
        _say(console, finding, bullet="- ")
    _say(
        console,
        "A tiny model and a minute show how the method is used. Whether it holds for your model, only your model shows.",
    )
    console.print()
    artefacts.write(unfinished, scores, selected, results)
    return results


def _described(losses: Losses) -> str:
    return f"Loss on general text {losses.general:.2f}, on the task {losses.task:.2f}."


def _head(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _say(console: Console, text: str, *, style: str = "", bullet: str = "") -> None:
    margin = 3 * " "
    lines = textwrap.wrap(
        text,
        width=min(console.width, _WIDEST),
        initial_indent=margin + bullet,
        subsequent_indent=margin + len(bullet) * " ",
    )
    console.print(Text("\n".join(lines), style=style))


@contextmanager
def _progress(console: Console, settings: Settings) -> Iterator[Callable[[int], None]]:
    """A bar of all steps, as a callback for some more of them; nobody sees it who reads from a file or a pipe."""
    columns = TextColumn("   training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    total = settings.base_steps + settings.seeds * settings.steps * (1 + len(WAYS))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total)
        yield partial(bar.advance, task)
