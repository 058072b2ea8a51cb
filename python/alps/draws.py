"""Random head sets of the size of a given one."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from alps.geometry import LayerSizes
from alps.heads import HeadSet


def random_like(heads: HeadSet, generator: np.random.Generator, *, within_layers: bool) -> HeadSet:
    """Draws a set with as many heads in as many key/value groups, and so with as many parameters.

    Each group of the set with some of its heads in it becomes another group with as many, of a layer of the same sizes:
    of any such layer, or with `within_layers` of the same layer. Every such set is equally likely, so a set that says
    nothing about the model is exchangeable with those that are drawn.

    Args:
        heads: The set to match.
        generator: What draws.
        within_layers: Whether each layer keeps its numbers of heads and groups.
    """
    geometry = heads.geometry
    places: dict[tuple[int | LayerSizes, ...], list[tuple[int, int]]] = defaultdict(list)
    counts: dict[tuple[int | LayerSizes, ...], list[int]] = defaultdict(list)
    for row, sizes in enumerate(geometry.sizes):
        key: tuple[int | LayerSizes, ...] = (row,) if within_layers else (sizes,)
        shared = sizes.query_heads // sizes.key_value_heads
        chosen = heads.mask[row, : sizes.query_heads].reshape(-1, shared).sum(axis=1)
        places[key] += [(row, group) for group in range(sizes.key_value_heads)]
        counts[key] += [int(count) for count in chosen]
    mask: NDArray[np.bool_] = np.zeros(geometry.shape, dtype=bool)
    for key, groups in places.items():
        for (row, group), count in zip(groups, generator.permutation(counts[key]), strict=True):
            sizes = geometry.sizes[row]
            shared = sizes.query_heads // sizes.key_value_heads
            mask[row, group * shared + generator.permutation(shared)[:count]] = True
    return HeadSet(mask, geometry)
