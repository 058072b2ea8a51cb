"""The command `alps`."""

from alps.cli import scores, models, checkpoints  # isort: skip  # in this order the help lists the commands
from alps.cli.app import app, main

__all__ = ["app", "checkpoints", "main", "models", "scores"]
