"""How a long call tells how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from alps.optional import visual

Update: TypeAlias = Callable[[int, int], object]
"""Takes what is done so far, and the total."""

Progress: TypeAlias = Update | bool | None
"""How a long call reports its progress: True for a bar in a terminal or a notebook, or a function that takes what is
done so far and the total.
"""


@contextmanager
def reported(progress: Progress, what: str, unit: str = "") -> Iterator[Update | None]:
    """The function to call; None if nobody wants to know. A bar stays on screen while the block runs.

    Args:
        progress: What the caller has given.
        what: What is done ("reading").
        unit: What is counted: "bytes", or nothing for steps.
    """
    if callable(progress):
        yield progress
    elif progress:
        with visual("progress_bar", "a progress bar", "alps-heads").bar(what, unit) as update:
            yield update
    else:
        yield None
