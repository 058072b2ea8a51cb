"""Packages that only some calls need."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from alps.errors import MissingPackageError

_PLOT = "'alps-heads[plot]'"


@contextmanager
def needed(purpose: str, requirement: str = _PLOT) -> Iterator[None]:
    """Turns a failed import inside the block into a refusal that says what to install.

    Args:
        purpose: What needs the packages ("a picture").
        requirement: What pip installs them by.

    Raises:
        MissingPackageError: An import in the block failed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs more packages: pip install {requirement} ({error})"
        ) from error


def visual(module: str, purpose: str, requirement: str = _PLOT) -> ModuleType:
    """Imports a module of `alps.visual` by its name, for a method that shows the object it belongs to.

    Scores and head sets know nothing else of how they are shown.

    Raises:
        MissingPackageError: A package that the module needs is not installed.
    """
    with needed(purpose, requirement):
        return importlib.import_module(f"alps.visual.{module}")
