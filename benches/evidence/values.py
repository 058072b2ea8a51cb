"""What each key/value group is worth, from the losses of many random sets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_values(
    sets: Sequence[Sequence[int]], losses: Sequence[float], groups: int, penalty: float = 0.05
) -> NDArray[np.float64]:
    """How much each group lowers the loss, by ridge regression of the losses of sets on their members.

    Args:
        sets: Numbers of groups, as many in each set.
        losses: Of the sets.
        groups: Of the model.
        penalty: Of the squared values, for each set.
    """
    members = np.zeros((len(sets), groups))
    for row, it in enumerate(sets):
        members[row, list(it)] = 1
    centred = members - members.mean(axis=0)
    target = np.asarray(losses, np.float64) - np.mean(losses)
    added = penalty * len(sets) * np.eye(groups)
    return np.asarray(-np.linalg.solve(centred.T @ centred + added, centred.T @ target), np.float64)
