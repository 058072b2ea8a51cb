"""Scores heads as LIFT does (https://arxiv.org/abs/2506.00772): by their rows in the low-rank part of a projection."""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from alps.live.grafting import LiveHeads
from alps.training.attention import HeadRows

_RANK = 128
"""The rank of the part, as in LIFT."""


def low_rank_scores(heads: LiveHeads) -> NDArray[np.float64]:
    """The norms [layers, heads] of the rows in the best approximation of rank 128 of their projection.

    The queries, the keys and the values of a layer are a projection each.
    """
    projections: dict[tuple[int, str], list[HeadRows]] = defaultdict(list)
    for matrix in heads.attention.matrices:
        projections[matrix.layer_index, matrix.role].append(matrix)
    squares: dict[HeadRows, float] = {}
    for matrices in projections.values():
        whole = torch.cat([heads.read(matrix).weight for matrix in matrices]).double()
        # The left singular vectors and the squared singular values.
        squared, vectors = torch.linalg.eigh(whole @ whole.T)
        of_rows = (vectors[:, -_RANK:].square() * squared[-_RANK:].clamp(min=0)).sum(dim=1)
        of_matrices = of_rows.split([matrix.count for matrix in matrices])
        squares |= {matrix: float(rows.sum()) for matrix, rows in zip(matrices, of_matrices, strict=True)}
    return np.sqrt(heads.attention.by_head(squares))
