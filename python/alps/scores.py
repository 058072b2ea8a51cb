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
    """Holds a score for every attention head of a model, by one or more statistics.

    It is a mapping from the name of a statistic to a read-only float64 array [layers, heads]. Where a layer has fewer
    heads than another, the rest of its row is not a number. Two `HeadScores` are equal when they hold the same numbers
    for the same geometry; not-a-number equals itself.

    Examples:
        >>> scores = alps.scan("base", "tuned")
        >>> scores.geometry.shape  # layers, heads
        (4, 8)
        >>> scores["relative_delta"][0].round(2)
        array([0.01, 0.01, 0.01, 0.01, 0.01, 0.34, 0.01, 0.01])
        >>> scores.top(2)  # (layer, head, score)
        [(0, 5, 0.344...), (1, 3, 0.302...)]
        >>> heads = scores.select(ratio=0.1)
        >>> len(heads)
        4
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
        """Makes scores of the heads of one model from numbers of any source.

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
        """Where the scores come from: checkpoints and their revisions, form, temperature, version.

        Examples:
            >>> scores = alps.scan("base", "tuned")
            >>> scores.provenance["base"], scores.provenance["form"]
            ('base', 'qkv')
        """
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
        """Makes a table with a row for every (layer, head) and a column for every statistic.

        Examples:
            >>> table = alps.HeadScores.load("scores.safetensors").to_pandas()
            >>> table.shape
            (32, 10)
            >>> table["relative_delta"].nlargest(2).round(2)
            layer  head
            0      5       0.34
            1      3       0.30
            Name: relative_delta, dtype: float64

        Returns:
            A DataFrame of pandas with the index (layer, head).

        Raises:
            MissingPackageError: pandas is not installed.
        """
        frame: DataFrame = visual("pandas", "a table of pandas", "pandas").scores_frame(self)
        return frame

    def plot(
        self, heads: HeadSet | None = None, *, kind: Kind = "overview", statistic: str | None = None
    ) -> "Figure":
        """Draws the scores.

        There are four kinds of picture:

        - "map": layers x heads, darker where the score is higher, with the borders of the key/value groups
        - "layers": for every layer, its heads and their mean
        - "ranks": the scores of all heads in order, with the cut where `heads` are the best ones
        - "overview": all three

        Colours and axes begin at 0 unless a score is below it. Heads without a finite score are hatched.

        Examples:
            >>> scores = alps.HeadScores.load("scores.safetensors")
            >>> heads = scores.select(ratio=0.1)
            >>> scores.plot(heads, kind="map").savefig("heads.png")

        Args:
            heads: Heads to mark.
            kind: One of the kinds above.
            statistic: The statistic to draw; "relative_delta" unless it is not there and only one other is.

        Returns:
            A figure of matplotlib, which pyplot does not know of. `figure.savefig(path)` saves it; a notebook shows it.

        Raises:
            ArgumentError: There is no such kind or statistic, `heads` are of another geometry, or the model has no
                attention.
            MissingPackageError: matplotlib is not installed.
        """
        draw = visual("figures", "a picture").scores_figure
        figure: Figure = draw(self, heads, kind=kind, statistic=statistic)
        return figure

    def ranking_statistic(self, statistic: str | None = None) -> str:
        """Names the statistic that ranks heads: `statistic`, else "relative_delta", else the only one there is.

        Args:
            statistic: The statistic that a caller asked for, if any.

        Returns:
            The name of a statistic of these scores.

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
        """Lists the best heads, best first.

        Examples:
            >>> scores = alps.HeadScores.load("scores.safetensors")
            >>> for layer, head, score in scores.top(2):
            ...     print(f"layer {layer}, head {head}: {score:.2f}")
            layer 0, head 5: 0.34
            layer 1, head 3: 0.30

        Args:
            n: How many heads to list; all of them when the model has fewer.
            statistic: The statistic that ranks them; "relative_delta" unless it is not there and only one other is.

        Returns:
            The heads as (layer number, head, score). Of equal scores the lower (layer, head) comes first; not-a-number
            comes last.

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
        """Chooses heads by their scores, or at random.

        There are five rules. The first three rank heads by a statistic; the others draw heads at random, as baselines.

        - "global": the best heads of the whole model, which is the rule of the paper
        - "per_layer": the best heads of each layer
        - "key_value_groups": the key/value groups with the best mean score, each with all its heads
        - "random": heads drawn from the whole model
        - "layer_consistent": heads drawn from each layer, the same number in each

        Of equal scores the lower (layer, head) comes first; not-a-number comes last. A head that has not moved is never
        selected by a ranked rule. Where too few have moved, fewer are selected, and a warning says so.

        Examples:
            >>> scores = alps.scan("base", "tuned")
            >>> heads = scores.select(ratio=0.1)
            >>> heads.pairs()  # (layer, head)
            [(0, 5), (1, 2), (1, 3), (3, 6)]
            >>> print(heads.report.summary)
            4 of 32 heads, 3 of 16 key/value groups, 15.6 % of Q/K/V parameters

            By a number of parameters instead of a ratio, and at random:

            >>> scores.select(budget=1200).pairs()
            [(0, 5), (1, 3), (3, 6)]
            >>> len(scores.select(ratio=0.1, rule="random", seed=1))
            4

        Args:
            ratio: The share of the heads, 0 to 1; 0.10, as in the paper, when neither a ratio nor a budget is given.
            budget: The most Q/K/V parameters that the heads may train (see `Report`), instead of a ratio and with rule
                "global" only. Heads are taken in order of rank as long as they fit.
            rule: One of the rules above.
            statistic: The statistic that ranks the heads; "relative_delta" unless it is not there and only one other is.
                Not with the random rules.
            seed: The seed of the random rules, and of these only; 0 when not given. The same seed gives the same heads
                everywhere.

        Returns:
            The chosen heads, whose provenance says how they were chosen.

        Raises:
            ArgumentError: An argument is out of its domain, or has no meaning beside another one.
            UnchangedError: No head has moved. The random rules do not ask.

        Definitions:
            Of H heads, "global" and "random" choose ⌈ratio · H⌉. Of a layer with Hₗ heads, "per_layer" and
            "layer_consistent" choose ⌈ratio · Hₗ⌉. Of G key/value groups, "key_value_groups" chooses ⌈ratio · G⌉.
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
        """Says whether no head has moved: whether the attention weights of both checkpoints are equal."""
        return self._provenance.get(HEADS_MOVED) == "0"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the scores as safetensors, with everything else in the metadata.

        The file is written whole or not at all. The same scores give the same bytes.

        Examples:
            >>> scores = alps.scan("base", "tuned")
            >>> scores.save("scores.safetensors")
            >>> alps.HeadScores.load("scores.safetensors") == scores
            True

        Args:
            path: The file to write; an older one is replaced.

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

        Examples:
            >>> alps.HeadScores.load("scores.safetensors").layers
            (0, 1, 2, 3)

        Args:
            path: The file to read.

        Returns:
            The scores.

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
