"""Runs the demo step by step, and explains each step on the console."""

import math
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from alps import statistics
from alps.demo import report
from alps.demo.experiment import METHOD_GROUPS, METHODS, SELECTED, Experiment, Settings, training_environment
from alps.demo.results import Losses, Results, Trial
from alps.demo.workers import Workers
from alps.errors import ArgumentError
from alps.files import check_free
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.temporary import temporary_folder
from alps.visual.terminal_map import head_map

_LINE_WIDTH = 100
"""The most characters of a line of text."""
_FIRST_STEPS, _MEASURED_STEPS = 50, 25
"""The steps of the base that are measured to say how long all will take, and those before, while other processes start."""


def run(
    folder: Path, settings: Settings | None = None, console: Console | None = None, processes: int = 1
) -> Results:
    """Runs the demo.

    It makes everything in a hidden folder beside `folder`, which gets its name when it is complete.

    Examples:
        >>> from pathlib import Path
        >>> from rich.console import Console
        >>> from alps.demo import Settings, run
        >>> small = Settings(seeds=1, base_steps=2, steps=2, batch=2, measured=2)
        >>> results = run(Path("demo"), small, Console(quiet=True))
        >>> results.methods[:2]
        ['everything', 'Q/K/V frozen']

    Args:
        folder: The folder to make; it must not exist yet.
        settings: The sizes; the default ones when not given.
        console: The console that the steps are explained on; standard output when not given.
        processes: The number of processes that share the training. Only the measured times depend on it. A script that
            asks for more than one needs its `if __name__ == "__main__":`, since the processes import it.

    Returns:
        The measurements.

    Raises:
        ArgumentError: `folder` exists, `processes` is less than 1, or this Python comes without the source of its
            library.
        OSError: The folder cannot be written, or another process was killed.
    """
    settings = settings or Settings()
    console = console or Console(highlight=False)
    if processes < 1:
        raise ArgumentError(f"processes: expected at least 1, found {processes}")
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workers = Workers(settings, processes)
    with (
        closing(workers),
        temporary_folder(folder) as parent,
        closing(workers),  # again: processes that write in the folder must end before its removal
        training_environment(),
        _progress(console, settings) as workers.advance,
    ):
        unfinished = parent / folder.name
        results = _run_steps(unfinished, folder, workers, console)
        unfinished.rename(folder)
    _print(console, f"All of it is in the folder {folder}:")
    for name, content in report.FILES.items():
        console.print(f"   {name:<20} {content}")
    return results


def _run_steps(unfinished: Path, folder: Path, workers: Workers, console: Console) -> Results:
    settings = workers.settings
    forecast = _forecast(console, settings, workers.processes)

    def tick() -> None:
        workers.advance(1)
        forecast()

    experiment = Experiment.prepare(settings, tick)
    seeds = range(settings.seeds)
    base, tuned = unfinished / "base", unfinished / "tuned"

    _print_heading(console, "1  A base model")
    losses, parameters = experiment.make_base(base)
    _print(
        console,
        f"A Llama of {parameters:,} parameters learns English from the docstrings of Python's own library. It is the "
        f"model that you would have downloaded. {_describe(losses)}",
    )

    _print_heading(console, "2  A copy of it, tuned on a task")
    folders = [tuned, *(unfinished.parent / f"tuned-{seed}" for seed in seeds[1:])]
    tunings = [(base, seed, folders[seed]) for seed in seeds]
    copies = workers.share(experiment, Experiment.tune, tunings, settings.steps)
    first = copies[0]
    _print(
        console,
        f"All of the copy is trained on the task in {settings.steps} steps: lines such as 04839165=04839165. "
        "Nobody can foresee the digits, but after eight of them comes = or the end of the line, and to count takes "
        "attention. "
        f"{_describe(first.losses)}",
    )

    _print_heading(console, "3  Which heads did that move?")

    def final_names(of: HeadScores | HeadSet) -> dict[str, str]:
        return {name: value.replace(str(unfinished), str(folder)) for name, value in of.provenance.items()}

    scores = HeadScores(first.scores, first.scores.geometry, final_names(first.scores))
    selected = first.heads["selected"]
    selected = HeadSet(selected.mask, selected.geometry, final_names(selected))
    _print(console, "Nothing is run for this: alps scan compares the weights of the two, head by head.")
    console.print()
    console.print(head_map(console, scores.geometry, scores[statistics.DEFAULT], selected))
    console.print()
    _print(console, selected.report.summary)

    _print_heading(console, "4  Is it enough to train those?")
    _print(
        console,
        f"The base is trained on the task again, in {len(METHODS)} ways, and all of that with {settings.seeds} seeds: "
        "each has a tuned copy, selected heads, random heads and batches of its own.",
    )
    calls = [
        (base, it.heads, seed, methods, unfinished / "trained" if SELECTED in methods and seed == 0 else None)
        for methods in METHOD_GROUPS
        for seed, it in enumerate(copies)
    ]
    mean_steps = settings.steps * len(METHODS) / len(METHOD_GROUPS)
    outcomes = workers.share(experiment, Experiment.train, calls, mean_steps)
    trials = [
        Trial(
            seed,
            it.losses,
            it.heads["selected"].pairs(),
            it.heads["random"].pairs(),
            {name: outcome for group in outcomes[seed :: settings.seeds] for name, outcome in group.items()},
        )
        for seed, it in enumerate(copies)
    ]
    results = Results(losses, parameters, settings.steps, trials)
    console.print(report.terminal_table(results))
    _print(console, report.explanation(results), style="dim")

    _print_heading(console, "5  What it says")
    for finding in report.findings(results):
        _print(console, finding, bullet="- ")
    _print(
        console,
        "A tiny model and a minute show how the method is used. Whether it holds for your model, only your model "
        "shows.",
    )
    console.print()
    report.write(unfinished, scores, selected, results, experiment.task.unseen)
    return results


def _describe(losses: Losses) -> str:
    return f"Loss on general text {losses.general:.2f}, on the task {losses.task:.2f}."


def _print_heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _print(console: Console, text: str, *, style: str = "", bullet: str = "") -> None:
    first, rest = "   " + bullet, "   " + len(bullet) * " "
    width = min(console.width, _LINE_WIDTH)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest)
    console.print(Text("\n".join(lines), style=style))


def _forecast(console: Console, settings: Settings, processes: int) -> Callable[[], None]:
    """A function to call after each step of the base, which says once how long all that is left will take."""
    tunings, trainings = settings.seeds, settings.seeds * len(METHOD_GROUPS)
    rounds = -(-tunings // processes) - (-trainings // processes) * len(METHODS) / len(METHOD_GROUPS)
    steps = settings.base_steps + settings.steps * rounds
    times: list[float] = []

    def after_step() -> None:
        times.append(time.monotonic())
        if len(times) == _FIRST_STEPS + _MEASURED_STEPS:
            seconds = (steps - len(times)) * (times[-1] - times[-1 - _MEASURED_STEPS]) / _MEASURED_STEPS
            left = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{math.ceil(seconds / 10)}0 seconds"
            _print(
                console, f"At the speed that this machine has now, it takes about {left} more.", style="dim"
            )

    return after_step


@contextmanager
def _progress(console: Console, settings: Settings) -> Iterator[Callable[[float], None]]:
    """Shows a bar of all steps on a terminal; yields a function that adds a number of finished steps."""
    columns = TextColumn("   training"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    total = settings.base_steps + settings.seeds * settings.steps * (1 + len(METHODS))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield partial(bar.advance, bar.add_task("training", total=total))
