"""The commands that make and show scores and head sets."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

import alps
from alps import statistics
from alps.cli import json_output, options, printing, progress_bar, tables
from alps.cli.app import app
from alps.errors import ArgumentError, CheckpointError
from alps.escaping import escape
from alps.geometry import ranges
from alps.heads import HeadSet
from alps.scores import DEFAULT_RATIO, HeadScores, Rule
from alps.statistics import Form
from alps.visual.terminal_map import count_map


@app.command()
def scan(
    base: Annotated[
        str, typer.Argument(help="The checkpoint before tuning: folder, file, name on the hub or URL.")
    ],
    tuned: Annotated[str, typer.Argument(help="The checkpoint or the adapter after tuning, likewise.")],
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    component: options.ComponentOption = None,
    form: Annotated[Form, typer.Option(help="What a head's weight vector is.")] = "qkv",
    statistic: Annotated[str, options.Statistic] = statistics.DEFAULT,
    temperature: Annotated[float, typer.Option(help="Of the softmax over a head's weights.")] = 1.0,
    adapter_base: Annotated[
        str | None, typer.Option(metavar="NAME", help="What adapters change, if not what they say.")
    ] = None,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As many as cores when not given.")] = None,
    mmap: Annotated[
        bool | None,
        typer.Option(help="Map files or copy them; when not given, ALPS_MMAP (1 or 0) decides, else map."),
    ] = None,
    memory: options.Memory = None,
    local_files_only: options.LocalFilesOnly = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep finished layers here, and take them from here if it exists."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Scan the layers of one of N parts only, and write them to --scores for `alps merge`.",
        ),
    ] = None,
    top: options.Top = options.TOP,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score every head of a model by how far tuning has moved it.

    The exit code is 3 if heads are to be written and the attention weights of both checkpoints are equal.
    """
    statistics.resolve([statistic], form)
    chosen_part = options.part_of(part)
    printing.check_outputs(scores=scores_file, heads=heads_file, plot=plot, report=report)
    arguments: dict[str, Any] = {
        "adapter_base": adapter_base,
        "component": component,
        "form": form,
        "temperature": temperature,
        "statistics": tuple(dict.fromkeys((*statistics.resolve(None, form), statistic))),
        "threads": threads,
        "mmap": mmap,
        "memory": None if memory is None else memory * options.MIB,
        "local_files_only": local_files_only,
    }
    if chosen_part is not None:
        others = {"--heads": heads_file, "--plot": plot, "--report": report, "--resume": resume}
        _scan_part(base, tuned, chosen_part, scores_file, others, arguments, quiet, as_json)
        return
    with progress_bar.of_bytes(quiet=quiet or as_json) as progress:
        scores = alps.scan(base, tuned, resume=resume, progress=progress, **arguments)
    _show(scores, ratio, statistic, scores_file, heads_file, plot, report, top, quiet, as_json)


def _scan_part(
    base: str,
    tuned: str,
    part: tuple[int, int],
    file: Path | None,
    others: dict[str, Path | None],
    arguments: dict[str, Any],
    quiet: bool,
    as_json: bool,
) -> None:
    """Scans one part, and writes it."""
    if file is None:
        raise typer.BadParameter("a part goes with --scores FILE.", param_hint="--part")
    for option, value in others.items():
        if value is not None:
            raise typer.BadParameter(f"a part has no {option}: merge the parts first.", param_hint=option)
    with progress_bar.of_bytes(quiet=quiet or as_json) as progress:
        found = alps.scan_part(base, tuned, *part, progress=progress, **arguments)
    found.save(file)
    layers = [found.geometry.layers[place] for place in sorted(found.rows)]
    if as_json:
        printing.print_json({"part": {"path": str(file), "layers": layers}, "fetched": json_output.fetched()})
        return
    if not quiet:
        typer.echo(f"{len(layers)} of {len(found.geometry.layers)} layers: {ranges(layers)}")
        printing.print_written(part=file)


@app.command()
def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART PART ...", help="What `alps scan --part` wrote.")
    ],
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    statistic: Annotated[str, options.Statistic] = statistics.DEFAULT,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = options.TOP,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Put the parts of a scan together, which several machines have made."""
    printing.check_outputs(scores=scores_file, heads=heads_file, plot=plot, report=report)
    scores = alps.merge(parts)
    _show(scores, ratio, statistic, scores_file, heads_file, plot, report, top, quiet, as_json)


def _show(
    scores: HeadScores,
    ratio: float,
    statistic: str,
    scores_file: Path | None,
    heads_file: Path | None,
    plot: Path | None,
    report: Path | None,
    top: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Writes and prints the scores, and the heads that they choose."""
    if scores_file is not None:
        scores.save(scores_file)
    # Without a file for the heads, a warning of equal weights is enough.
    selection = None
    if heads_file is not None or not scores.all_equal():
        selection = scores.select(ratio, statistic=statistic)
    if selection is not None and heads_file is not None:
        selection.save(heads_file)
    printing.draw(plot, report, scores, selection, statistic)
    if as_json:
        chosen = None if selection is None else json_output.document(selection)
        printing.print_json(
            {"scores": json_output.document(scores), "heads": chosen, "fetched": json_output.fetched()}
        )
    elif not quiet:
        printing.print_scores(scores, statistic, selection, top)
        printing.print_sources(scores.provenance)
        printing.print_written(scores=scores_file, heads=heads_file, picture=plot, report=report)


@app.command()
def select(
    scores_file: Annotated[Path, typer.Argument(metavar="SCORES", help="What `alps scan --scores` wrote.")],
    ratio: Annotated[float | None, options.Ratio] = None,
    budget: Annotated[
        int | None, typer.Option(min=0, help="Q/K/V parameters that may train, instead of a ratio.")
    ] = None,
    rule: Annotated[Rule, typer.Option(help="How heads are chosen.")] = "global",
    statistic: Annotated[str | None, options.Statistic] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random rules.")] = None,
    heads_file: Annotated[
        Path | None,
        typer.Option("--heads", "-o", metavar="FILE", help="Write the selected heads here (.json)."),
    ] = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = options.TOP,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Choose heads from scores."""
    printing.check_outputs(heads=heads_file, plot=plot, report=report)
    scores = HeadScores.load(scores_file)
    selection = scores.select(ratio, budget=budget, rule=rule, statistic=statistic, seed=seed)
    if heads_file is not None:
        selection.save(heads_file)
    ranked_by = selection.provenance.get("statistic")
    printing.draw(plot, report, scores, selection, ranked_by)
    if as_json:
        printing.print_json(json_output.document(selection))
        return
    if quiet:
        return
    if ranked_by is None:
        printing.print_heads(selection)
    else:
        printing.print_scores(scores, ranked_by, selection, top)
    printing.print_written(heads=heads_file, picture=plot, report=report)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A file of scores or of heads.")],
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = options.TOP,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show what is in a file of scores or of heads."""
    printing.check_outputs(plot=plot, report=report)
    content = _load(file)
    printing.draw(plot, report, content)
    if as_json:
        printing.print_json(json_output.document(content))
        return
    if quiet:
        return
    for name, value in content.provenance.items():
        typer.echo(escape(f"{name}: {value}"))
    if isinstance(content, HeadScores):
        printing.print_scores(content, content.ranking_statistic(), None, top)
    else:
        printing.print_heads(content)
    printing.print_written(picture=plot, report=report)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE FILE ...", help="Two or more files of scores or of heads.")
    ],
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, callback=options.refuse_nan, help="Share of the heads to take of scores (0.1)."
        ),
    ] = None,
    statistic: Annotated[str | None, options.Statistic] = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare the heads of several tasks: overlap, rank correlation, maps."""
    printing.check_outputs(plot=plot, report=report)
    names = _names(files)
    comparison = alps.compare(
        {name: _load(file) for name, file in zip(names, files, strict=True)}, ratio=ratio, statistic=statistic
    )
    printing.draw(plot, report, comparison)
    if as_json:
        printing.print_json(json_output.document(comparison))
        return
    if quiet:
        return
    console = printing.standard_output()
    console.print(Text(str(comparison.geometry)))
    console.print(tables.comparison_table(comparison))
    console.print(count_map(console, comparison.geometry, comparison.counts, len(comparison.names)))
    printing.print_written(picture=plot, report=report)


def _names(files: list[Path]) -> list[str]:
    """What tells the files apart: their names without folder and suffix, else their paths.

    Raises:
        ArgumentError: A file is given twice.
    """
    for twice in (file for number, file in enumerate(files) if file in files[:number]):
        raise ArgumentError(f"{twice}: given twice")
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(map(str, files))


def _load(path: Path) -> HeadScores | HeadSet:
    """Reads a file of either kind, told apart by how it begins."""
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, os.SEEK_END)
    if start.lstrip().startswith(b"{") and b"\0" not in start:
        return HeadSet.load(path)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < size:
        return HeadScores.load(path)
    raise CheckpointError(f"{path}: expected scores or heads that alps wrote, found something else")
