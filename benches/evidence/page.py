"""The tables of docs/evidence.md, made from the results and put between the marks of the page."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evidence import records
from evidence.analysis import (
    TUNING_SEED,
    Comparison,
    Results,
    compare,
    compare_all,
    holm,
    interval,
    is_score,
    over_all_tasks,
    overlap,
    spearman,
    with_others_rate,
)
from evidence.arms import SWEPT
from evidence.values import group_values

DRAWS_SEED = 100
RATIO = 0.10
"""Of all tables but that of ratios."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Material:
    """Everything that was measured.

    Attributes:
        folder: Where it is.
        results: Runs and arms.
        tasks: Their names.
        scores: Lines of scores.
        grafts: Lines of grafts.
    """

    folder: Path
    results: Results
    tasks: list[str]
    scores: list[records.Record]
    grafts: list[records.Record]

    @classmethod
    def read(cls, folder: Path) -> "Material":
        """The results of a folder."""
        scores = records.read_all([folder], "scores")
        tasks = list(dict.fromkeys(it["task"] for it in scores))
        return cls(folder, Results.read(folder), tasks, scores, records.read_all([folder], "grafts"))

    @property
    def groups(self) -> int:
        """Key/value groups of the model."""
        return len(next(iter(self.scores[0]["scores"].values())))

    def runs_of(self, setting: str, task: str) -> list[Any]:
        """All runs of a setting and task."""
        found = self.results.runs.items()
        return [it for key, lines in found if key[:2] == (setting, task) for it in lines.values()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; numbers are on the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def signed(value: float, digits: int = 3) -> str:
    """With a sign that is as wide as a digit."""
    return f"{value:+.{digits}f}".replace("-", "−")


def cell(found: Comparison | None, corrected: float | None = None) -> str:
    """A difference with its interval; bold where it is better than random, starred where worse, after correction."""
    if found is None:
        return ""
    text = (
        f"{signed(found.mean)} ± {found.half_width:.3f}" if len(found.differences) > 1 else signed(found.mean)
    )
    if corrected is None or corrected >= SIGNIFICANT:
        return text
    return f"**{text}**" if found.mean < 0 else f"{text} \\*"


def of_all(material: Material, setting: str, measure: str = "test") -> dict[str, Any]:
    """`compare_all` of every task."""
    return {task: compare_all(material.results, setting, task, measure) for task in material.tasks}


def compared(material: Material, wanted: Callable[[str], bool], setting: str, measure: str = "test") -> str:
    """A row for each wanted arm, a column for each task, the lowest mean rank first."""
    found = of_all(material, setting, measure)
    names = {arm for comparisons, _ in found.values() for arm in comparisons if wanted(arm)}
    places: dict[str, list[int]] = {name: [] for name in names}
    for comparisons, _ in found.values():
        here = sorted((it for it in names if it in comparisons), key=lambda it: (comparisons[it].mean, it))
        for place, name in enumerate(here):
            places[name].append(place)
    order = sorted(names, key=lambda name: (np.mean(places[name]), name))
    rows = [
        [
            f"`{name}`",
            *(
                cell(comparisons.get(name), corrected.get(name) if measure == "test" else None)
                for comparisons, corrected in found.values()
            ),
        ]
        for name in order
    ]
    return table(["", *material.tasks], rows)


def tasks_table(material: Material) -> str:
    """What there is to gain in each task."""
    rows = []
    for task in material.tasks:
        base = np.mean([it["base"] for it in material.grafts if it["task"] == task])

        def mean(setting: str, measure: str, task: str = task) -> float:
            return float(np.mean([it[measure] for it in material.runs_of(setting, task)]))

        random = material.results.found("freeze", task, "random", "test")
        flat = [value for values in random.values() for value in values]
        rows.append(
            [
                task, f"{base:.3f}", f"{mean('full', 'test'):.3f}", f"{mean('alone', 'test'):.3f}",
                f"{np.mean(flat):.3f}", f"{np.mean([np.std(it, ddof=1) for it in random.values()]):.3f}",
                f"{len(random)} x {len(next(iter(random.values())))}",
            ]
        )  # fmt: skip
    head = [
        "", "base", "all weights", "all of Q, K, V alone", "random tenth alone", "deviation of random sets",
        "seeds x sets",
    ]  # fmt: skip
    return table(head, rows)


def verdict(material: Material) -> str:
    """Where scores are among random sets over all tasks, and on which tasks they differ from these after correction."""
    found = of_all(material, "freeze")
    places = over_all_tasks(material.results, material.tasks)
    corrected = holm({name: it.p for name, it in places.items()})
    rows = []
    for name, place in sorted(places.items(), key=lambda it: (it[1].share, it[0])):
        sides: dict[bool, list[str]] = {True: [], False: []}
        for task, (comparisons, of_task) in found.items():
            if of_task.get(name, 1.0) < SIGNIFICANT:
                sides[comparisons[name].mean < 0].append(task)
        if sides[True] or sides[False] or corrected[name] < SIGNIFICANT or name == "top:delta_norm":
            numbers = [f"{100 * place.share:.0f} %", f"{place.p:.1g}", f"{corrected[name]:.2g}"]
            rows.append([f"`{name}`", *numbers, ", ".join(sides[True]), ", ".join(sides[False])])
    head = ["", "random sets that do better", "p", "p, corrected", "better on", "worse on"]
    return table(head, rows)


def p_values(material: Material) -> str:
    """The p-values of the scores that are best by mean rank, raw and corrected."""
    found = of_all(material, "freeze")
    names = {
        name
        for _, corrected in found.values()
        for name, p in corrected.items()
        if p < SIGNIFICANT or name == "top:wasserstein"
    }
    rows = []
    for name in sorted(names):
        row = [f"`{name}`"]
        for comparisons, corrected in found.values():
            it = comparisons.get(name)
            row.append(f"{it.p:.1e} / {corrected[name]:.2g} ({len(it.differences)})" if it else "")
        rows.append(row)
    return table(["", *material.tasks], rows)


def matched(material: Material) -> str:
    """Each choice against random groups of the same layers or base norms, on the seeds of both."""
    rows = []
    for kind in ("layers", "norm"):
        for arm in (it for it in material.results.arms(material.tasks[0]) if it.startswith(f"{kind}:")):
            name = arm.partition(":")[2]
            row = [f"`top:{name}` − `{arm}`"]
            for task in material.tasks:
                top = material.results.found("freeze", task, f"top:{name}", "test")
                row.append(cell(compare(top, material.results.found("freeze", task, arm, "test"))))
            rows.append(row)
    return table(["", *material.tasks], rows)


def others_table(material: Material) -> str:
    """Losses with everything outside Q, K and V training."""
    results, rows = material.results, []
    found = of_all(material, "train")
    every = tuple(range(material.groups))
    for name, groups in (("Q, K and V frozen", ()), ("everything trains", every)):
        row = [name]
        for task in material.tasks:
            rate = with_others_rate(results, task)
            random = results.sets[task, "random"]
            pairs = {}
            for seed, sets in random.items():
                own = results.runs.get(("train", task, seed, groups), {}).get(rate)
                drawn = [results.runs.get(("train", task, seed, it), {}).get(rate) for it in sets[:4]]
                if seed != TUNING_SEED and own and all(drawn):
                    pairs[seed] = ([own["test"]], [it["test"] for it in drawn if it])
            row.append(
                cell(compare({k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}))
            )
        rows.append(row)
    names = sorted({arm for comparisons, _ in found.values() for arm in comparisons})
    for name in names:
        cells = [
            cell(comparisons.get(name), corrected.get(name)) for comparisons, corrected in found.values()
        ]
        rows.append([f"`{name}`", *cells])
    return table(["", *material.tasks], rows)


def forgetting(material: Material) -> str:
    """How much the loss on English text rises above the base's."""
    rows = []
    for name, setting, arm in (
        ("base", "base", ""),
        ("all weights", "full", ""),
        ("all of Q, K, V alone", "alone", ""),
        ("random tenth alone", "freeze", "random"),
        ("`top:wasserstein`", "freeze", "top:wasserstein"),
        ("`top:delta_norm`", "freeze", "top:delta_norm"),
        ("`top:relative_delta`", "freeze", "top:relative_delta"),
        ("`within:relative_delta`", "freeze", "within:relative_delta"),
        ("`top:gradient`", "freeze", "top:gradient"),
        ("`top:fisher`", "freeze", "top:fisher"),
    ):
        row = [name]
        for task in material.tasks:
            if arm:
                found = material.results.found(setting, task, arm, "general")
                means = [float(np.mean(values)) for values in found.values()]
            else:
                means = [
                    it["general"]
                    for it in material.runs_of(setting, task)
                    if setting == "base" or it["seed"] != TUNING_SEED
                ]
            text = f"{np.mean(means):.3f}" if means else ""
            row.append(f"{text} ± {interval(means):.3f}" if len(means) > 1 else text)
        rows.append(row)
    return table(["", *material.tasks], rows)


def graft_table(material: Material) -> str:
    """What chosen groups carry of the tuning, and what it loses without them, with their place among random sets."""
    first = material.grafts[0]["sufficiency"]
    names = [name for name in first if is_score(name) or name.startswith("layers:") or name == "random"]
    rows = []
    for name in names:
        row = [f"`{name}`"]
        values: list[float] = []
        for task in material.tasks:
            for side, sign in (("sufficiency", -1), ("necessity", 1)):
                shares, places = [], []
                for line in (it for it in material.grafts if it["task"] == task):
                    whole = line["base"] - line["tuned"]
                    start = line["base"] if sign < 0 else line["tuned"]
                    own = [sign * (it - start) / whole for it in line[side][name]]
                    drawn = [sign * (it - start) / whole for it in line[side]["random"]]
                    shares.append(float(np.mean(own)))
                    places.append(float(np.mean([np.mean(np.array(drawn) < it) for it in own])))
                values.append(float(np.mean(places)))
                row.append(f"{100 * np.mean(shares):.1f} ({100 * np.mean(places):.0f})")
        rows.append((np.mean(values), row))
    rows.sort(key=lambda it: (-it[0], it[1]))
    head = ["", *(f"{task}, {side}" for task in material.tasks for side in ("carried", "lost"))]
    return table(head, [row for _, row in rows])


def values_of(material: Material, task: str) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """The values of groups by random sets, and the rank correlation of those by either half of the sets."""
    found = [it for it in material.runs_of("freeze", task) if it["seed"] == DRAWS_SEED]
    sets = [it["groups"] for it in found]
    losses = np.array([it["test"] for it in found])
    losses = np.argsort(np.argsort(losses)) / len(losses)  # ranks: some sets diverge
    whole = group_values(sets, losses.tolist(), material.groups)
    halves = [group_values(sets[start::2], losses[start::2].tolist(), material.groups) for start in (0, 1)]
    return whole, spearman(halves[0].tolist(), halves[1].tolist())[0]


def correlations(material: Material) -> str:
    """Rank correlations of scores with the values of groups, over all groups and with the mean of the layer taken off."""
    names = list(material.scores[0]["scores"])
    per_task: dict[str, tuple[dict[str, float], dict[str, float], dict[str, float], float]] = {}
    for task in material.tasks:
        values, halves = values_of(material, task)
        lines = [it["scores"] for it in material.scores if it["task"] == task]
        ranks = {name: np.mean([np.argsort(np.argsort(it[name])) for it in lines], axis=0) for name in names}
        overall = {name: spearman(ranks[name].tolist(), values.tolist()) for name in names}

        def within(numbers: Any) -> list[float]:
            by_layer = np.asarray(numbers).reshape(30 if material.groups == 90 else -1, -1)
            return [float(it) for it in (by_layer - by_layer.mean(axis=1, keepdims=True)).ravel()]

        inside = {name: spearman(within(ranks[name]), within(values))[0] for name in names}
        corrected = holm({name: it[1] for name, it in overall.items()})
        per_task[task] = {name: it[0] for name, it in overall.items()}, inside, corrected, halves
    rows = []
    for name in sorted(names, key=lambda it: -np.mean([found[0][it] for found in per_task.values()])):
        row = [f"`{name}`"]
        for overall_of, inside_of, corrected_of, _ in per_task.values():
            text = signed(overall_of[name], 2)
            row.append(f"**{text}**" if corrected_of[name] < SIGNIFICANT else text)
            row.append(signed(inside_of[name], 2))
        rows.append(row)
    rows.append(
        [
            "one half of the sets with the other",
            *(it for found in per_task.values() for it in (signed(found[3], 2), "")),
        ]
    )
    return table(["", *(it for task in material.tasks for it in (task, "in layers"))], rows)


def overlaps(material: Material) -> str:
    """How many of the chosen groups two seeds share, and two tasks."""
    number = len(next(iter(material.results.sets[material.tasks[0], "random"].values()))[0])
    rows = []
    for name in (
        it.removeprefix("top:")
        for it in material.results.arms(material.tasks[0])
        if it.startswith("top:") and "@" not in it
    ):
        row = [f"`{name}`"]
        chosen = {task: material.results.sets[task, f"top:{name}"] for task in material.tasks}
        for task in material.tasks:
            pairs = combinations([it[0] for it in chosen[task].values()], 2)
            row.append(f"{np.mean([overlap(*pair, material.groups)[0] for pair in pairs]):.1f}")
        across = [
            overlap(chosen[one][seed][0], chosen[other][seed][0], material.groups)[0]
            for one, other in combinations(material.tasks, 2)
            for seed in chosen[one]
            if seed in chosen[other]
        ]
        rows.append([*row, f"{np.mean(across):.1f}"])
    chance = f"{number * number / material.groups:.1f}"
    rows.append(["by chance", *[chance] * (len(material.tasks) + 1)])
    return table(["", *(f"{task}, two seeds" for task in material.tasks), "two tasks"], rows)


def rates_table(material: Material) -> str:
    """How many arms took each rate."""
    counts = {
        task: Counter(
            material.results.rate("freeze", task, arm)
            for arm in material.results.arms(task)
            if "@" not in arm and TUNING_SEED in material.results.sets[task, arm]
        )
        for task in material.tasks
    }
    rates = sorted({rate for it in counts.values() for rate in it if rate is not None})
    return table(
        ["rate", *material.tasks],
        [[f"{rate:g}", *(str(counts[task][rate]) for task in material.tasks)] for rate in rates],
    )


def ratios_table(material: Material) -> str:
    """Losses of random sets and of choices, with other shares of the groups, on the seeds that have them.

    The rate of an arm is the better one of those that were tried on the validation windows.
    """
    results, rows = material.results, []
    swept = [(task, *arm.split("@")) for task, arm in results.sets if "@" in arm]
    names = ["random", *(f"top:{name}" for name in SWEPT)]
    for task in material.tasks:
        by_ratio: dict[float, dict[str, dict[int, list[float]]]] = defaultdict(dict)
        for _, arm, ratio in (it for it in swept if it[0] == task):
            if found := results.at_best_rate("freeze", task, f"{arm}@{ratio}"):
                by_ratio[float(ratio)][arm] = found
        seeds = {seed for by_arm in by_ratio.values() for found in by_arm.values() for seed in found}
        if seeds:
            for arm in names:
                usual = results.found("freeze", task, arm, "test")
                by_ratio[RATIO][arm] = {seed: it for seed, it in usual.items() if seed in seeds}
        for share, by_arm in sorted(by_ratio.items()):
            means = []
            for arm in names:
                values = [value for of_seed in by_arm.get(arm, {}).values() for value in of_seed]
                means.append(f"{np.mean(values):.3f} ({len(values)})" if values else "")
            rows.append([f"{task}, {100 * share:g} %", *means])
    return table(["", *(f"`{it}`" for it in names)], rows)


def gpu_table(material: Material) -> str:
    """What training a model of 1.2 billion parameters costs on a GPU."""
    found = json.loads((material.folder / "gpu-training.json").read_text())
    rows = [
        [
            way,
            f"{it['trainable parameters']:,}",
            f"{it['step ms']:.1f}",
            f"{it['peak MiB over the weights']:,}",
        ]
        for way, it in found["cost"].items()
    ]
    return table(["", "trainable parameters", "ms per step", "peak MiB over the weights"], rows)


TABLES: dict[str, Callable[[Material], str]] = {
    "tasks": tasks_table,
    "verdict": verdict,
    "scores": lambda it: compared(it, is_score, "freeze"),
    "p-values": p_values,
    "controls": lambda it: compared(it, lambda arm: arm.startswith(("lowest:", "layers:", "norm:", "values")), "freeze"),
    "matched": matched,
    "elsewhere": lambda it: compared(
        it, lambda arm: arm.split(":")[0] in {"seed", *it.tasks} or arm.removeprefix("top:") in {"delta_norm", "relative_delta", "trapezoid"}, "freeze"
    ),
    "others": others_table,
    "forgetting": forgetting,
    "grafts": graft_table,
    "correlations": correlations,
    "overlaps": overlaps,
    "rates": rates_table,
    "ratios": ratios_table,
    "gpu": gpu_table,
}  # fmt: skip
"""By the names of their marks."""


def write_page(folder: Path, page: Path) -> None:
    """Puts the tables into the page, between `<!-- table NAME -->` and `<!-- end -->`.

    Raises:
        KeyError: The page has a mark of no known table.
        OSError: A file cannot be read or written.
    """
    material = Material.read(folder)

    def filled(mark: re.Match[str]) -> str:
        return f"<!-- table {mark[1]} -->\n\n{TABLES[mark[1]](material)}\n\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    text = re.sub(r"(?s)<!-- table ([\w-]+) -->.*?<!-- end -->", filled, text)
    page.write_text(text, encoding="utf-8")
