"""Comparing arms with random sets: paired differences, intervals, exact p-values, corrected for their number."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from evidence import records
from evidence.arms import TRAINED_WITH_OTHERS

Set = tuple[int, ...]
TUNING_SEED = 0
"""The seed that rates are chosen on; no result is taken from it."""


class Results:
    """The lines of a folder of results, by what they are of."""

    def __init__(self, runs: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]]) -> None:
        """Sorts lines.

        Args:
            runs: A line for each trained model.
            arms: Which sets are an arm, by task and seed.
        """
        self.runs: dict[tuple[str, str, int, Set], dict[float, Mapping[str, Any]]] = defaultdict(dict)
        for it in runs:
            self.runs[it["setting"], it["task"], it["seed"], tuple(it["groups"])][it["rate"]] = it
        self.sets: dict[tuple[str, str], dict[int, list[Set]]] = defaultdict(dict)
        for it in arms:
            self.sets[it["task"], it["arm"]][it["seed"]] = [tuple(groups) for groups in it["sets"]]
        self._rates: dict[tuple[str, str, str], float | None] = {}

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """The results of a folder."""
        return cls(records.read_all([folder], "runs"), records.read_all([folder], "arms"))

    def arms(self, task: str) -> list[str]:
        """The names of the arms of a task."""
        return [arm for of, arm in self.sets if of == task]

    def rate(self, setting: str, task: str, arm: str) -> float | None:
        """The rate of the lowest mean validation loss on the tuning seed; that of random sets if none was tried.

        Of an arm with several sets, the first half of them was tried.
        """
        key = setting, task, arm
        if key not in self._rates:
            sets = self.sets[task, arm].get(TUNING_SEED, [])
            best = best_rate(
                [self.runs.get((setting, task, TUNING_SEED, it), {}) for it in sets[: max(1, len(sets) // 2)]]
            )
            if best is None and arm != "random":
                best = self.rate(setting, task, "random")
            self._rates[key] = best
        return self._rates[key]

    def found(
        self, setting: str, task: str, arm: str, measure: str, rate: float | None = None
    ) -> dict[int, list[float]]:
        """The measure of every set of an arm by seed, at the arm's rate; seeds that lack a set are left out.

        Args:
            setting: "freeze" or "train".
            task: Its name.
            arm: Its name.
            measure: "test", "general", "exact" or another field of a run.
            rate: Instead of the arm's.
        """
        if rate is None:
            rate = self.rate(setting, task, arm)
        if rate is None:
            return {}
        result = {}
        for seed, sets in self.sets[task, arm].items():
            lines = [self.runs.get((setting, task, seed, it), {}).get(rate) for it in sets]
            values = [it[measure] for it in lines if it is not None and measure in it]
            if seed != TUNING_SEED and values and len(values) == len(sets):
                result[seed] = values
        return result

    def at_best_rate(self, setting: str, task: str, arm: str) -> dict[int, list[float]]:
        """The test losses of the sets of an arm that were trained, at the rate of the lowest mean validation loss.

        The mean is over these sets, for each seed by itself.

        Args:
            setting: "freeze" or "train".
            task: Its name.
            arm: Its name.
        """
        result = {}
        for seed, sets in self.sets[task, arm].items():
            trained = [self.runs.get((setting, task, seed, it)) for it in sets]
            lines = [it for it in trained if it]
            if (best := best_rate(lines)) is not None:
                result[seed] = [it[best]["test"] for it in lines]
        return result


def best_rate(trained: Sequence[Mapping[float, Mapping[str, Any]]]) -> float | None:
    """The rate of the lowest mean validation loss among those that all sets were trained at; None if there is none.

    Args:
        trained: The runs of each set, by rate.
    """
    common = set.intersection(*map(set, trained)) if trained else set()
    means = {rate: float(np.mean([it[rate]["validation"] for it in trained])) for rate in common}
    return min(means, key=lambda rate: (means[rate], rate), default=None)


@dataclass(frozen=True)
class Comparison:
    """An arm against random sets of the same seeds.

    Attributes:
        differences: Mean of the arm minus mean of the random sets, by seed.
        p: Of the stratified rank test, two-sided.
    """

    differences: dict[int, float]
    p: float

    @property
    def mean(self) -> float:
        """Of the differences."""
        return float(np.mean(list(self.differences.values())))

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of Student's t; not-a-number for one seed."""
        return interval(list(self.differences.values()))


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean, by Student's t."""
    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def compare(own: Mapping[int, Sequence[float]], random: Mapping[int, Sequence[float]]) -> Comparison | None:
    """Compares on the seeds that both have; nothing if there is none.

    Args:
        own: The arm's losses by seed.
        random: Those of random sets by seed.
    """
    seeds = sorted(set(own) & set(random))
    if not seeds:
        return None
    differences = {seed: float(np.mean(own[seed]) - np.mean(random[seed])) for seed in seeds}
    return Comparison(differences, rank_test([(own[seed], random[seed]) for seed in seeds]))


def rank_test(strata: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """The exact two-sided p-value of Wilcoxon's rank sums added over strata.

    If in every stratum the first numbers are drawn like the second ones, every share of the ranks is as
    likely as any other. A tie counts as if the first number were the larger.

    Args:
        strata: Numbers of the arm, and of what it is compared with.
    """
    total, chances = 0, np.ones(1)
    for own, others in strata:
        pooled = sorted([(value, 1) for value in own] + [(value, 0) for value in others])
        total += sum(rank for rank, (_, mine) in enumerate(pooled, start=1) if mine)
        chances = np.convolve(chances, _rank_sums(len(own), len(pooled)))
    lower, upper = chances[: total + 1].sum(), chances[total:].sum()
    return float(min(1.0, 2 * min(lower, upper)))


def _rank_sums(chosen: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The chance of each sum of `chosen` different ranks of 1 to `count`."""
    ways = np.zeros((chosen + 1, chosen * count + 1))
    ways[0, 0] = 1
    for rank in range(1, count + 1):
        for taken in range(min(rank, chosen), 0, -1):
            ways[taken, rank:] += ways[taken - 1, : ways.shape[1] - rank]
    return np.asarray(ways[chosen] / math.comb(count, chosen), np.float64)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of p-values for their number."""
    order = sorted(values, key=lambda name: values[name])
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(order):
        largest = max(largest, min(1.0, values[name] * (len(order) - place)))
        corrected[name] = largest
    return corrected


def is_score(arm: str) -> bool:
    """Whether an arm is a choice by a score, and not a control."""
    return arm.startswith(("top:", "within:")) and "@" not in arm


def compare_all(
    results: Results, setting: str, task: str, measure: str = "test"
) -> tuple[dict[str, Comparison], dict[str, float]]:
    """Every arm of a task against random sets, and the corrected p-values of the scores.

    The family that is corrected for is the scores of one task and setting.
    """
    random = results.found(setting, task, "random", measure)
    planned = results.arms(task)
    if setting == "train":
        planned = [arm for arm in planned if arm in TRAINED_WITH_OTHERS]
        sets = results.sets[task, "random"]
        rate = with_others_rate(results, task)
        random = {
            seed: [
                results.runs["train", task, seed, it][rate][measure]
                for it in of_seed[:4]
                if rate in results.runs.get(("train", task, seed, it), {})
            ]
            for seed, of_seed in sets.items()
            if seed != TUNING_SEED
        }
        random = {seed: values for seed, values in random.items() if values}
    comparisons = {}
    for arm in planned:
        if "@" in arm or arm == "random":
            continue
        rate_of_arm = with_others_rate(results, task) if setting == "train" else None
        compared = compare(results.found(setting, task, arm, measure, rate_of_arm), random)
        if compared:
            comparisons[arm] = compared
    return comparisons, holm({arm: it.p for arm, it in comparisons.items() if is_score(arm)})


@dataclass(frozen=True)
class Place:
    """Where a score's sets are among random ones, over all tasks and seeds.

    Attributes:
        share: Of the random sets of the same task and seed that have a lower loss, on average.
        p: Of the rank test with a stratum for each task and seed, two-sided.
    """

    share: float
    p: float


def over_all_tasks(results: Results, tasks: Sequence[str]) -> dict[str, Place]:
    """The place of every score, everything else frozen."""
    found = {}
    for arm in filter(is_score, results.arms(tasks[0])):
        strata = []
        for task in tasks:
            random = results.found("freeze", task, "random", "test")
            own = results.found("freeze", task, arm, "test")
            strata += [(own[seed], random[seed]) for seed in sorted(set(own) & set(random))]
        lower = [np.mean(np.array(others) < own[0]) for own, others in strata]
        found[arm] = Place(float(np.mean(lower)), rank_test(strata))
    return found


def with_others_rate(results: Results, task: str) -> float:
    """The rate of everything when everything outside Q, K and V trains: the best on average on the tuning seed."""
    by_rate: dict[float, list[float]] = defaultdict(list)
    for (setting, of, seed, _), lines in results.runs.items():
        if (setting, of, seed) == ("train", task, TUNING_SEED):
            for rate, it in lines.items():
                by_rate[rate].append(it["validation"])
    return min(by_rate, key=lambda rate: float(np.mean(by_rate[rate])))


def overlap(first: Set, second: Set, groups: int) -> tuple[int, float]:
    """How many groups two sets share, and how many they would by chance."""
    return len(set(first) & set(second)), len(first) * len(second) / groups


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The correlation of ranks, and its p-value."""
    found = stats.spearmanr(first, second)
    return float(found.statistic), float(found.pvalue)
