"""Compares what a scan says of the heads of a model with what its weights do when the model runs.

`trace_rows.py` finds the entries of the file that each head depends on, without alps. This module changes them in the
file and scans every component of the model. Exactly the heads that need the changed entries have to move, in one
component and one layer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import alps
from alps.arguments import Component
from layouts import run_model, trace_rows
from layouts.attention_recorder import ROLES
from support import tiny_models

COMPONENTS: tuple[Component, ...] = ("decoder", "encoder", "cross", "vision", "audio")


@dataclass(frozen=True, order=True)
class HeadRows:
    """The rows of a tensor that the heads of one attention take their queries, keys or values from."""

    tensor: str
    axis: int
    owners: tuple[frozenset[int], ...]
    """The heads that need each row, by row."""

    def rows_of(self, head: int) -> list[int]:
        """Returns the rows that this head needs."""
        return [row for row, owners in enumerate(self.owners) if head in owners]

    def heads_of(self, rows: list[int]) -> set[int]:
        """Returns the heads that need any of these rows."""
        return set().union(*(self.owners[row] for row in rows))


@dataclass(frozen=True)
class ComputedAttention:
    """One softmax attention that a model computes, with the rows of its file that each head depends on."""

    module: str
    heads: int
    rows: Mapping[str, HeadRows]
    """The rows by role. A role is missing if the module has no weights of its own for it."""
    others: tuple[str, ...] = field(default=())
    """Tensors that take part but belong to no head: biases, latents that all heads share."""

    @property
    def pattern(self) -> str:
        """The module's name without its numbers."""
        return run_model.split_numbers(self.module)[0]

    @property
    def numbers(self) -> list[int]:
        """The numbers in the module's name."""
        return run_model.split_numbers(self.module)[1]

    def to_json(self) -> dict[str, Any]:
        """Converts the fields to JSON, with the rows of each role as runs of (first, end, heads)."""
        roles = {}
        for role, part in self.rows.items():
            runs: list[tuple[int, int, list[int]]] = []
            for owners, group in itertools.groupby(enumerate(part.owners), key=lambda pair: sorted(pair[1])):
                rows = [row for row, _ in group]
                runs.append((rows[0], rows[-1] + 1, owners))
            roles[role] = {"tensor": part.tensor, "axis": part.axis, "rows": runs}
        return {"module": self.module, "heads": self.heads, "rows": roles, "others": self.others}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ComputedAttention:
        """The reverse of `to_json`."""
        rows = {
            role: HeadRows(
                part["tensor"],
                part["axis"],
                tuple(frozenset(heads) for first, end, heads in part["rows"] for _ in range(first, end)),
            )
            for role, part in values["rows"].items()
        }
        return cls(values["module"], values["heads"], rows, tuple(values["others"]))


@dataclass
class TracedModel:
    """A tiny model, with everything that was found of its attention."""

    model: Any
    attentions: list[ComputedAttention]
    runs: list[run_model.Run]
    left: list[str]
    """The modules that look like attention and did not run."""
    failures: dict[str, str]
    """Their errors."""


_ATTEMPT_LISTS: tuple[tuple[tiny_models.Attempt, ...], ...] = (
    tiny_models.ATTEMPTS,
    ((0, True),),
    ((2, True),),
    ((3, True),),
)
_SECONDS = 15
"""Seconds after which no other list of attempts is tried."""


def trace_model(model_type: str) -> TracedModel:
    """Builds a tiny model of this type and traces its attention.

    Of several builds, the one whose attention runs best counts.

    Raises:
        ValueError: It cannot be built.
    """
    best: TracedModel | None = None
    start = time.process_time()
    for attempts in _ATTEMPT_LISTS:
        try:
            model = tiny_models.build(model_type, attempts)
        except ValueError:
            if best is None:
                raise
            break
        found = _trace(model)
        if best is None or len(found.left) < len(best.left):
            best = found
        if not best.left or time.process_time() - start > _SECONDS:
            break
    assert best is not None
    return best


def _trace(model: Any) -> TracedModel:
    if not run_model.looks_like_attention(model):
        return TracedModel(model, [], [], [], {})
    known, runs, failures = trace_attentions(model)
    left = run_model.attention_not_run(model, {attention.module for attention in known})
    if not known and run_model.NO_ATTENTION in failures.get("", ""):  # the modules only looked like attention
        left = []
    return TracedModel(
        model, known, runs, sorted({run_model.split_numbers(name)[0] for name in left}), failures
    )


def trace_attentions(model: Any) -> tuple[list[ComputedAttention], list[run_model.Run], dict[str, str]]:
    """Traces every softmax attention that runs, in order.

    Returns also the runs, and the errors of modules that did not run.
    """
    found, runs, failures = trace_rows.trace(model)
    result: list[ComputedAttention] = []
    for one in found:
        rows: dict[str, HeadRows] = {}
        others: set[str] = set()
        for role, tensors in one.head_bits.items():
            # The tensor that distinguishes most heads is the last of several products. Of equal ones, the one with as
            # many rows as a head needs counts, then the largest: not a scale, not a compressed copy.
            ranked = sorted(
                (
                    -len(set(part.owners)),
                    len(part.rows_of(0)) not in one.sizes[role],
                    code.dim() > 3,
                    -code.numel(),
                    part,
                )
                for name, code in tensors.items()
                if code.dim() > 1 and (part := _rows(name, code)) is not None
            )
            if ranked:
                rows[role] = ranked[0][-1]
            others |= set(tensors)
        others -= {part.tensor for part in rows.values()}
        attention = ComputedAttention(one.module, one.heads, rows, tuple(sorted(others)))
        # Layers may share their weights. A softmax without weights of its own has no heads.
        if "query" in rows and not any(attention.rows == other.rows for other in result):
            result.append(attention)
    return result, runs, failures


def _rows(name: str, code: torch.Tensor) -> HeadRows | None:
    """Finds the axis along which heads need whole rows of a tensor; returns None if there is no such axis."""
    for axis in range(code.dim()):
        flat = code.movedim(axis, 0).flatten(1)
        union = flat[:, 0].clone()
        for column in range(1, flat.shape[1]):
            union |= flat[:, column]
        if ((flat == union[:, None]) | (flat == 0)).float().mean() > 0.99 and (
            flat == union[:, None]
        ).float().mean() > 0.9:
            owners = tuple(
                frozenset(h for h in range(trace_rows.MOST_HEADS) if mask >> h & 1) for mask in union.tolist()
            )
            if len(set(owners)) > 1 or axis == 0:
                return HeadRows(name, axis, owners)
    return None


@dataclass(frozen=True)
class SignChange:
    """A change of sign in the rows that one head needs of one tensor, and all the heads that need these rows."""

    attention: ComputedAttention
    role: str
    tensor: str
    axis: int
    rows: tuple[int, ...]
    moved: frozenset[int]


def changes(attention: ComputedAttention) -> Iterator[SignChange]:
    """Yields a change for each role with weights, each at another head."""
    for role, head in zip(ROLES, (attention.heads - 1, 0, attention.heads // 2), strict=True):
        part = attention.rows.get(role)
        if part is not None and (rows := part.rows_of(head)):
            moved = set(part.heads_of(rows))
            for other in attention.rows.values():  # one tensor may serve two roles
                if other.tensor == part.tensor and other.axis == part.axis:
                    moved |= other.heads_of(rows)
            yield SignChange(attention, role, part.tensor, part.axis, tuple(rows), frozenset(moved))


class SavedModel:
    """A saved tiny model, and copies of it with some weights changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = load_file(folder / "model.safetensors")

    def write_changed(self, copy: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Writes a copy with these tensors instead of its own."""
        self._copy(copy)
        save_file({**self.tensors, **tensors}, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    def write_overlay(self, copy: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Does the same without copying the other tensors, for readers that follow the index."""
        self._copy(copy)
        (copy / "same.safetensors").symlink_to(self.folder / "model.safetensors")
        save_file(dict(tensors), copy / "changed.safetensors", metadata={"format": "pt"})
        places = {name: f"{'changed' if name in tensors else 'same'}.safetensors" for name in self.tensors}
        (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return copy

    def _copy(self, copy: Path) -> None:
        copy.mkdir(parents=True)
        for file in self.folder.glob("*.json"):
            (copy / file.name).write_bytes(file.read_bytes())

    def flip(self, change: SignChange) -> dict[str, torch.Tensor]:
        """Returns the changed tensor, by its name.

        A change of sign leaves norms over all heads (OLMo 2) as they are; noise would not.
        """
        tensor = self.tensors[change.tensor].clone()
        index = torch.tensor(change.rows)
        tensor.index_copy_(change.axis, index, -tensor.index_select(change.axis, index))
        return {change.tensor: tensor}

    def flip_other_entries(self, attentions: list[ComputedAttention]) -> dict[str, torch.Tensor]:
        """Returns the tensors of these attentions, with the opposite sign in every entry that belongs to no head."""
        result: dict[str, torch.Tensor] = {}
        owned: dict[tuple[str, int], set[int]] = {}
        for attention in attentions:
            for part in attention.rows.values():
                rows = {row for row, owners in enumerate(part.owners) if owners}
                owned.setdefault((part.tensor, part.axis), set()).update(rows)
        for (name, axis), rows in owned.items():
            tensor = self.tensors[name].clone()
            rest = torch.tensor(sorted(set(range(tensor.shape[axis])) - rows), dtype=torch.int64)
            if len(rest):
                tensor.index_copy_(axis, rest, -tensor.index_select(axis, rest))
                result[name] = tensor
        names = {name for name, _ in owned}
        for attention in attentions:
            for name in attention.others:
                if name not in names and self.tensors[name].is_floating_point():
                    result[name] = -self.tensors[name]
        return result

    def theta(
        self, attention: ComputedAttention, head: int, changed: Mapping[str, torch.Tensor] | None = None
    ) -> NDArray[np.float64]:
        """Returns the weight vector of a head, its rows of queries, keys and values: float64 [entries]."""
        tensors = {**self.tensors, **(changed or {})}
        parts = []
        for role in ROLES:
            if role in attention.rows:
                part = attention.rows[role]
                tensor = tensors[part.tensor].movedim(part.axis, 0)
                if part.axis == 1:  # the first axis in the file is that of the inputs
                    tensor = tensor.movedim(1, -1)
                parts.append(tensor[part.rows_of(head)].reshape(-1).to(torch.float64).numpy())
        return np.concatenate(parts)


@dataclass
class ComponentScans:
    """The scans of two checkpoints, one for every component that alps finds."""

    scores: dict[str, alps.HeadScores]

    @classmethod
    def of(cls, base: Path, tuned: Path, components: Iterable[Component] = COMPONENTS) -> ComponentScans:
        """ComponentScans each of these components, except those that alps refuses."""
        scores: dict[str, alps.HeadScores] = {}
        for component in components:
            with contextlib.suppress(alps.AlpsError):
                scores[component] = alps.scan(base, tuned, component=component, threads=1)
        return cls(scores)

    def moved(self) -> dict[str, dict[int, set[int]]]:
        """Returns the heads that moved, by component and row."""
        result: dict[str, dict[int, set[int]]] = {}
        for component, scores in self.scores.items():
            delta = np.nan_to_num(scores["delta_norm"])
            for row in np.flatnonzero(delta.any(axis=1)):
                result.setdefault(component, {})[int(row)] = {
                    int(head) for head in np.flatnonzero(delta[row])
                }
        return result


def wasserstein(base: NDArray[np.float64], tuned: NDArray[np.float64]) -> float:
    """Computes the paper's score of two weight vectors from its definition, in long double."""
    masses = []
    for theta in (base, tuned):
        powers = np.exp(theta.astype(np.longdouble) - np.longdouble(theta.max()))
        masses.append(powers / powers.sum())
    return float(np.abs(np.cumsum(masses[1] - masses[0])[:-1]).sum() / (len(base) - 1))


@dataclass
class Verdict:
    """The result for the attentions of one pattern: the component where they were found, or a problem."""

    component: str | None = None
    problem: str | None = None
    layers: int = 0


@dataclass
class Proof:
    """The results for all attentions of a model."""

    default: str | None
    """The component that is scanned when none is named."""
    refusal: str
    """The reason why there is no default component."""
    verdicts: dict[str, Verdict]
    """The verdicts by pattern."""
    components: dict[str, str]
    """The layout of every component that alps reads."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Proof:
        """The reverse of `dataclasses.asdict`."""
        verdicts = {pattern: Verdict(**verdict) for pattern, verdict in values["verdicts"].items()}
        return cls(values["default"], values["refusal"], verdicts, values["components"])


def prove(base: Path, known: list[ComputedAttention], scratch: Path) -> Proof:
    """Changes the weights of each attention in turn; compares the heads that scans report with those that need them."""
    checkpoint = SavedModel(base)
    idle = ComponentScans.of(base, base)
    components = [component for component in COMPONENTS if component in idle.scores]
    verdicts: dict[str, Verdict] = {}
    places: dict[tuple[str, str], list[tuple[list[int], int]]] = {}
    for number, attention in enumerate(known):
        verdict = verdicts.setdefault(attention.pattern, Verdict())
        found = set()
        for change in changes(attention):
            tensors = checkpoint.flip(change)
            scans = ComponentScans.of(
                base, checkpoint.write_overlay(scratch / f"{number}-{change.role}", tensors), components
            )
            problem, place = _check(checkpoint, scans, change, tensors)
            verdict.problem = verdict.problem or problem
            found.add(place)
        if len(found) > 1 and not verdict.problem:
            verdict.problem = (
                f"{attention.module}: its roles are found in different places: {sorted(map(str, found))}"
            )
        place = next(iter(found), None)
        if place is not None:
            verdict.component = place[0]
            verdict.layers += 1
            taken = [
                pattern
                for (pattern, component), rows in places.items()
                for _, row in rows
                if (component, row) == place
            ]
            if taken and not verdict.problem:
                verdict.problem = f"{attention.module}: {place} is an attention of {taken[0]}, too"
            places.setdefault((attention.pattern, place[0]), []).append((attention.numbers, place[1]))
    for (pattern, _), rows in places.items():
        if [row for _, row in sorted(rows)] != sorted(row for _, row in rows):
            verdicts[pattern].problem = f"its layers are out of order: {rows}"
    others = checkpoint.flip_other_entries(known)
    if others and verdicts:
        moved = ComponentScans.of(
            base, checkpoint.write_overlay(scratch / "flip_other_entries", others), components
        ).moved()
        if moved:
            verdict = next(iter(verdicts.values()))
            verdict.problem = (
                verdict.problem or f"weights that belong to no head move heads: {moved}; of {sorted(others)}"
            )
    default, refusal = None, ""
    try:
        default = alps.geometry(base).component
    except alps.AlpsError as error:
        refusal = str(error).removeprefix(f"{base}: ")
    return Proof(
        default,
        refusal,
        verdicts,
        {component: scores.geometry.layout for component, scores in idle.scores.items()},
    )


def _check(
    checkpoint: SavedModel, scans: ComponentScans, change: SignChange, tensors: Mapping[str, torch.Tensor]
) -> tuple[str | None, tuple[str, int] | None]:
    """Returns the problem with the scans of a change, if any, and the component and row that moved."""
    moved = scans.moved()
    said = f"{change.attention.module}: {change.role} of {change.tensor}"
    if not moved:
        return None, None
    if len(moved) > 1 or any(len(rows) > 1 for rows in moved.values()):
        return f"{said}: expected heads {sorted(change.moved)} of one layer to move, found {moved}", None
    ((component, rows),) = moved.items()
    ((row, heads),) = rows.items()
    place = component, row
    if heads != change.moved:
        return f"{said}: expected heads {sorted(change.moved)} to move, found {sorted(heads)}", place
    head = min(heads)
    before, after = (
        checkpoint.theta(change.attention, head),
        checkpoint.theta(change.attention, head, tensors),
    )
    expected, found = wasserstein(before, after), float(scans.scores[component]["wasserstein"][row, head])
    if not np.isclose(found, expected, rtol=1e-5, atol=0):
        return (
            f"{said}: expected the score {expected} of head {head}, found {found}; theta has {len(before)} entries",
            place,
        )
    return None, place


def heads_that_differ(base: Any, tuned: Any, runs: list[run_model.Run], module: str) -> set[int]:
    """Returns the heads of one attention whose outputs differ between two models."""
    outputs = []
    for model in (base, tuned):
        with run_model.without_norms(model, {module}):
            outputs.append(run_model.output_of(model, runs, module))
    before, after = outputs
    heads = range(before.heads)
    return {
        head
        for head in heads
        if not torch.allclose(before.head(head), after.head(head), rtol=1e-5, atol=1e-6)
    }
