"""Runs the command `alps` as `python -m alps.cli`."""

from alps.cli import main

main()
