"""Scores of attention heads, and the rules that select heads by them."""

import os
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

import alps._alps as _alps
from alps.arguments import DEFAULT_RATIO, RandomRule, RankedRule, Rule
from alps.errors import AlpsWarning, ArgumentError, UnchangedError
from alps.escaping import shorten
from alps.files import check_document, encode_tensors, open_tensors, write_whole
from alps.geometry import Geometry, geometry_of
from alps.heads import HeadSet
from alps.optional import visual
from alps.sharing import Shareable
from alps.statistics import DEFAULT

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Kind = Literal["overview", "map", "layers", "ranks"]
"""The kinds of picture that `HeadScores.plot` draws."""

EQUAL_WEIGHTS = (
    "the attention weights of both checkpoints are equal: no head has moved. Check that the tuned checkpoint is the "
    "one that training wrote"
)
"""The warning of scores of equal weights, and the error of a selection from them."""

ZERO_IF_UNMOVED = ("changed", "delta_norm", "max_delta", "relative_delta")
"""The statistics that are 0 for a head if and only if none of its weights has moved."""

HEADS_MOVED = "heads_moved"
"""The field of the provenance that counts the heads that have moved; absent where all have."""

_FORMAT = "alps-scores"
_VERSION = 1
_LARGEST = 2**64 - 1
"""The largest seed, and more parameters than any model has."""


class HeadScores(Shareable, Mapping[str, NDArray[np.float64]]):
    """A score for every attention head, by one or more statistics.

    A mapping from the name of a statistic to a read-only float64 array [layers, heads], not-a-number where a
    layer has fewer heads than another. Two are equal when they hold the same numbers for the same geometry,
    where not-a-number equals itself.
    """

    __slots__ = ("_arrays", "_geometry", "_provenance")
    _file = "scores.safetensors"
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        statistics: Mapping[str, ArrayLike],
        geometry: Geometry,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        """Scores of the heads of one model.

        Args:
            statistics: Numbers [layers, heads] by the name of the statistic; copied.
            geometry: The model that the heads belong to.
            provenance: Where the scores come from.

        Raises:
            ArgumentError: There is no statistic, or one is not of the geometry's shape.
        """
        if not statistics:
            raise ArgumentError("scores need at least one statistic")
        self._arrays: dict[str, NDArray[np.float64]] = {}
        for name, values in statistics.items():
            array = np.array(values, dtype=np.float64, order="C")
            if array.shape != geometry.shape:
                raise ArgumentError(
                    f"{name}: expected [layers, heads] of {geometry.shape} for {geometry}; "
                    f"found {array.shape}"
                )
            for row, sizes in enumerate(geometry.sizes):
                beyond = array[row, sizes.query_heads :]
                if beyond.size and not np.isnan(beyond).all():
                    raise ArgumentError(
                        f"{name}: layer {geometry.layers[row]} has {sizes.query_heads} heads; expected "
                        "not-a-number beyond them"
                    )
            array.flags.writeable = False
            self._arrays[name] = array
        self._geometry = geometry
        self._provenance = dict(provenance or {})

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics."""
        return tuple(self._arrays)

    @property
    def geometry(self) -> Geometry:
        """The model that the heads belong to."""
        return self._geometry

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer number of each row."""
        return self._geometry.layers

    @property
    def provenance(self) -> dict[str, str]:
        """Where the scores come from: checkpoints and their revisions, form, temperature, version."""
        return dict(self._provenance)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(f"no statistic {name!r}; there are {', '.join(self._arrays)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadScores):
            return NotImplemented
        return (
            self._geometry == other._geometry
            and self._arrays.keys() == other._arrays.keys()
            and all(np.array_equal(self[name], other[name], equal_nan=True) for name in self)
        )

    def __repr__(self) -> str:
        return f"HeadScores({self._geometry}: {', '.join(self._arrays)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return HeadScores, (self._arrays, self._geometry, self._provenance)

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").scores_html(self)
        return html

    def to_pandas(self) -> "DataFrame":
        """The scores as a table: a row for every (layer, head), a column for every statistic.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        frame: DataFrame = visual("pandas", "a table of pandas", "pandas").scores_frame(self)
        return frame

    def plot(
        self, heads: HeadSet | None = None, *, kind: Kind = "overview", statistic: str | None = None
    ) -> "Figure":
        """Draws the scores.

        The kinds:

        - "map": layers x heads, darker where the score is higher, with the borders of the key/value groups;
        - "layers": for every layer, its heads and their mean;
        - "ranks": the scores of all heads in order, with the cut where `heads` are the best ones;
        - "overview": all three.

        Colours and axes begin at 0 unless a score is below it. Heads without a finite score are hatched.

        Args:
            heads: Heads to mark.
            kind: One of the kinds above.
            statistic: What to draw; "relative_delta" unless it is not there and only one other is.

        Returns:
            A figure of matplotlib, which pyplot does not know of: `figure.savefig(path)`, or show it in a notebook.

        Raises:
            ArgumentError: There is no such kind or statistic, `heads` are of another geometry, or the model has no
                attention.
            MissingPackageError: matplotlib is not installed.
        """
        draw = visual("figures", "a picture").scores_figure
        figure: Figure = draw(self, heads, kind=kind, statistic=statistic)
        return figure

    def ranking_statistic(self, statistic: str | None = None) -> str:
        """The statistic that ranks heads: `statistic`, else "relative_delta", else the only one there is.

        Raises:
            ArgumentError: There is no such statistic, or several and none of them is the default.
        """
        what_to_do = ""
        if statistic is None:
            statistic = next(iter(self._arrays)) if len(self._arrays) == 1 else DEFAULT
            what_to_do = "; name the one that ranks the heads"
        if statistic not in self._arrays:
            raise ArgumentError(
                f"the scores hold no statistic {statistic!r}; they hold {', '.join(self._arrays)}{what_to_do}"
            )
        return statistic

    def top(self, n: int, statistic: str | None = None) -> list[tuple[int, int, float]]:
        """The best heads as (layer number, head, score), best first.

        Ties go to the lower (layer, head); not-a-number ranks last.

        Args:
            n: How many; all heads when the model has fewer.
            statistic: What ranks them; "relative_delta" unless it is not there and only one other is.

        Raises:
            ArgumentError: `n` is negative, or there is no such statistic.
        """
        if n < 0:
            raise ArgumentError(f"expected a number of heads, found {n}")
        scores = self[self.ranking_statistic(statistic)]
        rows_and_heads = (divmod(int(index), self._geometry.query_heads) for index in _alps.ranking(scores))
        sizes = self._geometry.sizes
        there = ((row, head) for row, head in rows_and_heads if head < sizes[row].query_heads)
        return [(self.layers[row], head, float(scores[row, head])) for row, head in islice(there, n)]

    def select(
        self,
        ratio: float | None = None,
        *,
        budget: int | None = None,
        rule: Rule = "global",
        statistic: str | None = None,
        seed: int | None = None,
    ) -> HeadSet:
        """Chooses heads.

        The number of heads is K = ceil(ratio * heads); highest scores first, ties to the lower
        (layer, head), not-a-number last. A head that has not moved is never selected, so that fewer heads than K
        may be; a warning says so. The rules:

        - "global": the K best of all heads, which is the paper's rule;
        - "per_layer": the best ceil(ratio * heads of a layer) of each layer;
        - "key_value_groups": the best ceil(ratio * groups) groups, each with all its heads, by the mean
          score of the heads;
        - "random": K heads drawn from all, the paper's baseline;
        - "layer_consistent": ceil(ratio * heads of a layer) heads drawn in each layer, its other baseline.

        Args:
            ratio: The share of the heads, 0 to 1; 0.10, the paper's, when no budget is given.
            budget: Instead of a ratio, with rule "global": take heads in order of rank as long as the Q/K/V
                parameters that they train (see `Report`) are at most this many.
            rule: One of the rules above.
            statistic: What ranks the heads; "relative_delta" unless it is not there and only one other is.
                Not with the random rules.
            seed: Of the random rules only, 0 when not given. The same seed gives the same heads everywhere.

        Raises:
            ArgumentError: An argument is out of its domain, or has no meaning beside another one.
            UnchangedError: No head has moved. The random rules do not ask.
        """
        choice: dict[str, str] = {"rule": rule}
        if rule in get_args(RandomRule):
            if statistic is not None:
                raise ArgumentError(f"rule {rule!r} ranks by no statistic, found statistic {statistic!r}")
            if budget is not None:
                raise ArgumentError(f"rule {rule!r} takes a ratio, found budget {budget}")
            ratio, seed = DEFAULT_RATIO if ratio is None else ratio, 0 if seed is None else seed
            if not 0 <= seed <= _LARGEST:
                raise ArgumentError(f"seed must be between 0 and {_LARGEST}, found {seed}")
            mask = _alps.select_random(self._geometry, rule, ratio, seed)
            choice |= {"ratio": repr(float(ratio)), "seed": str(seed)}
            return HeadSet(mask, self._geometry, choice | self._provenance)

        if rule not in get_args(RankedRule):
            raise ArgumentError(f"there is no rule {rule!r}; the rules are {', '.join(get_args(Rule))}")
        if seed is not None:
            raise ArgumentError(f"rule {rule!r} draws nothing at random, found seed {seed}")
        choice["statistic"] = statistic = self.ranking_statistic(statistic)
        moved = self._moved(statistic)
        if rule == "key_value_groups":
            moved = self._with_whole_groups(moved)
        scores = np.where(moved, self[statistic], np.nan)
        if budget is None:
            ratio = DEFAULT_RATIO if ratio is None else ratio
            mask = _alps.select_ranked(scores, self._geometry, rule, ratio)
            choice["ratio"] = repr(float(ratio))
        elif ratio is not None:
            raise ArgumentError(f"a budget takes the place of a ratio, found ratio {ratio}")
        elif rule != "global":
            raise ArgumentError(f"a budget goes with rule 'global' only, found rule {rule!r}")
        elif budget < 0:
            raise ArgumentError(f"budget must be 0 or more parameters, found {budget}")
        else:
            mask = _alps.select_within_budget(scores, self._geometry, min(budget, _LARGEST))
            choice["budget"] = str(budget)
        return HeadSet(self._only_moved(mask, moved), self._geometry, choice | self._provenance)

    def _moved(self, statistic: str) -> NDArray[np.bool_]:
        """The heads that have moved, if the scan says that some have not; else all heads."""
        if HEADS_MOVED not in self._provenance:
            return self._geometry.is_head
        witness = next((name for name in ZERO_IF_UNMOVED if name in self._arrays), statistic)
        # Equal weights score 0 by every statistic but wasserstein_z, by which they score not-a-number.
        values = self[witness]
        moved: NDArray[np.bool_] = ~np.isnan(values) & ((values != 0) | (witness == "wasserstein_z"))
        return moved

    def _with_whole_groups(self, heads: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The heads of all key/value groups of which one head is among these."""
        whole = np.zeros_like(heads)
        for row, sizes in enumerate(self._geometry.sizes):
            groups = heads[row, : sizes.query_heads].reshape(sizes.key_value_heads, -1)
            whole[row, : sizes.query_heads] = np.repeat(groups.any(axis=1), groups.shape[1])
        return whole

    def _only_moved(self, mask: NDArray[np.bool_], moved: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Leaves out the heads that have not moved."""
        wanted, left = int(mask.sum()), int((mask & moved).sum())
        if wanted and not moved.any():
            raise UnchangedError(EQUAL_WEIGHTS)
        if left < wanted:
            warnings.warn(
                f"only {left} heads are selected instead of {wanted}: the others that were asked for have not moved",
                AlpsWarning,
                stacklevel=3,
            )
        return mask & moved

    def all_equal(self) -> bool:
        """Whether no head has moved."""
        return self._provenance.get(HEADS_MOVED) == "0"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the scores as safetensors with everything else in the metadata, whole or not at all.

        The same scores give the same bytes.

        Raises:
            OSError: The file cannot be written.
        """
        write_whole(path, self._encoded())

    def _encoded(self) -> bytes:
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "statistics": list(self._arrays),
            "geometry": self._geometry.to_fields(),
            "provenance": self._provenance,
        }
        return encode_tensors(self._arrays, document)

    def _map(self) -> "Figure":
        return self.plot(kind="map", statistic=DEFAULT if DEFAULT in self else self.statistics[0])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadScores":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: The file holds no scores, or contradicts itself; names the field.
            OSError: The file cannot be read.
        """
        with open_tensors(path, "scores of alps") as (document, file):
            return _parse(document, file)


def _parse(document: Mapping[str, Any], file: Any) -> HeadScores:
    check_document(document, _FORMAT, _VERSION, {"statistics": list, "geometry": dict, "provenance": dict})
    names = document["statistics"]
    if not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"statistics: expected names, found {shorten(repr(names))}")
    if sorted(names) != sorted(file.keys()):
        raise ArgumentError(f"statistics: expected the tensors {sorted(file.keys())}, found {names!r}")
    for name in names:
        if (dtype := file.get_slice(name).get_dtype()) != "F64":
            raise ArgumentError(f"{name}: expected F64, found {dtype}")
    geometry = geometry_of(document["geometry"])
    return HeadScores({name: file.get_tensor(name) for name in names}, geometry, document["provenance"])
