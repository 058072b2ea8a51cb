"""The command `alps`, its errors and its exit codes."""

import logging
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import alps
from alps.errors import AlpsError, UnchangedError
from alps.escaping import escape

_EXIT_UNCHANGED = 3
"""The exit code where both models have equal attention weights."""


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
    return escape(" ".join(text.split()))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"alps: warning: {escape(' '.join(str(message).split()))}", err=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alps {alps.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _alps(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the attention heads that carry a task, by comparing a base and a tuned checkpoint."""


def main() -> None:
    """Runs the command."""
    # PEFT imports it, and it says on some processors which of its kernels it cannot load.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    app(prog_name="alps")
