"""The commands that write, run or train models."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from alps.arguments import DEFAULT_RATIO, MEASURES, Measure
from alps.cli import interrupts, options
from alps.cli.program import app, examples
from alps.errors import ArgumentError
from alps.optional import needed


@contextmanager
def _training(purpose: str, requirement: str = "'alps-heads[train]'") -> Iterator[None]:
    """Around the imports of what needs torch."""
    # PEFT imports it, and it says on some processors which of its kernels it cannot load.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with interrupts.ending_at_once(), needed(purpose, requirement):
        yield


@app.command(
    epilog=examples(
        "alps graft base tuned --heads heads.json --output grafted",
        "alps graft base maths german --heads maths.json --heads german.json -o both",
        "alps graft base tuned --heads heads.json --scale 0.5 --output halfway",
    )
)
def graft(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint before tuning: a folder, a file, a name on the hub, or an address.",
        ),
    ],
    tuned: Annotated[
        list[str],
        typer.Argument(
            metavar="TUNED",
            help="The checkpoint or the adapter after tuning, or several, whose changes are added.",
        ),
    ],
    heads_files: Annotated[
        list[Path],
        typer.Option(
            "--heads", metavar="FILE", help="Take the heads of this file, given once for each tuned model."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write the checkpoint to this folder, which must not exist.",
        ),
    ],
    scale: Annotated[
        list[float] | None,
        typer.Option(
            callback=options.refuse_nan,
            metavar="FACTOR",
            show_default="1",
            help="Multiply the change of the rows, by one factor for all or one for each tuned model.",
        ),
    ] = None,
    rest: Annotated[
        Literal["base", "tuned"],
        typer.Option(help="Take everything but the chosen heads from this checkpoint."),
    ] = "base",
    local_files_only: options.LocalFilesOnly = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint with the tuned Q/K/V rows of the chosen heads, and everything else of the base."""
    with interrupts.ending_at_once():
        import alps
        from alps.cli import json_output, printing, progress_bar
        from alps.heads import HeadSet

    scales = scale or [1.0]
    if len(scales) == 1:
        scales = scales * len(tuned)
    for option, values, expected in (
        ("--heads", heads_files, "one file for each tuned model"),
        ("--scale", scales, "one factor for all tuned models or one for each"),
    ):
        if len(values) != len(tuned):
            message = f"expected {expected} ({len(tuned)}), found {len(values)}."
            raise typer.BadParameter(message, param_hint=option)
    sets = [HeadSet.load(file) for file in heads_files]
    donors = list(zip(tuned, sets, scales, strict=True))
    with progress_bar.of_bytes(quiet=quiet or as_json) as progress:
        written = alps.graft(
            base, donors, output=output, rest=rest, local_files_only=local_files_only, progress=progress
        )
    chosen = reduce(HeadSet.union, sets)
    if as_json:
        document = {"path": str(output), "bytes": written.bytes, "files": list(written.files)}
        printing.print_json({"graft": document, "heads": json_output.document(chosen)})
    elif not quiet:
        printing.print_heads(chosen)
        typer.echo(f"checkpoint written to {output}")


@app.command(
    epilog=examples(
        "alps audit base tuned --heads heads.json --text task.txt",
        "alps audit base tuned --heads heads.json --text task.txt --draws 20",
        "alps audit base tuned --heads heads.json --text task.txt --report audit.html",
    )
)
def audit(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The model before tuning: a folder, or the name of one in the hub's cache."
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The model or the adapter after tuning, likewise.")
    ],
    heads_file: Annotated[
        Path, typer.Option("--heads", metavar="FILE", help="Audit the heads of this file.")
    ],
    text: Annotated[Path, options.Text],
    draws: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draw this many random sets of each of the two kinds.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed the random sets.")] = 0,
    device: options.Device = None,
    length: options.Length = None,
    windows: options.Windows = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=options.WRITE,
            help="Write all numbers to this file, whose name ends in .json.",
        ),
    ] = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure how much of a tuning the chosen heads carry, against random sets, without training.

    The rows of the heads change places between the two models; the loss on the text says what that does.
    """
    with interrupts.ending_at_once():
        import alps
        from alps.cli import outputs, printing, progress_bar
        from alps.heads import HeadSet

    files = outputs.Files(audit=output, plot=plot, report=report)
    chosen = HeadSet.load(heads_file)
    with _training("an audit"):
        from alps.live import texts
        from alps.live.models import load_quietly
    batches = texts.windows(text, base, length=length, count=windows)
    first, second = load_quietly(base, device=device), load_quietly(tuned, base, device)
    with progress_bar.of_steps("evaluations", quiet=quiet or as_json) as progress:
        found = alps.audit(first, second, chosen, batches, draws=draws, seed=seed, progress=progress)
    if output is not None:
        found.save(output)
    files.draw(found)
    if as_json:
        printing.print_json(json.loads(found.to_json()))
    elif not quiet:
        typer.echo(str(found))
        files.print_written()


@app.command(
    epilog=examples(
        "alps measure model --text task.txt",
        "alps measure base --statistic taylor --tuned tuned --text task.txt",
        "alps measure model --statistic lift --scores lift.safetensors",
    )
)
def measure(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model: a folder, or the name of one in the hub's cache."),
    ],
    statistic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.completing(get_args(Measure)),
            show_default=", ".join(MEASURES),
            help=f"Measure this: {', '.join(get_args(Measure))}. The option may be repeated; the first statistic ranks "
            f"the heads.",
        ),
    ] = None,
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    device: options.Device = None,
    text: Annotated[Path | None, options.Text] = None,
    length: options.Length = None,
    windows: options.Windows = 16,
    tuned: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=options.READ,
            help="Compare with this model after tuning, which taylor and seekr need.",
        ),
    ] = None,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    top: options.Top = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score every head of a model by gradients on a text, or by what the loss would lose without the head."""
    with interrupts.ending_at_once():
        import alps
        from alps.cli import json_output, outputs, printing

    names: Any = statistic or MEASURES
    _check_measures(names)
    files = outputs.Files(scores=scores_file, heads=heads_file)
    with _training("a measure"):
        from alps.live import measuring, texts
        from alps.live.models import load_quietly
    if text is None and set(names) - measuring.WITHOUT_DATA:
        raise ArgumentError("a text is needed: give --text FILE")
    batches = () if text is None else texts.windows(text, model, length=length, count=windows)
    scores = alps.measure(load_quietly(model, device=device), batches, tuned=tuned, statistics=names)
    ranked_by = scores.statistics[0]
    selection = scores.select(ratio, statistic=ranked_by)
    if scores_file is not None:
        scores.save(scores_file)
    if heads_file is not None:
        selection.save(heads_file)
    if as_json:
        printing.print_json(
            {"scores": json_output.document(scores), "heads": json_output.document(selection)}
        )
    elif not quiet:
        printing.print_scores(scores, ranked_by, selection, outputs.rows_of_table(top))
        files.print_written()


def _check_measures(names: Iterable[str]) -> None:
    """Refuses a statistic that there is not, before torch is imported."""
    for name in names:
        if name not in get_args(Measure):
            raise ArgumentError(f"there is no statistic {name!r}; there are {', '.join(get_args(Measure))}")


@app.command(epilog=examples("alps demo", "alps demo folder --seeds 1"))
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder to make; it must not exist yet.")
    ] = Path("alps-demo"),
    seeds: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Repeat all but the training of the base with this many seeds."
        ),
    ] = 3,
    as_json: options.Json = False,
) -> None:
    """Show the whole method on a tiny model, in minutes: train, tune, scan, and compare ways to train."""
    with _training("the demo", "'alps-heads[train,plot]'"):
        from rich.console import Console

        from alps.cli import printing
        from alps.files import check_free

        check_free(folder)
        console = Console(quiet=True) if as_json else printing.standard_output()
        console.print("The demo trains a tiny model on this machine. It imports torch first ...")
        from alps.demo import Settings, cores, run

    results = run(folder, Settings(seeds=seeds), console, processes=min(cores(), seeds))
    if as_json:
        typer.echo(results.to_json(), nl=False)
