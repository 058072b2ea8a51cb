"""Compares the heads of several tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alps.arguments import DEFAULT_RATIO
from alps.errors import ArgumentError
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.optional import visual
from alps.scores import HeadScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pair:
    """Says how alike the heads of two tasks are.

    Examples:
        >>> heads = alps.HeadSet.load("heads.json")
        >>> other = alps.HeadSet.from_pairs([(0, 5), (2, 0)], heads.geometry)
        >>> pair = alps.compare({"maths": heads, "german": other}).pairs[0]
        >>> pair.first, pair.second, pair.shared, pair.by_chance, pair.jaccard
        ('maths', 'german', 1, 0.25, 0.2)

    Attributes:
        first: The name of one task.
        second: The name of the other.
        shared: Heads that both select.
        by_chance: How many heads two random sets of these sizes share on average.
        jaccard: Heads that both select over heads that at least one selects, 0 to 1.
        rank_correlation: Spearman's rank correlation of the scores of all heads that have a number in both, -1
            to 1; not-a-number unless both tasks have scores, and where all heads of a task score the same.

    Definitions:
        Two tasks select the sets A and B of the H heads of a model.

        - `shared`: |A ∩ B|
        - `by_chance`: |A| · |B| / H
        - `jaccard`: |A ∩ B| / |A ∪ B|
    """

    first: str
    second: str
    shared: int
    by_chance: float
    jaccard: float
    rank_correlation: float


@dataclass(frozen=True)
class Comparison:
    """Holds the heads of several tasks side by side, as `compare` returns them.

    Examples:
        >>> names = {"maths": "tuned", "german": "german"}
        >>> tasks = {task: alps.scan("base", tuned) for task, tuned in names.items()}
        >>> comparison = alps.compare(tasks, ratio=0.1)
        >>> (comparison.heads["maths"] & comparison.heads["german"]).pairs()
        [(0, 5), (3, 6)]
        >>> comparison.counts[0]  # tasks that select each head of layer 0
        array([0, 0, 0, 0, 0, 2, 0, 0])

    Attributes:
        heads: The heads of each task, by its name.
        scores: The scores of each task that has some, float64 [layers, heads].
        statistic: The statistic of the scores; None when no task has scores.
        geometry: The model that the heads belong to.
        pairs: Every two tasks, in the order in which they were given.
    """

    heads: Mapping[str, HeadSet]
    scores: Mapping[str, NDArray[np.float64]]
    statistic: str | None
    geometry: Geometry
    pairs: tuple[Pair, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.heads)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many tasks select each head: whole numbers [layers, heads]."""
        counts: NDArray[np.int64] = np.sum([heads.mask for heads in self.heads.values()], axis=0)
        return counts

    def __str__(self) -> str:
        width = max(len(f"{pair.first}, {pair.second}") for pair in self.pairs)
        lines = [f"{'':{width}}  shared  by chance  jaccard  rank correlation"]
        lines += [
            f"{f'{pair.first}, {pair.second}':{width}}  {pair.shared:6}  {pair.by_chance:9.1f}  "
            f"{pair.jaccard:7.3f}  {pair.rank_correlation:16.3f}"
            for pair in self.pairs
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").comparison_html(self)
        return html

    def plot(self) -> "Figure":
        """Draws a map of layers x heads for each task, and one of how many tasks select each head.

        Examples:
            >>> maths, german = alps.scan("base", "tuned"), alps.scan("base", "german")
            >>> alps.compare({"maths": maths, "german": german}).plot().savefig("tasks.svg")

        Returns:
            A figure of matplotlib, which pyplot does not know of.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        figure: Figure = visual("figures", "a picture").comparison_figure(self)
        return figure


def compare(
    tasks: Mapping[str, HeadScores | HeadSet], *, ratio: float | None = None, statistic: str | None = None
) -> Comparison:
    """Compares the heads of several tasks: how many they share, and how alike their ranks are.

    Of a task with scores, the best heads are compared: those that `HeadScores.select` chooses by the rule "global".

    Examples:
        >>> maths, german = alps.scan("base", "tuned"), alps.scan("base", "german")
        >>> print(alps.compare({"maths": maths, "german": german}, ratio=0.1))
                       shared  by chance  jaccard  rank correlation
        maths, german       2        0.5    0.333             ...

    Args:
        tasks: Scores or head sets of one model, two or more, by the name of each task.
        ratio: The share of the heads to select from scores; 0.10 when not given.
        statistic: The statistic that ranks the heads of scores; "relative_delta" unless they have only one other.

    Returns:
        The heads of each task, and how alike those of every two are.

    Raises:
        ArgumentError: There are fewer than two tasks, they are not of one geometry, an argument is out of its
            domain, or one is given although no task has scores.
    """
    if len(tasks) < 2:
        raise ArgumentError(f"a comparison needs two tasks or more, found {len(tasks)}")
    names = list(tasks)
    geometry = tasks[names[0]].geometry
    for name in names[1:]:
        if difference := geometry.difference(tasks[name].geometry):
            raise ArgumentError(f"{names[0]} and {name} are of two geometries: {difference}")
    scored = {name: task for name, task in tasks.items() if isinstance(task, HeadScores)}
    statistic = _common_statistic(scored, ratio, statistic)
    heads = {
        name: task.select(DEFAULT_RATIO if ratio is None else ratio, statistic=statistic)
        if isinstance(task, HeadScores)
        else task
        for name, task in tasks.items()
    }
    scores = {name: task[statistic] for name, task in scored.items() if statistic is not None}
    pairs = tuple(_pair(one, other, heads, scores) for one, other in combinations(names, 2))
    return Comparison(heads, scores, statistic, geometry, pairs)


def _common_statistic(
    scored: Mapping[str, HeadScores], ratio: float | None, statistic: str | None
) -> str | None:
    if not scored:
        for name, value in (("ratio", ratio), ("statistic", statistic)):
            if value is not None:
                raise ArgumentError(f"head sets are compared as they are, found {name} {value}")
        return None
    by = {name: scores.ranking_statistic(statistic) for name, scores in scored.items()}
    if len(set(by.values())) > 1:
        found = ", ".join(f"{name} by {statistic}" for name, statistic in by.items())
        raise ArgumentError(f"scores are compared by one statistic: name one; found {found}")
    return next(iter(by.values()))


def _pair(
    first: str, second: str, heads: Mapping[str, HeadSet], scores: Mapping[str, NDArray[np.float64]]
) -> Pair:
    one, other = heads[first], heads[second]
    total = one.geometry.heads
    return Pair(
        first=first,
        second=second,
        shared=len(one & other),
        by_chance=len(one) * len(other) / total if total else 0.0,
        jaccard=one.jaccard(other),
        rank_correlation=(
            rank_correlation(scores[first], scores[second]) if {first, second} <= scores.keys() else np.nan
        ),
    )


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, ties at their mean rank, over the entries that are numbers in both."""
    both = ~(np.isnan(one) | np.isnan(other))
    ranks = _ranks(one[both]), _ranks(other[both])
    centred = [rank - rank.mean() for rank in ranks if rank.size]
    if not centred or not all(rank.any() for rank in centred):
        return float("nan")
    first, second = (rank / np.linalg.norm(rank) for rank in centred)
    return float(np.clip(first @ second, -1.0, 1.0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
