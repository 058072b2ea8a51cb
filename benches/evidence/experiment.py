"""The stages of the experiment, each of which goes on where its results end."""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evidence import arms, llama, records
from evidence.arms import Scores, Set, Sets
from evidence.checkpoint import Sizes
from evidence.evaluate import evaluate
from evidence.graft import losses_of_grafts
from evidence.llama import Weights
from evidence.measures import Copies, all_scores, of_base
from evidence.records import Record, rounded
from evidence.tasks import Task
from evidence.train import Arm, Others, Trained, train
from evidence.values import group_values


@dataclass(frozen=True)
class Settings:
    """What the experiment is.

    Attributes:
        steps: Of each training.
        text_rows: Windows of a batch, for tasks that predict every token.
        answer_rows: Windows of a batch, for tasks that predict answers.
        ratio: Of the key/value groups that train.
        tuned_rate: Of the tuned copies.
        alone_rate: Of the copies of which only Q, K and V are tuned.
        rates: Tried for random sets when everything else is frozen; any other arm is tried at the best of them
            and its neighbours.
        train_rates: Tried when everything else trains.
        seeds: The first one tunes rates; the others are results.
        train_seeds: Those of the setting in which everything else trains.
        graft_seeds: Those whose tuned copies are grafted.
        measured: Windows that gradients are taken on.
        tried: Windows that single groups are tried on.
        draws: Random sets for the values of groups.
        ratios: Of the sweep.
        sweep_seeds: Of the sweep.
        tokens: Of all arms that train at one time, when everything else is frozen.
        train_arms: That train at one time, when everything else trains.
    """

    steps: int = 60
    text_rows: int = 8
    answer_rows: int = 32
    ratio: float = 0.10
    tuned_rate: float = 1e-4
    alone_rate: float = 5e-4
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    train_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    train_seeds: tuple[int, ...] = (1, 2, 3)
    graft_seeds: tuple[int, ...] = (1, 2)
    measured: int = 128
    tried: int = 32
    draws: int = 128
    ratios: tuple[float, ...] = (0.3, 0.03, 1.0, 0.5, 0.2)
    sweep_seeds: tuple[int, ...] = (1, 2, 3)
    tokens: int = 49152
    train_arms: int = 16


SPLITS = ("validation", "test", "general")
"""What a trained model is evaluated on."""

DRAWS_SEED = 100
"""Of the batches of the random sets that give the values of groups: no result's."""


class OutOfTimeError(Exception):
    """The time that was given is used up."""


Job = tuple[int, Set, float]
"""Seed, groups and rate."""


class Experiment:
    """Everything that the stages share."""

    def __init__(
        self,
        base: Weights,
        sizes: Sizes,
        tasks: dict[str, Task],
        folder: Path,
        settings: Settings,
        *,
        seconds: float,
        run: Callable[..., Tensor] = llama.layer,
        pad: bool = False,
    ) -> None:
        """Reads what there is.

        Args:
            base: The model.
            sizes: Of the model.
            tasks: By name; "general" is only looked at.
            folder: With the results, to which this appends.
            settings: What the experiment is.
            seconds: After which it stops.
            run: The layer that trains while everything else is frozen, perhaps compiled.
            pad: Whether trainings are filled up to one number of arms, so that shapes do not vary.
        """
        self.base, self.sizes, self.folder, self.settings = base, sizes, folder, settings
        self.general = tasks["general"]["test"]
        self.tasks = {name: task for name, task in tasks.items() if name != "general"}
        self.device = base.norm.device
        self.run, self.pad = run, pad
        self.end = time.monotonic() + seconds
        self.needed: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.runs = records.read_all([folder], "runs")
        self.done = {self._key(it) for it in self.runs}
        self.scores: dict[tuple[str, int], Scores] = {}
        self.chosen: dict[tuple[str, int], Sets] = {}
        for it in records.read_all([folder], "scores"):
            self.scores[it["task"], it["seed"]] = {
                name: np.array(values, np.float64) for name, values in it["scores"].items()
            }
        self.grafted = {(it["task"], it["seed"]) for it in records.read_all([folder], "grafts")}
        self.named = {
            (it["task"], it["seed"], it["arm"]): it["sets"] for it in records.read_all([folder], "arms")
        }

    @property
    def groups(self) -> int:
        """Key/value groups of the model."""
        return self.sizes.layers * self.sizes.groups

    @staticmethod
    def _key(run: Record) -> tuple[object, ...]:
        return run["setting"], run["task"], run["seed"], tuple(run["groups"]), run["rate"]

    def _hurry(self, kind: str) -> None:
        if time.monotonic() + 1.3 * self.needed.get(kind, 8.0) > self.end:
            raise OutOfTimeError(kind)

    def _rows(self, task: str) -> int:
        text = len(self.tasks[task]["train"].columns) > 16
        return self.settings.text_rows if text else self.settings.answer_rows

    def batches(self, task: str, seed: int, use: str) -> Tensor:
        """Numbers of windows, [steps, 1, rows]."""
        seeded = torch.Generator().manual_seed(zlib.crc32(f"{task}/{seed}/{use}".encode()))
        shape = (self.settings.steps, 1, self._rows(task))
        drawn = torch.randint(0, len(self.tasks[task]["train"]), shape, generator=seeded)
        return drawn.to(self.device)

    def record(
        self, setting: str, task: str, trained: Trained, jobs: Sequence[Job], keep: int, splits: Sequence[str]
    ) -> None:
        """Evaluates the first arms of a training and writes their lines."""
        windows = {**self.tasks[task], "general": self.general}
        found = {name: evaluate(trained.weights, self.sizes, windows[name], len(jobs)) for name in splits}
        lines = []
        for arm in range(keep):
            seed, groups, rate = jobs[arm]
            line: Record = {
                "setting": setting,
                "task": task,
                "seed": seed,
                "rate": rate,
                "train": rounded(trained.losses[arm]),
            }
            line |= {name: rounded(it.loss[arm].item()) for name, it in found.items()}
            if "test" in found:
                line["exact"] = rounded(found["test"].exact[arm].item())
            lines.append({**line, "groups": list(groups)})
        records.append(self.folder / "runs.jsonl", lines)
        self.runs += lines
        self.done |= {self._key(it) for it in lines}

    def train_sets(
        self, setting: Others, task: str, jobs: Iterable[Job], splits: Sequence[str] = SPLITS
    ) -> None:
        """Trains sets at rates, as many at a time as fit; those that are done are left out.

        All sets of a seed see the same batches.
        """
        left = [it for it in dict.fromkeys(jobs) if (setting, task, *it) not in self.done]
        windows = self.tasks[task]["train"]
        if setting == "freeze":
            size = max(1, self.settings.tokens // (self._rows(task) * windows.tokens.shape[1]))
            chunks = [left[start : start + size] for start in range(0, len(left), size)]
        else:
            size = self.settings.train_arms
            by_rate = defaultdict(list)
            for job in left:
                by_rate[job[2]].append(job)
            chunks = [
                of_rate[start : start + size]
                for of_rate in by_rate.values()
                for start in range(0, len(of_rate), size)
            ]
        for chunk in chunks:
            kind = f"{setting} {task}"
            self._hurry(kind)
            start = time.monotonic()
            keep = len(chunk)
            if self.pad and setting == "freeze":
                chunk = chunk + [chunk[0]] * (size - keep)
            run = self.run if setting == "freeze" else llama.layer
            of_seed = {seed: self.batches(task, seed, "train") for seed, _, _ in chunk}
            batches = torch.cat([of_seed[seed] for seed, _, _ in chunk], dim=1)
            of_arms = [Arm(groups, rate) for _, groups, rate in chunk]
            trained = train(self.base, self.sizes, of_arms, windows, batches, setting, run)
            self.record(setting, task, trained, chunk, keep, splits)
            self.needed[kind] = time.monotonic() - start
            tokens = batches.numel() * windows.tokens.shape[1]
            print(
                f"{kind} seeds {min(of_seed)} to {max(of_seed)}: {keep} arms, {self.needed[kind]:.1f} s, "
                f"{tokens / self.needed[kind]:,.0f} tokens/s",
                flush=True,
            )

    def untouched(self) -> None:
        """Evaluates the base on general text, once for all tasks."""
        names = [it for it in self.tasks if ("base", it, self.settings.seeds[0], (), 0.0) not in self.done]
        if not names:
            return
        loss = rounded(evaluate(self.base, self.sizes, self.general, 1).loss.item())
        same: Record = {"setting": "base", "seed": self.settings.seeds[0], "rate": 0.0, "general": loss}
        lines: list[Record] = [{**same, "task": name, "groups": []} for name in names]
        records.append(self.folder / "runs.jsonl", lines)
        self.runs += lines
        self.done |= {self._key(it) for it in lines}

    def prepare(self, task: str) -> None:
        """Tunes the copies of all seeds, scores groups, and grafts chosen and random sets."""
        seeds = self.settings.seeds
        wanted = {(task, seed) for seed in self.settings.graft_seeds}
        if all((task, seed) in self.scores for seed in seeds) and wanted <= self.grafted:
            return
        self._hurry("prepare")
        start = time.monotonic()
        windows = self.tasks[task]["train"]
        batches = torch.cat([self.batches(task, seed, "tuned") for seed in seeds], dim=1)
        every: Set = tuple(range(self.groups))
        jobs: dict[str, list[Job]] = {
            "full": [(seed, every, self.settings.tuned_rate) for seed in seeds],
            "alone": [(seed, every, self.settings.alone_rate) for seed in seeds],
        }
        stacks: dict[str, Tensor] = {}
        tuned: Weights | None = None
        for setting, others in (("alone", "freeze"), ("full", "train")):
            how: Others = "train" if others == "train" else "freeze"
            of_arms = [Arm(groups, rate) for _, groups, rate in jobs[setting]]
            trained = train(self.base, self.sizes, of_arms, windows, batches, how)
            self.record(setting, task, trained, jobs[setting], len(seeds), SPLITS)
            stacks[setting] = trained.rows.values.view(self.sizes.layers, len(seeds), self.sizes.groups, -1)
            tuned = trained.weights
            del trained
        assert tuned is not None
        print(f"tuned {task}: {time.monotonic() - start:.1f} s", flush=True)
        text = len(windows.columns) > 16
        measured = windows.first(self.settings.measured * (1 if text else 2))
        tried = windows.first(self.settings.tried * (1 if text else 8))
        of_seed: dict[int, Copies] = {}
        fixed = of_base(self.base, self.sizes)
        for index, seed in enumerate(seeds):
            after = (index + 1) % len(seeds)
            own = tuned.map(lambda it, index=index: it[index] if it.dim() > 1 else it)  # type: ignore[misc]
            copies = Copies(
                self.base,
                own,
                stacks["full"][:, index].contiguous(),
                stacks["full"][:, after].contiguous(),
                stacks["alone"][:, index].contiguous(),
            )
            of_seed[seed] = copies
            if (task, seed) in self.scores:
                continue
            scores, plain, whole = all_scores(copies, self.sizes, measured, tried, self.folder, fixed)
            kept = {name: [rounded(it) for it in values] for name, values in scores.items()}
            line: Record = {"task": task, "seed": seed, "base": rounded(plain), "tuned": rounded(whole)}
            records.append(self.folder / "scores.jsonl", [{**line, "scores": kept}])
            self.scores[task, seed] = {name: np.array(values) for name, values in kept.items()}
        print(f"scored {task}: {time.monotonic() - start:.1f} s", flush=True)
        for seed in self.settings.graft_seeds:
            if (task, seed) not in self.grafted:
                self.graft(task, seed, of_seed[seed])
        self.needed["prepare"] = time.monotonic() - start
        print(f"prepared {task}: {self.needed['prepare']:.1f} s", flush=True)

    def graft(self, task: str, seed: int, copies: Copies) -> None:
        """What chosen and random sets carry of a tuned copy, and what it loses without them."""
        number = arms.count(self.settings.ratio, self.groups)
        own = {key: value for key, value in self.scores.items() if key[0] == task}
        sets = arms.sets_of(own, task, seed, self.sizes, self.settings.ratio)
        sets["random"] = [arms.drawn(number, self.groups, "graft", task, seed, it) for it in range(100)]
        for name in arms.LAYER_MATCHED:
            chosen = sets[f"top:{name}"][0]
            sets[f"layers:{name}"] = [
                arms.in_same_layers(chosen, self.sizes.groups, "graft", name, task, seed, it)
                for it in range(12)
            ]
        distinct = [(), *dict.fromkeys(it for of_arm in sets.values() for it in of_arm)]
        windows = self.tasks[task]["test"].first(32 if len(self.tasks[task]["test"].columns) > 16 else 256)
        tuned_qkv = [it.view(self.base.qkv[0].shape).to(self.base.norm.dtype) for it in copies.tuned_qkv]
        tuned = replace(copies.tuned, qkv=tuned_qkv)
        into_base = losses_of_grafts(self.base, tuned_qkv, self.sizes, distinct, windows)
        into_tuned = losses_of_grafts(tuned, self.base.qkv, self.sizes, distinct, windows)
        whole: Set = tuple(range(self.groups))
        limits = (
            losses_of_grafts(self.base, tuned_qkv, self.sizes, [whole], windows)[0],
            losses_of_grafts(tuned, self.base.qkv, self.sizes, [whole], windows)[0],
        )
        place = {groups: index for index, groups in enumerate(distinct)}
        line = {
            "task": task,
            "seed": seed,
            "base": rounded(into_base[0]),
            "tuned": rounded(into_tuned[0]),
            "base_with_tuned_qkv": rounded(limits[0]),
            "tuned_with_base_qkv": rounded(limits[1]),
            "sufficiency": {
                name: [rounded(into_base[place[it]]) for it in of_arm] for name, of_arm in sets.items()
            },
            "necessity": {
                name: [rounded(into_tuned[place[it]]) for it in of_arm] for name, of_arm in sets.items()
            },
        }
        records.append(self.folder / "grafts.jsonl", [line])
        self.grafted.add((task, seed))

    def sets(self, task: str, seed: int) -> Sets:
        """The sets of all arms, which are written down the first time."""
        if (task, seed) not in self.chosen:
            found = arms.sets_of(self.scores, task, seed, self.sizes, self.settings.ratio)
            self._name(task, seed, found)
            named = {name: self.named[task, seed, name] for name in found}
            self.chosen[task, seed] = {name: list(map(tuple, it)) for name, it in named.items()}
        return self.chosen[task, seed]

    def best_rate(self, setting: str, task: str, sets: Sequence[Set]) -> float | None:
        """The rate of the lowest mean loss of these sets on the validation windows of the first seed."""
        by_rate: dict[float, dict[Set, float]] = defaultdict(dict)
        for it in self.runs:
            if (it["setting"], it["task"], it["seed"]) == (setting, task, self.settings.seeds[0]):
                by_rate[it["rate"]][tuple(it["groups"])] = it["validation"]
        means = {
            rate: float(np.mean([found[groups] for groups in sets]))
            for rate, found in by_rate.items()
            if all(groups in found for groups in sets)
        }
        return min(means, key=lambda rate: (means[rate], rate), default=None)

    def rates(self, task: str) -> None:
        """Random sets at every rate, and the other arms at the best of these and its neighbours, on the first seed.

        Of an arm with several draws half of them are tried.
        """
        seed = self.settings.seeds[0]
        sets = {name: self.tried_draws(it) for name, it in self.sets(task, seed).items()}
        rates = self.settings.rates
        jobs = [(seed, groups, rate) for groups in sets["random"] for rate in rates]
        self.train_sets("freeze", task, jobs, ("validation",))
        place = rates.index(self._random_rate(task))
        near = rates[max(0, place - 1) : place + 2]
        jobs = [(seed, groups, rate) for it in sets.values() for groups in it for rate in near]
        self.train_sets("freeze", task, jobs, ("validation",))

    @staticmethod
    def tried_draws(sets: Sequence[Set]) -> list[Set]:
        """The sets of an arm that its rate is tuned on."""
        return list(sets[: max(1, len(sets) // 2)])

    def arm_rate(self, task: str, arm: str) -> float:
        """The rate of an arm, of random sets if its own is not known.

        Raises:
            OutOfTimeError: Neither is known.
        """
        first = self.sets(task, self.settings.seeds[0])
        found = self.best_rate("freeze", task, self.tried_draws(first[arm])) if arm in first else None
        return self._random_rate(task) if found is None else found

    def compare(self, task: str, seeds: Sequence[int]) -> None:
        """Every arm at its rate, and the groups that the random sets of another seed found best and worst."""
        jobs: list[Job] = []
        for seed in seeds:
            for name, of_arm in {**self.sets(task, seed), **self.best_of_draws(task, seed)}.items():
                rate = self.arm_rate(task, name)
                jobs += [(seed, groups, rate) for groups in of_arm]
        self.train_sets("freeze", task, jobs)

    def _with_others(self, task: str, seed: int) -> list[Set]:
        sets = self.sets(task, seed)
        every: Set = tuple(range(self.groups))
        chosen = [groups for name in arms.TRAINED_WITH_OTHERS for groups in sets[name]]
        return [(), every, *sets["random"][:4], *chosen]

    def train_rates(self, task: str) -> None:
        """A few arms at every rate with everything else training, on the first seed."""
        seed = self.settings.seeds[0]
        few = self._with_others(task, seed)[:4]
        jobs = [(seed, groups, rate) for rate in self.settings.train_rates for groups in few]
        self.train_sets("train", task, jobs, ("validation",))

    def compare_with_others(self, task: str, seeds: Sequence[int]) -> None:
        """Arms with everything else training, at the rate of the first arms on the first seed."""
        few = self._with_others(task, self.settings.seeds[0])[:4]
        rate = self.best_rate("train", task, few)
        if rate is not None:
            jobs = [(seed, groups, rate) for seed in seeds for groups in self._with_others(task, seed)]
            self.train_sets("train", task, jobs)

    def draw(self, task: str) -> None:
        """Many random sets on one seed, for the values of groups."""
        number = arms.count(self.settings.ratio, self.groups)
        rate = self._random_rate(task)
        jobs = [
            (DRAWS_SEED, arms.drawn(number, self.groups, "draws", task, it), rate)
            for it in range(self.settings.draws)
        ]
        self.train_sets("freeze", task, jobs, ("validation", "test"))

    def _random_rate(self, task: str) -> float:
        random = self.tried_draws(self.sets(task, self.settings.seeds[0])["random"])
        found = self.best_rate("freeze", task, random)
        if found is None:
            raise OutOfTimeError("no rate of random sets is known")
        return found

    def best_of_draws(self, task: str, seed: int) -> Sets:
        """The groups that the random sets of another seed found best and worst, if there are enough."""
        found = [
            it for it in self.runs if (it["setting"], it["task"], it["seed"]) == ("freeze", task, DRAWS_SEED)
        ]
        if len(found) < self.settings.draws // 2:
            return {}
        number = arms.count(self.settings.ratio, self.groups)
        values = group_values([it["groups"] for it in found], [it["validation"] for it in found], self.groups)
        sets: Sets = {"values": [arms.top(values, number)], "lowest:values": [arms.top(-values, number)]}
        self._name(task, seed, sets)
        return sets

    def _name(self, task: str, seed: int, sets: Sets) -> None:
        lines: list[Record] = [
            {"task": task, "seed": seed, "arm": name, "sets": list(map(list, it))}
            for name, it in sets.items()
            if (task, seed, name) not in self.named
        ]
        records.append(self.folder / "arms.jsonl", lines)
        for line in lines:
            self.named[task, seed, line["arm"]] = line["sets"]

    def sweep(self, task: str, seeds: Sequence[int]) -> None:
        """Other ratios, each arm at its rate of the usual ratio and at another, the lower rate of more groups first."""
        for seed in seeds:
            own = self.scores[task, seed]
            for ratio in self.settings.ratios:
                number = arms.count(ratio, self.groups)
                chosen = arms.SWEPT if ratio < 1 else ()
                sets: Sets = {f"top:{name}": [arms.top(own[name], number)] for name in chosen}
                sets["random"] = [
                    arms.drawn(number, self.groups, "sweep", task, seed, ratio, it)
                    for it in range(3 if ratio < 1 else 1)
                ]
                self._name(task, seed, {f"{name}@{ratio}": it for name, it in sets.items()})
                for factor in (0.5, 1.0) if ratio > self.settings.ratio else (1.0, 2.0):
                    rates = {name: factor * self.arm_rate(task, name) for name in sets}
                    jobs = [(seed, it, rates[name]) for name, of_arm in sets.items() for it in of_arm]
                    self.train_sets("freeze", task, jobs)
