"""The commands that make and show scores and head sets."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from alps import statistics
from alps.arguments import DEFAULT_RATIO, RankedRule, Rule
from alps.cli import interrupts, options
from alps.cli.program import app, examples
from alps.errors import ArgumentError, CheckpointError
from alps.statistics import Form

if TYPE_CHECKING:
    from alps.cli.outputs import Files
    from alps.heads import HeadSet
    from alps.scores import HeadScores


@app.command(
    epilog=examples(
        "alps scan base tuned",
        "alps scan base tuned --scores scores.safetensors --heads heads.json",
        "alps scan meta-llama/Llama-3.1-8B ./adapter --plot heads.png",
        "alps scan base tuned --part 3/16 --scores part3.safetensors",
    )
)
def scan(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint before tuning: a folder, a file, a name on the hub, or an address.",
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The checkpoint or the adapter after tuning, likewise.")
    ],
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    statistic: Annotated[str, options.RankedBy] = statistics.DEFAULT,
    component: options.ComponentOption = None,
    form: Annotated[
        Form,
        typer.Option(
            help="Score the rows of Q, K and V of a head, or the product of its Q and K, and of its V and O."
        ),
    ] = "qkv",
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Divide weights by this before the softmax over them.")
    ] = 1.0,
    adapter_base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=options.READ,
            help="Take this checkpoint for the one that an adapter changes.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=options.READ,
            show_default="as many as there are cores",
            help="Compute in this many threads.",
        ),
    ] = None,
    mmap: Annotated[
        bool | None,
        typer.Option(
            rich_help_panel=options.READ,
            show_default="as ALPS_MMAP says, 1 or 0, else to map",
            help="Map files instead of copying them.",
        ),
    ] = None,
    memory: options.Memory = None,
    local_files_only: options.LocalFilesOnly = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.READ,
            help="Keep finished layers in this .safetensors file, and take them from it if it exists.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            rich_help_panel=options.READ,
            help="Scan the layers of one of N parts, and write them to --scores for `alps merge`.",
        ),
    ] = None,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score every head of a model by how far tuning has moved it.

    The exit code is 3 if heads are to be written and the attention weights of both checkpoints are equal.
    """
    with interrupts.ending_at_once():
        import alps
        from alps.cli import outputs, progress_bar

    statistics.resolve([statistic], form)
    chosen_part = options.part_of(part)
    files = outputs.Files(scores=scores_file, heads=heads_file, plot=plot, report=report)
    if resume is not None:
        outputs.check_name(resume, "score file", ".safetensors")
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
        others = {"--heads": heads_file, "--plot": plot, "--report": report, "--resume": resume, "--top": top}
        _scan_part(base, tuned, chosen_part, scores_file, others, arguments, quiet, as_json)
        return
    with progress_bar.of_bytes(quiet=quiet or as_json) as progress:
        scores = alps.scan(base, tuned, resume=resume, progress=progress, **arguments)
    _show(scores, ratio, statistic, files, top, quiet, as_json)


def _scan_part(
    base: str,
    tuned: str,
    part: tuple[int, int],
    file: Path | None,
    others: dict[str, Any],
    arguments: dict[str, Any],
    quiet: bool,
    as_json: bool,
) -> None:
    """Scans one part, and writes it."""
    with interrupts.ending_at_once():
        import alps
        from alps.cli import json_output, printing, progress_bar
        from alps.geometry import ranges

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
        document = {"path": str(file), "layers": layers}
        printing.print_json({"part": document, "fetched": json_output.fetched()})
    elif not quiet:
        typer.echo(f"{len(layers)} of {len(found.geometry.layers)} layers: {ranges(layers)}")
        typer.echo(f"part written to {file}")


@app.command(
    epilog=examples(
        "alps merge part*.safetensors --scores scores.safetensors",
        "alps merge part*.safetensors --heads heads.json --ratio 0.05",
    )
)
def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART", help="The files that `alps scan --part` wrote.")
    ],
    ratio: Annotated[float, options.Ratio] = DEFAULT_RATIO,
    statistic: Annotated[str, options.RankedBy] = statistics.DEFAULT,
    scores_file: options.ScoresFile = None,
    heads_file: options.HeadsFile = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Put the parts of a scan together, which several machines have made."""
    with interrupts.ending_at_once():
        import alps
        from alps.cli import outputs

    files = outputs.Files(scores=scores_file, heads=heads_file, plot=plot, report=report)
    _show(alps.merge(parts), ratio, statistic, files, top, quiet, as_json)


def _show(
    scores: "HeadScores",
    ratio: float,
    statistic: str,
    files: "Files",
    top: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Writes and prints the scores, and the heads that they choose."""
    from alps.cli import json_output, outputs, printing

    if files.scores is not None:
        scores.save(files.scores)
    # Without a file for the heads, a warning of equal weights is enough.
    selection = None
    if files.heads is not None or not scores.all_equal():
        selection = scores.select(ratio, statistic=statistic)
    if selection is not None and files.heads is not None:
        selection.save(files.heads)
    files.draw(scores, selection, statistic)
    if as_json:
        chosen = None if selection is None else json_output.document(selection)
        printing.print_json(
            {"scores": json_output.document(scores), "heads": chosen, "fetched": json_output.fetched()}
        )
    elif not quiet:
        printing.print_scores(scores, statistic, selection, outputs.rows_of_table(top))
        files.print_written()
        printing.print_sources(scores.provenance)


@app.command(
    epilog=examples(
        "alps select scores.safetensors --heads heads.json",
        "alps select scores.safetensors --ratio 0.05 --rule per_layer",
        "alps select scores.safetensors --budget 20000000 --top 0",
        "alps select scores.safetensors --rule random --seed 1 --heads random.json",
    )
)
def select(
    scores_file: Annotated[
        Path, typer.Argument(metavar="SCORES", help="The file that `alps scan --scores` wrote.")
    ],
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=options.refuse_nan,
            metavar="SHARE",
            show_default=str(DEFAULT_RATIO),
            help="Select this share of all heads.",
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Select as many heads as train at most N parameters of Q, K and V, not a share.",
        ),
    ] = None,
    rule: Annotated[
        Rule,
        typer.Option(
            help="Choose the best of all heads, of each layer, whole key/value groups, or heads at random."
        ),
    ] = "global",
    statistic: options.SavedStatistic = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", show_default="0", help="Seed the rules that choose at random."),
    ] = None,
    heads_file: options.MainHeadsFile = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Choose heads from scores."""
    with interrupts.ending_at_once():
        from alps.cli import json_output, outputs, printing
        from alps.scores import HeadScores

    files = outputs.Files(heads=heads_file, plot=plot, report=report)
    rows = outputs.rows_of_table(
        top, otherwise=None if rule in get_args(RankedRule) else f"the rule {rule} ranks no heads"
    )
    scores = HeadScores.load(scores_file)
    selection = scores.select(ratio, budget=budget, rule=rule, statistic=statistic, seed=seed)
    if files.heads is not None:
        selection.save(files.heads)
    ranked_by = selection.provenance.get("statistic")
    files.draw(scores, selection, ranked_by)
    if as_json:
        printing.print_json(json_output.document(selection))
    elif not quiet:
        if ranked_by is None:
            printing.print_heads(selection)
        else:
            printing.print_scores(scores, ranked_by, selection, rows)
        files.print_written()


@app.command(
    epilog=examples(
        "alps show heads.json",
        "alps show scores.safetensors --statistic wasserstein --top 30",
        "alps show scores.safetensors --json",
    )
)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of scores or of heads.")],
    statistic: options.SavedStatistic = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    top: options.Top = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Show what is in a file of scores or of heads."""
    with interrupts.ending_at_once():
        from alps.cli import json_output, outputs, printing
        from alps.scores import HeadScores

    files = outputs.Files(plot=plot, report=report)
    content = _load(file)
    is_scores = isinstance(content, HeadScores)
    rows = outputs.rows_of_table(top, otherwise=None if is_scores else f"{file} ranks no heads")
    if isinstance(content, HeadScores):
        statistic = content.ranking_statistic(statistic)
    elif statistic is not None:
        raise ArgumentError(f"{file}: a set of heads holds no statistic, found statistic {statistic!r}")
    files.draw(content, statistic=statistic)
    if as_json:
        printing.print_json(json_output.document(content))
    elif not quiet:
        printing.print_provenance(content.provenance)
        if isinstance(content, HeadScores):
            printing.print_scores(content, content.ranking_statistic(statistic), None, rows)
        else:
            printing.print_heads(content)
        files.print_written()


@app.command(
    epilog=examples(
        "alps compare maths.safetensors german.safetensors --ratio 0.05",
        "alps compare maths.json german.json code.json --plot tasks.png",
    )
)
def compare(
    files_of_tasks: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Two or more files of scores or of heads.")
    ],
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=options.refuse_nan,
            metavar="SHARE",
            show_default=str(DEFAULT_RATIO),
            help="Take this share of the heads of a file of scores.",
        ),
    ] = None,
    statistic: options.SavedStatistic = None,
    plot: options.PlotFile = None,
    report: options.ReportFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare the heads of several tasks: overlap, rank correlation, and whose each head is."""
    with interrupts.ending_at_once():
        import alps
        from alps.cli import json_output, outputs, printing

    files = outputs.Files(plot=plot, report=report)
    names = _names(files_of_tasks)
    tasks = {name: _load(file) for name, file in zip(names, files_of_tasks, strict=True)}
    comparison = alps.compare(tasks, ratio=ratio, statistic=statistic)
    files.draw(comparison)
    if as_json:
        printing.print_json(json_output.document(comparison))
    elif not quiet:
        printing.print_comparison(comparison, DEFAULT_RATIO if ratio is None else ratio)
        files.print_written()


def _names(files: list[Path]) -> list[str]:
    """What tells the files apart: their names without folder and suffix, else their paths.

    Raises:
        ArgumentError: A file is given twice.
    """
    for twice in (file for number, file in enumerate(files) if file in files[:number]):
        raise ArgumentError(f"{twice}: given twice")
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(map(str, files))


def _load(path: Path) -> "HeadScores | HeadSet":
    """Reads a file of either kind, told apart by how it begins."""
    from alps.heads import HeadSet
    from alps.scores import HeadScores

    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, os.SEEK_END)
    if start.lstrip().startswith(b"{") and b"\0" not in start:
        return HeadSet.load(path)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < size:
        return HeadScores.load(path)
    raise CheckpointError(f"{path}: expected scores or heads that alps wrote, found something else")
