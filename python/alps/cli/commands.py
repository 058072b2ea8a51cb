"""The commands of `alps`, their arguments and their options."""

import json
import math
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typer.core import TyperGroup

import alps
from alps import statistics
from alps.audits import Audit
from alps.cli import json_output, tables
from alps.compare import Comparison
from alps.errors import AlpsError, ArgumentError, CheckpointError, UnchangedError
from alps.files import check_writable
from alps.heads import HeadSet
from alps.optional import needed
from alps.report import check_report, write_report
from alps.scan import Component, Form
from alps.scores import DEFAULT_RATIO, HeadScores, Rule
from alps.visual import image_file
from alps.visual.terminal_map import count_map, head_map, set_map

_EXIT_UNCHANGED = 3
"""The exit code of a selection from scores of equal weights."""


class _Commands(TyperGroup):
    """Commands that report an error in one line, with an exit code."""

    def invoke(self, *arguments: Any, **named: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(*arguments, **named)
        except BrokenPipeError:
            raise  # typer ends quietly when the reader of the output has gone
        except (AlpsError, OSError) as error:
            typer.echo(f"alps: error: {_line(error)}", err=True)
            raise typer.Exit(_EXIT_UNCHANGED if isinstance(error, UnchangedError) else 1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"alps: warning: {' '.join(str(message).split())}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alps {alps.__version__}")
        raise typer.Exit


def _number(value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # passes every comparison with a bound
        raise typer.BadParameter("nan is not a number.")
    return value


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Ratio = typer.Option(min=0, max=1, callback=_number, help="Share of the heads to select.")
_Statistic = typer.Option(metavar="NAME", help="What ranks the heads.")
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
_ComponentOption = Annotated[
    Component | None, typer.Option(help="Whose heads: the decoder's, else the encoder's, when not given.")
]
_HeadsFile = typer.Option(metavar="FILE", help="Write the selected heads here (JSON).")
_PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture here: .png, .svg or .pdf.")
]
_ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a report with pictures here (.html).")
]


_Length = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a window of the text; 256 when not given, or what the model takes."),
]
_Windows = Annotated[int, typer.Option(min=1, help="Windows of the text, at most.")]
_Device = Annotated[str | None, typer.Option(help="Such as cuda; a GPU if there is one.")]


@app.callback()
def _alps(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the attention heads that carry a task, by comparing a base and a tuned checkpoint."""


@app.command()
def scan(
    base: Annotated[
        str, typer.Argument(help="The checkpoint before tuning: folder, file or cached hub name.")
    ],
    tuned: Annotated[str, typer.Argument(help="The checkpoint or the adapter after tuning.")],
    ratio: Annotated[float, _Ratio] = DEFAULT_RATIO,
    component: _ComponentOption = None,
    form: Annotated[Form, typer.Option(help="What a head's weight vector is.")] = "qkv",
    statistic: Annotated[str, _Statistic] = statistics.DEFAULT,
    temperature: Annotated[float, typer.Option(help="Of the softmax over a head's weights.")] = 1.0,
    adapter_base: Annotated[
        str | None, typer.Option(metavar="NAME", help="What adapters change, if not what they say.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores here (safetensors).")
    ] = None,
    heads: Annotated[Path | None, _HeadsFile] = None,
    plot: _PlotFile = None,
    report: _ReportFile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As many as cores when not given.")] = None,
    mmap: Annotated[
        bool | None,
        typer.Option(help="Map files or copy them; when not given, ALPS_MMAP (1 or 0) decides, else map."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Score every head of a model by how far tuning has moved it.

    The exit code is 3 if heads are to be written and the attention weights of both checkpoints are equal.
    """
    statistics.resolve([statistic], form)
    for path in (output, heads):
        if path is not None:
            check_writable(path)
    _check_pictures(plot, report)
    wanted = dict.fromkeys((*statistics.resolve(None, form), statistic))
    with nullcontext() if as_json else tables.progress_bar(sys.stderr) as progress:
        scores = alps.scan(
            base,
            tuned,
            adapter_base=adapter_base,
            component=component,
            form=form,
            temperature=temperature,
            statistics=tuple(wanted),
            threads=threads,
            mmap=mmap,
            progress=progress,
        )
    if output is not None:
        scores.save(output)
    # Without a file for the heads, a warning of equal weights is enough.
    selection = None
    if heads is not None or not scores.all_equal():
        selection = scores.select(ratio, statistic=statistic)
    if selection is not None and heads is not None:
        selection.save(heads)
    _draw(plot, report, scores, selection, statistic)
    if as_json:
        chosen = None if selection is None else json_output.document(selection)
        _print_json({"scores": json_output.document(scores), "heads": chosen})
        return
    _print_scores(scores, statistic, selection)
    _print_sources(scores.provenance)
    _print_written(scores=output, heads=heads, picture=plot, report=report)


@app.command()
def select(
    scores_file: Annotated[Path, typer.Argument(metavar="SCORES", help="What `alps scan --output` wrote.")],
    ratio: Annotated[float | None, _Ratio] = None,
    budget: Annotated[
        int | None, typer.Option(min=0, help="Q/K/V parameters that may train, instead of a ratio.")
    ] = None,
    rule: Annotated[Rule, typer.Option(help="How heads are chosen.")] = "global",
    statistic: Annotated[str | None, _Statistic] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random rules.")] = None,
    output: Annotated[Path | None, _HeadsFile] = None,
    plot: _PlotFile = None,
    report: _ReportFile = None,
    as_json: _Json = False,
) -> None:
    """Choose heads from scores."""
    _check_pictures(plot, report)
    scores = HeadScores.load(scores_file)
    selection = scores.select(ratio, budget=budget, rule=rule, statistic=statistic, seed=seed)
    if output is not None:
        selection.save(output)
    ranked_by = selection.provenance.get("statistic")
    _draw(plot, report, scores, selection, ranked_by)
    if as_json:
        _print_json(json_output.document(selection))
        return
    if ranked_by is None:
        _print_heads(selection)
    else:
        _print_scores(scores, ranked_by, selection)
    _print_written(heads=output, picture=plot, report=report)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A file of scores or of heads.")],
    plot: _PlotFile = None,
    report: _ReportFile = None,
    as_json: _Json = False,
) -> None:
    """Show what is in a file of scores or of heads."""
    _check_pictures(plot, report)
    content = _load(file)
    _draw(plot, report, content)
    if as_json:
        _print_json(json_output.document(content))
        return
    for name, value in content.provenance.items():
        typer.echo(f"{name}: {value}")
    if isinstance(content, HeadScores):
        _print_scores(content, content.ranking_statistic(), None)
    else:
        _print_heads(content)
    _print_written(picture=plot, report=report)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE FILE ...", help="Two or more files of scores or of heads.")
    ],
    ratio: Annotated[
        float | None,
        typer.Option(min=0, max=1, callback=_number, help="Share of the heads to take of scores (0.1)."),
    ] = None,
    statistic: Annotated[str | None, _Statistic] = None,
    plot: _PlotFile = None,
    report: _ReportFile = None,
    as_json: _Json = False,
) -> None:
    """Compare the heads of several tasks: overlap, rank correlation, maps."""
    _check_pictures(plot, report)
    names = _names(files)
    comparison = alps.compare(
        {name: _load(file) for name, file in zip(names, files, strict=True)}, ratio=ratio, statistic=statistic
    )
    _draw(plot, report, comparison)
    if as_json:
        _print_json(json_output.document(comparison))
        return
    console = _console()
    console.print(Text(str(comparison.geometry)))
    console.print(tables.comparison_table(comparison))
    console.print(count_map(console, comparison.geometry, comparison.counts, len(comparison.names)))
    _print_written(picture=plot, report=report)


def _names(files: list[Path]) -> list[str]:
    """What tells the files apart: their names without folder and suffix, else their paths.

    Raises:
        ArgumentError: A file is given twice.
    """
    for twice in (file for number, file in enumerate(files) if file in files[:number]):
        raise ArgumentError(f"{twice}: given twice")
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else list(map(str, files))


def _check_pictures(plot: Path | None, report: Path | None) -> None:
    if plot is not None:
        image_file.check_picture(plot)
    if report is not None:
        check_report(report)


def _draw(
    plot: Path | None,
    report: Path | None,
    content: HeadScores | HeadSet | Comparison | Audit,
    heads: HeadSet | None = None,
    statistic: str | None = None,
) -> None:
    if plot is not None:
        figure = (
            content.plot(heads, statistic=statistic) if isinstance(content, HeadScores) else content.plot()
        )
        image_file.save(figure, plot)
    if report is not None:
        write_report(report, content, heads, statistic=statistic)


@app.command()
def graft(
    base: Annotated[
        str, typer.Argument(help="The checkpoint before tuning: folder, file or cached hub name.")
    ],
    tuned: Annotated[str, typer.Argument(help="The checkpoint or the adapter after tuning.")],
    heads: Annotated[Path, typer.Option(metavar="FILE", help="The chosen heads (JSON).")],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Write the checkpoint here; it must not exist.")
    ],
    scale: Annotated[float, typer.Option(callback=_number, help="Of the change of the rows.")] = 1.0,
    rest: Annotated[
        Literal["base", "tuned"], typer.Option(help="Of which everything but the chosen heads is.")
    ] = "base",
    as_json: _Json = False,
) -> None:
    """Write a checkpoint with the tuned Q/K/V rows of the chosen heads, and everything else of the base."""
    chosen = HeadSet.load(heads)
    with nullcontext() if as_json else tables.progress_bar(sys.stderr) as progress:
        written = alps.graft(base, tuned, chosen, output, scale=scale, rest=rest, progress=progress)
    if as_json:
        document = {"path": str(output), "bytes": written.bytes, "files": list(written.files)}
        _print_json({"graft": document, "heads": json_output.document(chosen)})
        return
    _print_heads(chosen)
    _print_written(checkpoint=output)


@app.command()
def audit(
    base: Annotated[str, typer.Argument(help="The model before tuning: folder or cached hub name.")],
    tuned: Annotated[str, typer.Argument(help="The model or the adapter after tuning.")],
    heads: Annotated[Path, typer.Option(metavar="FILE", help="The chosen heads (JSON).")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text of the task, in UTF-8.")],
    draws: Annotated[int, typer.Option(min=1, help="Random sets of each of the two kinds.")] = 100,
    length: _Length = None,
    windows: _Windows = 16,
    device: _Device = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets.")] = 0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all numbers here (JSON).")
    ] = None,
    plot: _PlotFile = None,
    report: _ReportFile = None,
    as_json: _Json = False,
) -> None:
    """Measure how much of a tuning the chosen heads carry, against random sets, without training.

    The rows of the heads change places between the two models; the loss on the text says what that does.
    """
    if output is not None:
        check_writable(output)
    _check_pictures(plot, report)
    chosen = HeadSet.load(heads)
    with needed("an audit", "'alps-heads[train]'"):
        from alps.live import texts
        from alps.live.models import load_quietly
    batches = texts.windows(text, base, length=length, count=windows)
    first, second = load_quietly(base, device=device), load_quietly(tuned, base, device)
    with nullcontext() if as_json else tables.steps_bar(sys.stderr, "evaluations") as progress:
        found = alps.audit(first, second, chosen, batches, draws=draws, seed=seed, progress=progress)
    if output is not None:
        found.save(output)
    _draw(plot, report, found)
    if as_json:
        _print_json(json.loads(found.to_json()))
        return
    typer.echo(str(found))
    _print_written(audit=output, picture=plot, report=report)


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="The model: folder or cached hub name.")],
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="A text of the task, in UTF-8.")] = None,
    statistic: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What to measure; may be repeated.")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="The model after tuning, which `taylor` needs.")] = None,
    ratio: Annotated[float, _Ratio] = DEFAULT_RATIO,
    length: _Length = None,
    windows: _Windows = 16,
    device: _Device = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores here (safetensors).")
    ] = None,
    heads: Annotated[Path | None, _HeadsFile] = None,
    as_json: _Json = False,
) -> None:
    """Score every head of a model by gradients on a text, or by what the loss would lose without the head."""
    for path in (output, heads):
        if path is not None:
            check_writable(path)
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
    if output is not None:
        scores.save(output)
    if heads is not None:
        selection.save(heads)
    if as_json:
        _print_json({"scores": json_output.document(scores), "heads": json_output.document(selection)})
        return
    _print_scores(scores, ranked_by, selection)
    _print_written(scores=output, heads=heads)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="What to make; it must not exist yet.")] = Path("alps-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How often all but the base is done anew.")] = 3,
    as_json: _Json = False,
) -> None:
    """Show the whole method in a minute or two: train, tune, scan and compare ways to train a tiny model."""
    with needed("the demo", "'alps-heads[train,plot]'"):
        from alps.demo import Settings, cores, run
    console = Console(quiet=True) if as_json else _console()
    results = run(folder, Settings(seeds=seeds), console, processes=min(cores(), seeds))
    if as_json:
        typer.echo(results.to_json(), nl=False)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint: folder, file or cached hub name.")],
    component: _ComponentOption = None,
    as_json: _Json = False,
) -> None:
    """Say what a scan would read of a checkpoint, and what it leaves out and why."""
    found = alps.inspect(path, component=component)
    if as_json:
        _print_json(json_output.document(found))
    else:
        _print(tables.inspection_tables(found))


@app.command()
def layouts(as_json: _Json = False) -> None:
    """List the layouts that are known, and the model types that have them."""
    layouts = alps.layouts()
    if as_json:
        _print_json({"layouts": [asdict(layout) for layout in layouts]})
    else:
        _print(tables.layout_list(layouts))


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


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, allow_nan=False))


def _print_scores(scores: HeadScores, statistic: str, heads: HeadSet | None) -> None:
    console = _console()
    console.print(Text(str(scores.geometry)))
    for note in tables.quantisation_notes(scores):
        console.print(Text(note, style="yellow"))
    console.print()
    console.print(Text(f"Top heads by {statistic}", style="bold"))
    console.print(tables.top_table(console, scores, statistic, heads))
    console.print(head_map(console, scores.geometry, scores[statistic], heads))
    _print_summary(console, heads)


def _print_heads(heads: HeadSet) -> None:
    console = _console()
    console.print(Text(str(heads.geometry)))
    console.print()
    console.print(set_map(console, heads))
    _print_summary(console, heads)


def _print_summary(console: Console, heads: HeadSet | None) -> None:
    if heads is not None:
        console.print()
        console.print(Text(heads.report.summary, style="bold"))


def _print_sources(provenance: dict[str, str]) -> None:
    typer.echo(f"base read from {provenance['base_files']}, tuned from {provenance['tuned_files']}")
    for name in ("base", "tuned"):
        if over := provenance.get(f"{name}_adapter_over"):
            trained_on = provenance.get(f"{name}_adapter_trained_on", over)
            named = f"; its configuration names {trained_on}" if trained_on != over else ""
            typer.echo(f"{name} is an adapter ({provenance[f'{name}_adapter']}) over {over}{named}")
        if note := provenance.get(f"{name}_note"):
            typer.echo(f"note on {name}: {note}")


def _print_written(**files: Path | None) -> None:
    for what, path in files.items():
        if path is not None:
            typer.echo(f"{what} written to {path}")


def _print(lines: Iterable[RenderableType]) -> None:
    console = _console()
    for line in lines:
        console.print(line)


def _console() -> Console:
    return Console(highlight=False)


def main() -> None:
    """Runs the command."""
    app(prog_name="alps")
