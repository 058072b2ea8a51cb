"""What a scan says of the heads of a model, held against what its weights do when it runs.

Which entries of the file a head is made of is found by `trace_rows.py`, without alps. Here they are changed in the file, and
every component of the model is scanned: exactly the heads that need the changed entries have to have moved, in one component and
one layer.
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
from alps.scan import Component
from layouts import run_model, trace_rows
from layouts.attention_recorder import ROLES
from support import tiny_models

COMPONENTS: tuple[Component, ...] = ("decoder", "encoder", "cross", "vision", "audio")


@dataclass(frozen=True, order=True)
class Rows:
    """The rows of a tensor that the heads of one attention take their queries, keys or values from."""

    tensor: str
    axis: int
    owners: tuple[frozenset[int], ...]
    """The heads that need each row."""

    def of(self, head: int) -> list[int]:
        """The rows that this head needs."""
        return [row for row, owners in enumerate(self.owners) if head in owners]

    def heads(self, rows: list[int]) -> set[int]:
        """The heads that need any of these rows."""
        return set().union(*(self.owners[row] for row in rows))


@dataclass(frozen=True)
class Truth:
    """One softmax attention of a model, as it lies in its file."""

    module: str
    heads: int
    rows: Mapping[str, Rows]
    """By role. A role is missing if the module has no weights of its own for it."""
    others: tuple[str, ...] = field(default=())
    """Tensors that take part without being a head's: biases, latents that all heads share."""

    @property
    def pattern(self) -> str:
        """The module's name without its numbers."""
        return run_model.layered(self.module)[0]

    @property
    def numbers(self) -> list[int]:
        """The numbers in the module's name."""
        return run_model.layered(self.module)[1]

    def to_json(self) -> dict[str, Any]:
        """The fields, in a form for JSON: the rows of each role as runs of (first, end, heads)."""
        roles = {}
        for role, part in self.rows.items():
            runs: list[tuple[int, int, list[int]]] = []
            for owners, group in itertools.groupby(enumerate(part.owners), key=lambda pair: sorted(pair[1])):
                rows = [row for row, _ in group]
                runs.append((rows[0], rows[-1] + 1, owners))
            roles[role] = {"tensor": part.tensor, "axis": part.axis, "rows": runs}
        return {"module": self.module, "heads": self.heads, "rows": roles, "others": self.others}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Truth:
        """The reverse of `to_json`."""
        rows = {
            role: Rows(
                part["tensor"],
                part["axis"],
                tuple(frozenset(heads) for first, end, heads in part["rows"] for _ in range(first, end)),
            )
            for role, part in values["rows"].items()
        }
        return cls(values["module"], values["heads"], rows, tuple(values["others"]))


@dataclass
class Known:
    """A tiny model, and all that was found of its attention."""

    model: Any
    truths: list[Truth]
    runs: list[run_model.Run]
    left: list[str]
    """What looks like attention and could not be run."""
    failures: dict[str, str]
    """Why."""


_WAYS: tuple[tuple[tiny_models.Attempt, ...], ...] = (
    tiny_models.ATTEMPTS,
    ((0, True),),
    ((2, True),),
    ((3, True),),
)
_PATIENCE = 15
"""Seconds after which no other way to build a model is tried."""


def understand(model_type: str) -> Known:
    """A tiny model of this type and its attention; of the ways to build it, the one in which most of it runs.

    Raises:
        ValueError: It cannot be built.
    """
    best: Known | None = None
    start = time.process_time()
    for attempts in _WAYS:
        try:
            model = tiny_models.build(model_type, attempts)
        except ValueError:
            if best is None:
                raise
            break
        found = _understood(model)
        if best is None or len(found.left) < len(best.left):
            best = found
        if not best.left or time.process_time() - start > _PATIENCE:
            break
    assert best is not None
    return best


def _understood(model: Any) -> Known:
    if not run_model.looks_like_attention(model):
        return Known(model, [], [], [], {})
    known, runs, failures = truths(model)
    left = run_model.not_run(model, {truth.module for truth in known})
    if not known and run_model.NONE in failures.get("", ""):  # what looked like it was not
        left = []
    return Known(model, known, runs, sorted({run_model.layered(name)[0] for name in left}), failures)


def truths(model: Any) -> tuple[list[Truth], list[run_model.Run], dict[str, str]]:
    """Every softmax attention of a model that runs, in the order of running, and the runs that show them."""
    found, runs, failures = trace_rows.traced(model)
    result: list[Truth] = []
    for one in found:
        rows: dict[str, Rows] = {}
        others: set[str] = set()
        for role, tensors in one.marks.items():
            # What tells most heads apart: the last of several products. Of those what has as many rows as a head
            # needs, then the largest: not a scale, not a compressed copy.
            ranked = sorted(
                (
                    -len(set(part.owners)),
                    len(part.of(0)) not in one.sizes[role],
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
        truth = Truth(one.module, one.heads, rows, tuple(sorted(others)))
        # One set of weights may serve many layers; a softmax without weights of its own is no attention of heads.
        if "query" in rows and not any(truth.rows == other.rows for other in result):
            result.append(truth)
    return result, runs, failures


def _rows(name: str, code: torch.Tensor) -> Rows | None:
    """The axis along which the marks of a tensor are whole rows, and whose they are; None if there is no such axis."""
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
                return Rows(name, axis, owners)
    return None


@dataclass(frozen=True)
class Change:
    """The opposite sign in one head's rows of one tensor, and the heads that need these."""

    truth: Truth
    role: str
    tensor: str
    axis: int
    rows: tuple[int, ...]
    moved: frozenset[int]


def changes(truth: Truth) -> Iterator[Change]:
    """One change for each role that an attention has weights for, each at another head."""
    for role, head in zip(ROLES, (truth.heads - 1, 0, truth.heads // 2), strict=True):
        part = truth.rows.get(role)
        if part is not None and (rows := part.of(head)):
            moved = set(part.heads(rows))
            for other in truth.rows.values():  # one tensor may serve two roles
                if other.tensor == part.tensor and other.axis == part.axis:
                    moved |= other.heads(rows)
            yield Change(truth, role, part.tensor, part.axis, tuple(rows), frozenset(moved))


class Checkpoint:
    """A saved tiny model, and copies of it with some weights changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = load_file(folder / "model.safetensors")

    def changed(self, copy: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
        """Writes a checkpoint in which these tensors are others."""
        self._copy(copy)
        save_file({**self.tensors, **tensors}, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    def overlaid(self, copy: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
        """The same without a copy of all the rest: for readers that keep to the index."""
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

    def flipped(self, change: Change) -> dict[str, torch.Tensor]:
        """The tensor of a change with the opposite sign in its rows.

        Other than noise, that leaves norms over all heads (OLMo 2) as they are.
        """
        tensor = self.tensors[change.tensor].clone()
        index = torch.tensor(change.rows)
        tensor.index_copy_(change.axis, index, -tensor.index_select(change.axis, index))
        return {change.tensor: tensor}

    def bystanders(self, truths: list[Truth]) -> dict[str, torch.Tensor]:
        """All that takes part in these attentions without being a head's, with the opposite sign."""
        result: dict[str, torch.Tensor] = {}
        owned: dict[tuple[str, int], set[int]] = {}
        for truth in truths:
            for part in truth.rows.values():
                rows = {row for row, owners in enumerate(part.owners) if owners}
                owned.setdefault((part.tensor, part.axis), set()).update(rows)
        for (name, axis), rows in owned.items():
            tensor = self.tensors[name].clone()
            rest = torch.tensor(sorted(set(range(tensor.shape[axis])) - rows), dtype=torch.int64)
            if len(rest):
                tensor.index_copy_(axis, rest, -tensor.index_select(axis, rest))
                result[name] = tensor
        names = {name for name, _ in owned}
        for truth in truths:
            for name in truth.others:
                if name not in names and self.tensors[name].is_floating_point():
                    result[name] = -self.tensors[name]
        return result

    def theta(
        self, truth: Truth, head: int, changed: Mapping[str, torch.Tensor] | None = None
    ) -> NDArray[np.float64]:
        """A head's rows of queries, keys and values, one after the other: float64 [entries]."""
        tensors = {**self.tensors, **(changed or {})}
        parts = []
        for role in ROLES:
            if role in truth.rows:
                part = truth.rows[role]
                tensor = tensors[part.tensor].movedim(part.axis, 0)
                if part.axis == 1:  # the inputs are what comes first in the file
                    tensor = tensor.movedim(1, -1)
                parts.append(tensor[part.of(head)].reshape(-1).to(torch.float64).numpy())
        return np.concatenate(parts)


@dataclass
class Scans:
    """A pair of checkpoints, scanned in every component that alps finds in them."""

    scores: dict[str, alps.HeadScores]

    @classmethod
    def of(cls, base: Path, tuned: Path, components: Iterable[Component] = COMPONENTS) -> Scans:
        """Scans all of these components that are not refused."""
        scores: dict[str, alps.HeadScores] = {}
        for component in components:
            with contextlib.suppress(alps.AlpsError):
                scores[component] = alps.scan(base, tuned, component=component, threads=1)
        return cls(scores)

    def moved(self) -> dict[str, dict[int, set[int]]]:
        """The heads that are said to have moved: by component and row."""
        result: dict[str, dict[int, set[int]]] = {}
        for component, scores in self.scores.items():
            delta = np.nan_to_num(scores["delta_norm"])
            for row in np.flatnonzero(delta.any(axis=1)):
                result.setdefault(component, {})[int(row)] = {
                    int(head) for head in np.flatnonzero(delta[row])
                }
        return result


def wasserstein(base: NDArray[np.float64], tuned: NDArray[np.float64]) -> float:
    """The paper's score of two weight vectors from its definition, in long double."""
    masses = []
    for theta in (base, tuned):
        powers = np.exp(theta.astype(np.longdouble) - np.longdouble(theta.max()))
        masses.append(powers / powers.sum())
    return float(np.abs(np.cumsum(masses[1] - masses[0])[:-1]).sum() / (len(base) - 1))


@dataclass
class Verdict:
    """What came of one kind of attention: where it was found, or what is wrong."""

    component: str | None = None
    problem: str | None = None
    layers: int = 0


@dataclass
class Proof:
    """What a scan makes of a model, held against the truth."""

    default: str | None
    """The component that is scanned when none is named."""
    refusal: str
    """Why there is no default component."""
    verdicts: dict[str, Verdict]
    """By the module's name without numbers."""
    components: dict[str, str]
    """The layout of every component that alps reads."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Proof:
        """The reverse of `dataclasses.asdict`."""
        verdicts = {pattern: Verdict(**verdict) for pattern, verdict in values["verdicts"].items()}
        return cls(values["default"], values["refusal"], verdicts, values["components"])


def prove(base: Path, known: list[Truth], scratch: Path) -> Proof:
    """Changes every head's weights in turn, and sees what scans say of it."""
    checkpoint = Checkpoint(base)
    idle = Scans.of(base, base)
    components = [component for component in COMPONENTS if component in idle.scores]
    verdicts: dict[str, Verdict] = {}
    places: dict[tuple[str, str], list[tuple[list[int], int]]] = {}
    for number, truth in enumerate(known):
        verdict = verdicts.setdefault(truth.pattern, Verdict())
        found = set()
        for change in changes(truth):
            tensors = checkpoint.flipped(change)
            scans = Scans.of(
                base, checkpoint.overlaid(scratch / f"{number}-{change.role}", tensors), components
            )
            problem, place = _check(checkpoint, scans, change, tensors)
            verdict.problem = verdict.problem or problem
            found.add(place)
        if len(found) > 1 and not verdict.problem:
            verdict.problem = (
                f"{truth.module}: its roles are found in different places: {sorted(map(str, found))}"
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
                verdict.problem = f"{truth.module}: {place} is an attention of {taken[0]}, too"
            places.setdefault((truth.pattern, place[0]), []).append((truth.numbers, place[1]))
    for (pattern, _), rows in places.items():
        if [row for _, row in sorted(rows)] != sorted(row for _, row in rows):
            verdicts[pattern].problem = f"its layers are out of order: {rows}"
    others = checkpoint.bystanders(known)
    if others and verdicts:
        moved = Scans.of(base, checkpoint.overlaid(scratch / "bystanders", others), components).moved()
        if moved:
            verdict = next(iter(verdicts.values()))
            verdict.problem = (
                verdict.problem or f"weights that are no head's move heads: {moved}; of {sorted(others)}"
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
    checkpoint: Checkpoint, scans: Scans, change: Change, tensors: Mapping[str, torch.Tensor]
) -> tuple[str | None, tuple[str, int] | None]:
    """What is wrong with what scans say of a change, and the component and row that moved."""
    moved = scans.moved()
    said = f"{change.truth.module}: {change.role} of {change.tensor}"
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
    before, after = checkpoint.theta(change.truth, head), checkpoint.theta(change.truth, head, tensors)
    expected, found = wasserstein(before, after), float(scans.scores[component]["wasserstein"][row, head])
    if not np.isclose(found, expected, rtol=1e-5, atol=0):
        return (
            f"{said}: expected the score {expected} of head {head}, found {found}; theta has {len(before)} entries",
            place,
        )
    return None, place


def heads_that_differ(base: Any, tuned: Any, runs: list[run_model.Run], module: str) -> set[int]:
    """The heads of one attention that put out something else in `tuned` than in `base`, whatever their weights."""
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
