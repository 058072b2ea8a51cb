"""Scores and head sets as tables of pandas."""

import pandas as pd

from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores


def scores_frame(scores: HeadScores) -> pd.DataFrame:
    """A row for every (layer, head), a column for every statistic."""
    columns = {name: array.ravel() for name, array in scores.items()}
    return pd.DataFrame(columns, index=_index(scores.geometry))


def set_series(heads: HeadSet) -> "pd.Series[bool]":
    """A flag for every (layer, head)."""
    return pd.Series(heads.mask.ravel(), index=_index(heads.geometry), name="selected")


def _index(geometry: Geometry) -> pd.MultiIndex:
    _, heads = geometry.shape
    return pd.MultiIndex.from_product([geometry.layers, range(heads)], names=["layer", "head"])
