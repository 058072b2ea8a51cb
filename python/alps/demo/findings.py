"""What the results say, in sentences that follow from the numbers, whichever way they fall."""

from itertools import combinations

from alps.demo.results import Measured, Results
from alps.demo.ways import EVERYTHING, FROZEN, LORA, RANDOM, RANDOM_ALONE, SELECTED, SELECTED_ALONE


def findings(results: Results) -> list[str]:
    """One sentence for each question."""
    return [
        _against(results, FROZEN.name, EVERYTHING.name),
        _against(results, SELECTED.name, RANDOM.name),
        _against(results, SELECTED_ALONE.name, RANDOM_ALONE.name),
        _against(results, SELECTED_ALONE.name, LORA.name),
        _least_forgotten(results),
        *_agreement(results),
    ]


def _against(results: Results, one: str, other: str) -> str:
    """Seed by seed, since both have seen the same batches."""
    differences = [
        trial.outcomes[one].losses.task - trial.outcomes[other].losses.task for trial in results.trials
    ]
    lower = sum(difference < 0 for difference in differences)
    measured = Measured.of(differences)
    return (
        f"{one[0].upper()}{one[1:]} against {other}: task loss {measured.text(3, signed=True)}; lower, so better, with "
        f"{lower} of {len(differences)} seeds."
    )


def _least_forgotten(results: Results) -> str:
    rises = {
        way: results.measured(way, lambda outcome: outcome.losses.general - results.base.general)
        for way in results.ways
    }
    least, most = (choose(rises, key=lambda way: rises[way].mean) for choose in (min, max))
    return (
        f"Least of the general text is forgotten by {least} (loss {rises[least].text(3, signed=True)}), "
        f"most by {most} ({rises[most].text(3, signed=True)})."
    )


def _agreement(results: Results) -> list[str]:
    """How much of a selection another tuned copy would have selected as well."""
    sets = [set(trial.selected) for trial in results.trials]
    shared = [len(a & b) / len(a | b) for a, b in combinations(sets, 2) if a | b]
    if not shared:
        return []
    return [
        f"Selected with every seed's tuned copy: {len(set.intersection(*sets))} of {len(sets[0])} heads; the overlap of "
        f"two selections (Jaccard) is {sum(shared) / len(shared):.2f} on average."
    ]
