"""The commands that write, run or train models."""

import json
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

import alps
from alps.cli import json_output, options, printing, progress_bar
from alps.cli.app import app
from alps.errors import ArgumentError
from alps.heads import HeadSet
from alps.optional import needed
from alps.scores import DEFAULT_RATIO


@app.command()
def graft(
    base: Annotated[
        str, typer.Argument(help="The checkpoint before tuning: folder, file, name on the hub or URL.")
    ],
    tuned: Annotated[
        list[str],
        typer.Argument(
            help="The checkpoint or the adapter after tuning; or several, whose changes are added."
        ),
    ],
    heads_files: Annotated[
        list[Path],
        typer.Option("--heads", metavar="FILE", help="The chosen heads (JSON), once for each tuned model."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Write the checkpoint here; it must not exist."),
    ],
    scale: Annotated[
        list[float] | None,
        typer.Option(
            callback=options.refuse_nan,
            help="Factor of the change of the rows, once for all or for each tuned model; 1 when not given.",
        ),
    ] = None,
    rest: Annotated[
        Literal["base", "tuned"],
        typer.Option(help="The checkpoint that everything but the chosen heads is taken from."),
    ] = "base",
    local_files_only: options.LocalFilesOnly = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint with the tuned Q/K/V rows of the chosen heads, and everything else of the base."""
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
        printing.print_written(checkpoint=output)


@app.command()
def audit(
    base: Annotated[str, typer.Argument(help="The model before tuning: folder or cached hub name.")],
    tuned: Annotated[str, typer.Argument(help="The model or the adapter after tuning.")],
    heads_file: Annotated[Path, typer.Option("--heads", metavar="FILE", help="The chosen heads (JSON).")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text of the task, in UTF-8.")],
    draws: Annotated[int, typer.Option(min=1, help="Random sets of each of the two kinds.")] = 100,
    length: options.Length = None,
    windows: options.Windows = 16,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random sets.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all numbers here (.json).")
    ] = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure how much of a tuning the chosen heads carry, against random sets, without training.

    The rows of the heads change places between the two models; the loss on the text says what that does.
    """
    printing.check_outputs(audit=output, plot=plot, report=report)
    chosen = HeadSet.load(heads_file)
    with needed("an audit", "'alps-heads[train]'"):
        from alps.live import texts
        from alps.live.models import load_quietly
    batches = texts.windows(text, base, length=length, count=windows)
    first, second = load_quietly(base, device=device), load_quietly(tuned, base, device)
    with progress_bar.of_steps("evaluations", quiet=quiet or as_json) as progress:
        found = alps.audit(first, second, chosen, batches, draws=draws, seed=seed, progress=progress)
    if output is not None:
        found.save(output)
    printing.draw(plot, report, found)
    if as_json:
        printing.print_json(json.loads(found.to_json()))
    elif not quiet:
        typer.echo(str(found))
        printing.print_written(audit=output, picture=plot, report=report)


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="The model: folder or cached hub name.")],
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="A text of the task, in UTF-8.")] = None,
    statistic: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What to measure; may be repeated.")
    ] = None,
    tuned: Annotated[
        str | None, typer.Option(help="The model after tuning, which `taylor` and `seekr` need.")
    ] = None,
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    length: options.Length = None,
    windows: options.Windows = 16,
    device: options.Device = None,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    top: options.Top = options.TOP,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score every head of a model by gradients on a text, or by what the loss would lose without the head."""
    printing.check_outputs(scores=scores_file, heads=heads_file)
    with needed("a measure", "'alps-heads[train]'"):
        from alps.live import measuring, texts
        from alps.live.models import load_quietly
    names: Any = statistic or ["fisher", "gradient", "saliency", "michel"]
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
        printing.print_scores(scores, ranked_by, selection, top)
        printing.print_written(scores=scores_file, heads=heads_file)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="What to make; it must not exist yet.")] = Path("alps-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How often all but the base is done anew.")] = 3,
    as_json: options.Json = False,
) -> None:
    """Show the whole method in a minute or two: train, tune, scan and compare ways to train a tiny model."""
    with needed("the demo", "'alps-heads[train,plot]'"):
        from alps.demo import Settings, cores, run
    console = Console(quiet=True) if as_json else printing.standard_output()
    results = run(folder, Settings(seeds=seeds), console, processes=min(cores(), seeds))
    if as_json:
        typer.echo(results.to_json(), nl=False)
