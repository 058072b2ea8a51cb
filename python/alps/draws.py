"""Random head sets of the size of a given one."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from alps.heads import HeadSet


def random_like(heads: HeadSet, generator: np.random.Generator, *, within_layers: bool) -> HeadSet:
    """Draws a set with as many heads in as many key/value groups, and so with as many parameters.

    Each group with heads in the set is replaced by a group with as many, of any layer of the same sizes, or with
    `within_layers` of the same layer. Every such set is equally likely, so a set that says nothing about the model
    is exchangeable with those that are drawn.

    Args:
        heads: The set to match.
        generator: The source of random numbers.
        within_layers: Whether each layer keeps its numbers of heads and groups.
    """
    geometry = heads.geometry
    places: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    counts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, sizes in enumerate(geometry.sizes):
        key: tuple[int, ...] = (row,) if within_layers else sizes
        chosen = heads.mask[row, : sizes.query_heads].reshape(-1, sizes.heads_per_group).sum(axis=1)
        places[key] += [(row, group) for group in range(sizes.key_value_heads)]
        counts[key] += chosen.tolist()
    mask: NDArray[np.bool_] = np.zeros(geometry.shape, dtype=bool)
    for key, groups in places.items():
        for (row, group), count in zip(groups, generator.permutation(counts[key]), strict=True):
            shared = geometry.sizes[row].heads_per_group
            mask[row, group * shared + generator.permutation(shared)[:count]] = True
    return HeadSet(mask, geometry)
