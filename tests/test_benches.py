"""The programs that the benchmarks compare a scan with compute the same numbers."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import alps
from alps import _alps
from compare import cache, published, reading, table, torch_script
from compare.__main__ import main
from compare.bench import Bench
from compare.pairs import CheckpointPair, CheckpointPairs
from compare.processes import import_time
from compare.products import Products
from compare.result import Result, Target
from compare.rows import ROWS
from compare.timing import Spread, quotient, time_in_turns
from support import oracle
from support.checkpoints import Shape

SHAPE = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=4, hidden_size=24)


@pytest.fixture
def pair(tmp_path: Path) -> CheckpointPair:
    return CheckpointPairs(tmp_path).pair(SHAPE)


def thetas(pair: CheckpointPair, layer: int) -> list[list[torch.Tensor]]:
    return [list(torch_script.heads(file, SHAPE, layer)) for file in pair.files]


def test_the_pair_differs_by_the_stated_change(pair: CheckpointPair) -> None:
    scores = alps.scan(pair.base, pair.tuned)
    assert scores["relative_delta"] == pytest.approx(0.02, rel=0.2)
    assert scores["changed"].min() > 0.5


def test_the_other_programs_agree_with_the_definition(pair: CheckpointPair) -> None:
    scores = alps.scan(pair.base, pair.tuned)
    found = iter(torch_script.scan(*pair.files, SHAPE, layers=[0, 1], threads=2))
    for layer in range(SHAPE.layers):
        for head, (base, tuned) in enumerate(zip(*thetas(pair, layer), strict=True)):
            expected = oracle.statistics(*(theta.double().numpy() for theta in (base, tuned)))
            of_head = next(found)
            assert set(of_head) == set(scores)
            for statistic in set(of_head) - {"changed"}:
                assert of_head[statistic] == pytest.approx(expected[statistic], rel=1e-6), statistic
            assert of_head["changed"] == scores["changed"][layer, head]
            # The softmax is in float32, so of a change of 2 % little more than two digits are left.
            assert published.wasserstein(base, tuned) == pytest.approx(expected["wasserstein"], rel=1e-2)


def test_the_matrix_products_are_those_of_the_form(pair: CheckpointPair) -> None:
    products = Products(*pair.files, SHAPE, layer=1, dtype=torch.float64)
    scores = alps.scan(pair.base, pair.tuned, form="product")
    for head in range(SHAPE.query_heads):
        theta, change = (torch.empty(SHAPE.hidden_size, SHAPE.head_size, dtype=torch.float64) for _ in "BT")
        products.head(head, products.key_value_product(head // 2), theta, change)
        found = oracle.statistics(theta.numpy(), (theta + change).numpy())
        assert found["wasserstein"] == pytest.approx(scores["wasserstein"][1, head], rel=1e-5)


def test_every_head_is_multiplied_once(pair: CheckpointPair, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[int] = []
    monkeypatch.setattr(Products, "head", lambda _, head, *matrices: multiplied.append(head))
    for threads in (1, 2, 3):
        multiplied.clear()
        Products(*pair.files, SHAPE, layer=0, dtype=torch.float32).multiply(threads)
        assert sorted(multiplied) == list(range(SHAPE.query_heads))


def test_read_bytes_only_reads_the_bytes_of_a_scan(tmp_path: Path) -> None:
    # More than a thread reads at a time.
    pair = CheckpointPairs(tmp_path).pair(
        Shape(query_heads=16, key_value_heads=4, head_size=64, hidden_size=2048)
    )
    totals = set()
    alps.scan(pair.base, pair.tuned, progress=lambda _, total: totals.add(total))
    assert totals == {pair.bytes}
    assert pair.bytes > reading.BUFFER * reading.REUSE
    assert {reading.read_bytes_only(pair.files, threads) for threads in (1, 2, 3)} == {pair.bytes}


def test_experts_are_not_read(tmp_path: Path) -> None:
    pairs = CheckpointPairs(tmp_path)
    small, large = pairs.pair(SHAPE), pairs.pair(SHAPE, experts=19)
    assert large.files[0].stat().st_size > 15 * small.files[0].stat().st_size
    scores = alps.scan(large.base, large.tuned)
    for statistic, values in alps.scan(small.base, small.tuned).items():
        np.testing.assert_array_equal(scores[statistic], values)


def test_pages_that_were_read_are_in_memory(pair: CheckpointPair) -> None:
    for file in pair.files:
        file.read_bytes()
    assert cache.resident(pair.files) == 1
    cache.drop(pair.files)
    assert 0 <= cache.resident(pair.files) <= 1


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_can_be_measured(tmp_path: Path, row: str) -> None:
    shapes = {
        name: Shape(query_heads=4, key_value_heads=2, head_size=size, hidden_size=24)
        for name, size in (("small", 4), ("other", 8), ("large", 16))
    }
    bench = Bench(CheckpointPairs(tmp_path), shapes, layers=2, rounds=1, threads=2)
    results = list(ROWS[row](bench))
    assert results
    for result in results:
        assert result.row == row
        assert all(np.isfinite(result.figure))
    lines = table.table(results).splitlines()
    assert len(lines) == 2 + len(results)
    assert {line.count("|") for line in lines} == {8}


def test_functions_are_timed_in_turns() -> None:
    called: list[str] = []
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = time_in_turns(functions, 2, before=lambda: called.append("-"))
    assert "".join(called) == "-b-a-a-b-b-a"
    assert [len(of_way) for of_way in seconds.values()] == [2, 2]


def test_short_functions_are_repeated() -> None:
    called: list[str] = []

    def slow() -> None:
        called.append("slow")
        time.sleep(0.02)

    seconds = time_in_turns({"slow": slow, "quick": lambda: called.append("quick")}, 1, least=0.01)
    assert called.count("slow") == 2
    assert called.count("quick") > 10
    assert seconds["slow"][0] >= 0.02
    assert seconds["quick"][0] < 0.01


def test_ratios_are_taken_round_by_round() -> None:
    assert quotient([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2, 1, 3)
    assert Target(2).met(2)
    assert not Target(2).met(2.1)
    assert Target(95, least=True).met(96)
    assert not Target(95, least=True).met(94)


def test_the_table_reports_a_missed_target() -> None:
    result = Result("row", "what", "against", "1 ms", "2 ms", Spread(2.5, 1.25, 612), "x", Target(2))
    assert "| 2.50x (1.25 to 612) | at most 2 | no " in table.table([result])


def test_a_debug_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["import", "--rounds", "1", "--folder", str(tmp_path), "--output", str(tmp_path / "bench.md")]
    monkeypatch.setattr(_alps, "DEBUG_BUILD", True)
    with pytest.raises(SystemExit, match=r"_alps.*debug build.*maturin develop --release"):
        main(arguments)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(_alps, "DEBUG_BUILD", False)
    main(arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"bench.md", "bench.json"}
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "release build" in text
    assert "`import alps`" in text
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [result["row"] for result in document["results"]] == ["import"]


def test_a_row_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reed"])
    assert "reed" in capsys.readouterr().err


def test_a_failure_in_a_new_process_is_an_error() -> None:
    with pytest.raises(Exception, match="exit status 1"):
        import_time("no_module_of_this_name")
