"""The command `alps`."""

from alps.cli.commands import app, main

__all__ = ["app", "main"]
