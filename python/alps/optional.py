"""Packages that only some calls need."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from alps.errors import MissingPackageError

_PLOT = "'alps-heads[plot]'"


@contextmanager
def needed(purpose: str, requirement: str = _PLOT) -> Iterator[None]:
    """Turns a failed import inside the block into an error that says what to install.

    Args:
        purpose: What needs the packages ("a picture").
        requirement: The argument with which pip installs them.

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
    """Imports a module of `alps.visual` for a method that draws.

    It is found by name, since `alps.visual` imports the classes that have such methods.

    Raises:
        MissingPackageError: A package that the module needs is not installed.
    """
    with needed(purpose, requirement):
        return importlib.import_module(f"alps.visual.{module}")
