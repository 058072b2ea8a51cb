"""Where the heads of another key/value group begin."""

import numpy as np
from numpy.typing import NDArray

from alps.geometry import Geometry


def groups_in_common(geometry: Geometry) -> bool:
    """Whether heads share keys and values, and do so in the same way in all layers."""
    borders = _borders(geometry)
    return geometry.heads_per_group > 1 and bool((borders == borders[:1]).all())


def runs(geometry: Geometry) -> list[tuple[int, int, int]]:
    """The borders between key/value groups as (head, first row, rows); none where no heads share a group."""
    if geometry.heads_per_group == 1:
        return []
    steps = np.diff(np.pad(_borders(geometry), ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(head), int(row), int(end - row)) for (head, row), (_, end) in zip(starts, ends, strict=True)]


def _borders(geometry: Geometry) -> NDArray[np.bool_]:
    """Flags [layers, heads]: whether a head's group is another than that of the head before it."""
    borders = np.zeros(geometry.shape, dtype=np.bool_)
    for row, sizes in enumerate(geometry.sizes):
        shared = sizes.query_heads // sizes.key_value_heads
        borders[row, shared : sizes.query_heads : shared] = True
    return borders
