"""The analysis of the evidence on made-up results whose answers are known."""

import math
from pathlib import Path

import numpy as np
import pytest

from evidence import analysis, arms, values
from evidence.analysis import Results
from evidence.page import write_page

ROOT = Path(__file__).parents[1]


def run(seed: int, groups: list[int], rate: float, validation: float, test: float) -> dict[str, object]:
    return {
        "setting": "freeze", "task": "made up", "seed": seed, "groups": groups, "rate": rate,
        "validation": validation, "test": test,
    }  # fmt: skip


def arm(name: str, seed: int, *sets: list[int]) -> dict[str, object]:
    return {"task": "made up", "arm": name, "seed": seed, "sets": list(sets)}


def test_holm_multiplies_by_the_number_that_is_left() -> None:
    corrected = analysis.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_the_best_of_thirteen_in_three_seeds() -> None:
    others = [float(it) for it in range(1, 13)]
    assert analysis.rank_test([([0.0], others)] * 3) == pytest.approx(2 / 13**3)
    assert analysis.rank_test([([13.0], others)] * 3) == pytest.approx(2 / 13**3)
    assert analysis.rank_test([([6.5], others)] * 3) == 1.0


def test_one_stratum_is_wilcoxons_rank_sum_test() -> None:
    from scipy import stats

    own, others = [0.3, 2.5], [1.0, 2.0, 3.0, 4.0, 5.0]
    expected = stats.mannwhitneyu(own, others, method="exact").pvalue
    assert analysis.rank_test([(own, others)]) == pytest.approx(expected)


def test_a_tie_counts_against_a_low_rank() -> None:
    assert analysis.rank_test([([1.0], [1.0, 2.0, 3.0])]) == pytest.approx(1.0)
    assert analysis.rank_test([([1.0], [1.5, 2.0, 3.0])]) == pytest.approx(0.5)


def test_p_values_of_random_sets_are_not_small_too_often() -> None:
    draw = np.random.default_rng(0)
    found = [
        analysis.rank_test([(draw.normal(size=1).tolist(), draw.normal(size=12).tolist()) for _ in range(5)])
        for _ in range(2000)
    ]
    assert np.mean(np.array(found) < 0.05) <= 0.06
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.05)


def test_the_interval_is_students() -> None:
    assert analysis.interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(analysis.interval([1.0]))


def test_rates_come_from_the_validation_loss_of_the_tuning_seed() -> None:
    runs = [
        run(0, [0], 0.1, validation=2.0, test=1.0),
        run(0, [0], 0.2, validation=1.0, test=3.0),
        run(1, [0], 0.1, validation=0.0, test=0.0),
        run(1, [0], 0.2, validation=5.0, test=7.0),
        run(0, [1], 0.1, validation=1.0, test=1.0),
        run(1, [1], 0.1, validation=5.0, test=6.0),
        run(1, [2], 0.1, validation=5.0, test=4.0),
    ]
    named = [
        arm("top:score", 0, [0]), arm("top:score", 1, [0]),
        arm("random", 0, [1], [5]), arm("random", 1, [1], [2]),
        arm("untried", 1, [2]),
    ]  # fmt: skip
    results = Results(runs, named)
    assert results.rate("freeze", "made up", "top:score") == 0.2
    assert results.rate("freeze", "made up", "untried") == 0.1  # that of random
    assert results.found("freeze", "made up", "top:score", "test") == {1: [7.0]}
    assert results.found("freeze", "made up", "random", "test") == {1: [6.0, 4.0]}
    comparisons, corrected = analysis.compare_all(results, "freeze", "made up")
    assert comparisons["top:score"].differences == {1: 2.0}
    assert corrected == {"top:score": pytest.approx(2 / 3)}


def test_a_seed_that_lacks_a_set_is_left_out() -> None:
    results = Results([run(1, [1], 0.1, 1.0, 1.0)], [arm("random", 1, [1], [2])])
    assert results.found("freeze", "made up", "random", "test", rate=0.1) == {}


def test_a_sweep_takes_the_better_rate_of_the_sets_that_were_trained() -> None:
    runs = [
        run(1, [0], 0.1, validation=2.0, test=1.0),
        run(1, [0], 0.2, validation=1.0, test=3.0),
        run(1, [1], 0.1, validation=2.0, test=2.0),
        run(1, [1], 0.2, validation=4.0, test=4.0),
    ]
    results = Results(runs, [arm("random@0.3", 1, [0], [1], [2]), arm("random@0.5", 1, [3])])
    assert results.at_best_rate("freeze", "made up", "random@0.3") == {1: [1.0, 2.0]}
    assert results.at_best_rate("freeze", "made up", "random@0.5") == {}


def test_values_of_groups_are_found_again() -> None:
    draw = np.random.default_rng(0)
    worth = draw.normal(size=30)
    sets = [draw.choice(30, 5, replace=False).tolist() for _ in range(300)]
    losses = [float(-worth[it].sum() + 0.1 * draw.normal()) for it in sets]
    found = values.group_values(sets, losses, 30)
    assert np.corrcoef(found, worth)[0, 1] > 0.98


def test_overlap_by_chance() -> None:
    shared, by_chance = analysis.overlap((1, 2, 3), (2, 3, 4), 90)
    assert shared == 2
    assert by_chance == pytest.approx(0.1)


def test_ties_go_to_the_lower_group_and_not_a_number_is_last() -> None:
    assert arms.top(np.array([1.0, 2.0, 2.0, math.nan, 2.0]), 2) == (1, 2)
    assert arms.top(np.array([math.nan, -1.0]), 1) == (1,)


def test_matched_sets_have_the_layers_of_the_chosen() -> None:
    chosen = (0, 1, 5, 9)
    drawn = arms.in_same_layers(chosen, 3, "test")
    assert [it // 3 for it in drawn] == [it // 3 for it in chosen]
    assert drawn == arms.in_same_layers(chosen, 3, "test")


def test_norm_matched_sets_hold_no_chosen_group() -> None:
    norms = np.arange(20.0)
    drawn = arms.of_same_norms((3, 7, 15), norms, "test")
    assert len(set(drawn)) == 3
    assert not set(drawn) & {3, 7, 15}
    assert max(min(abs(it - chosen) for chosen in (3, 7, 15)) for it in drawn) <= 3


def test_scores_are_compared_within_the_layer() -> None:
    scores = np.array([1.0, 2.0, 3.0, 10.0, 10.0, 40.0])
    assert arms.relative_to_layer(scores, 3, signed=False).tolist() == [0.5, 1.0, 1.5, 0.5, 0.5, 2.0]
    assert arms.relative_to_layer(scores, 3, signed=True).tolist() == [-1, 0, 1, -10, -10, 20]


def test_the_tables_of_the_page_are_those_of_the_results(tmp_path: Path) -> None:
    shown = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    page = tmp_path / "evidence.md"
    page.write_text(shown, encoding="utf-8")
    write_page(ROOT / "benches" / "evidence" / "results", page)
    assert page.read_text(encoding="utf-8") == shown
