"""Packages that only some calls need."""

from collections.abc import Iterator
from contextlib import contextmanager

from alps.errors import MissingPackageError

PICTURES = "'alps-heads[plot]'"
"""What pip installs for pictures and reports."""


@contextmanager
def needed(purpose: str, requirement: str) -> Iterator[None]:
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
