"""The program that has the commands: its errors and its exit codes."""

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alps.cli import EXIT_INTERRUPTED, interrupts
from alps.errors import AlpsError, UnchangedError
from alps.escaping import escape

_EXIT_UNCHANGED = 3
"""The exit code where both models have equal attention weights."""


class _Commands(TyperGroup):
    """Commands that report an error in one line, with an exit code."""

    def invoke(self, *arguments: Any, **named: Any) -> Any:
        try:
            with interrupts.raising(), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(*arguments, **named)
        except BrokenPipeError:
            raise  # typer ends quietly when the reader of the output has gone
        except (AlpsError, OSError) as error:
            typer.echo(f"alps: error: {_line(error)}", err=True)
            raise typer.Exit(_EXIT_UNCHANGED if isinstance(error, UnchangedError) else 1) from None
        except MemoryError:
            typer.echo("alps: error: the system has no memory left for this process", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except RuntimeError as error:
            # Before Python 3.12 the making of a class turns whatever its fields raise into this.
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise typer.Exit(EXIT_INTERRUPTED) from None
            raise


def _line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    return escape(" ".join(text.split()))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"alps: warning: {escape(' '.join(str(message).split()))}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        import alps

        typer.echo(f"alps {alps.__version__}")
        raise typer.Exit


def examples(*commands: str) -> str:
    """What a command's help shows after its options: examples, in Markdown that a terminal shows as it is."""
    return "Examples:\n\n" + "\n".join(f"    $ {command}" for command in commands)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`alps COMMAND --help` shows the options of a command, and examples.",
)


@app.callback()
def _alps(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the attention heads that carry a task, by comparing a base and a tuned checkpoint."""
