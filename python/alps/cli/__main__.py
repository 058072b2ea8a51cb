"""Runs the command `alps` as `python -m alps.cli`."""

from alps.cli import main

if __name__ == "__main__":
    main()
