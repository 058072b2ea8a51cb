"""What a command was asked to write and to print."""

from dataclasses import dataclass
from pathlib import Path

import typer

from alps.audits import Audit
from alps.cli import options
from alps.compare import Comparison
from alps.files import check_writable, suffix_of
from alps.heads import HeadSet
from alps.report import check_report, write_report
from alps.scores import HeadScores
from alps.visual import image_file


@dataclass(frozen=True)
class Files:
    """The files to write. They are checked before the work.

    Raises:
        ArgumentError: The name of a file does not say what is in it.
        MissingPackageError: A picture or a report needs packages that are not installed.
        OSError: A file could not be written.
    """

    scores: Path | None = None
    heads: Path | None = None
    audit: Path | None = None
    plot: Path | None = None
    report: Path | None = None

    def __post_init__(self) -> None:
        for what, file, suffix in (
            ("score file", self.scores, ".safetensors"),
            ("head set", self.heads, ".json"),
            ("JSON file", self.audit, ".json"),
        ):
            if file is not None:
                check_name(file, what, suffix)
        if self.plot is not None:
            image_file.check_picture(self.plot)
        if self.report is not None:
            check_report(self.report)

    def draw(
        self,
        content: HeadScores | HeadSet | Comparison | Audit,
        heads: HeadSet | None = None,
        statistic: str | None = None,
    ) -> None:
        """Writes the picture and the report that are asked for."""
        if self.plot is not None:
            if isinstance(content, HeadScores):
                figure = content.plot(heads, statistic=statistic)
            else:
                figure = content.plot()
            image_file.save(figure, self.plot)
        if self.report is not None:
            write_report(self.report, content, heads, statistic=statistic)

    def print_written(self) -> None:
        """Prints the files that were written."""
        for what, path in (
            ("scores", self.scores),
            ("heads", self.heads),
            ("audit", self.audit),
            ("picture", self.plot),
            ("report", self.report),
        ):
            if path is not None:
                typer.echo(f"{what} written to {path}")


def check_name(file: Path, what: str, suffix: str) -> None:
    """Refuses a file that could not be written, or whose name does not say what is in it.

    Raises:
        ArgumentError: The name ends in something but `suffix`.
        OSError: The file could not be written.
    """
    suffix_of(file, what, (suffix,))
    check_writable(file)


def rows_of_table(top: int | None, *, otherwise: str | None = None) -> int:
    """How many heads a table has; `otherwise` says why there is none, and then nobody may ask for rows."""
    if otherwise is not None and top is not None:
        raise typer.BadParameter(f"{otherwise}, so there is no table of the best.", param_hint="--top")
    return options.TOP if top is None else top
