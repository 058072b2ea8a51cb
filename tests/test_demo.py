"""The demo, at a size that takes seconds."""

import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import alps
from alps import demo
from alps.cli import app
from alps.demo import Settings, report, steps
from alps.demo.data import Text, docstrings, repeated_numbers, train_tokenizer
from alps.demo.experiment import METHOD_GROUPS, METHODS, SELECTED, Experiment, Learner, loss
from alps.demo.results import Losses, Outcome, Results, Sample, Trial
from alps.demo.workers import Workers

TINY = demo.Settings(
    seeds=2,
    base_steps=3,
    steps=2,
    batch=2,
    window=16,
    measured=4,
    characters=20_000,
    vocabulary=300,
    layers=2,
    query_heads=4,
    key_value_heads=2,
    hidden_size=32,
    intermediate_size=32,
    ratio=0.25,
)
NAMES = [method.name for method in METHODS]


class Run:
    """A finished demo, and what it said and did."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self.folder = folder / "deep" / "demo"
        self.told = io.StringIO()
        self.steps: list[tuple[Learner, bytes]] = []
        learn = Learner.step

        def recorded(learner: Learner, windows: torch.Tensor) -> None:
            self.steps.append((learner, windows.numpy().tobytes()))
            learn(learner, windows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "step", recorded)
            self.results = demo.run(self.folder, TINY, Console(file=self.told, width=80), processes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("demo"))


def test_the_folder_holds_what_it_is_said_to(finished: Run) -> None:
    made = {path.name + "/" * path.is_dir() for path in finished.folder.iterdir()}
    assert made == set(report.FILES)
    assert [path.name for path in finished.folder.parent.iterdir()] == ["demo"]
    for name in ("base", "tuned", "trained"):
        model = AutoModelForCausalLM.from_pretrained(finished.folder / name)
        tokens = AutoTokenizer.from_pretrained(finished.folder / name)("Return 12.", return_tensors="pt")
        assert model(**tokens).logits.isfinite().all()
        assert (
            AutoTokenizer.from_pretrained(finished.folder / name).decode(tokens["input_ids"][0])
            == "Return 12."
        )
    assert json.loads((finished.folder / "results.json").read_text()) == json.loads(
        finished.results.to_json()
    )
    assert (finished.folder / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_scores_and_heads_are_those_of_the_checkpoints_and_name_them(finished: Run) -> None:
    base, tuned = finished.folder / "base", finished.folder / "tuned"
    scores = alps.HeadScores.load(finished.folder / "scores.safetensors")
    heads = alps.HeadSet.load(finished.folder / "heads.json")
    again = alps.scan(base, tuned)
    assert scores == again
    assert scores.provenance == again.provenance
    assert heads == again.select(TINY.ratio)
    assert heads.pairs() == finished.results.trials[0].selected


def test_only_what_was_to_train_did(finished: Run) -> None:
    base, trained = (
        AutoModelForCausalLM.from_pretrained(finished.folder / name).state_dict()
        for name in ("base", "trained")
    )
    heads = alps.HeadSet.load(finished.folder / "heads.json")
    size = heads.geometry.head_size
    for name in base:
        moved = (
            (base[name] != trained[name]).flatten(1).any(1)
            if base[name].dim() > 1
            else base[name] != trained[name]
        )
        if "q_proj" in name or "k_proj" in name or "v_proj" in name:
            layer = int(name.split(".")[2])
            mask = heads.mask if "q_proj" in name else heads.key_value_groups
            expected = torch.from_numpy(mask[layer].copy()).repeat_interleave(size)
            assert not (moved & ~expected).any(), name
            assert not expected.any() or moved.any(), name
        else:
            assert moved.any(), name


def test_every_way_takes_the_same_batches(finished: Run) -> None:
    seen: dict[int, list[bytes]] = {}
    for learner, batch in finished.steps:
        seen.setdefault(id(learner), []).append(batch)
    base, *others = list(seen.values())
    assert len(base) == TINY.base_steps
    assert [len(batches) for batches in others] == [TINY.steps] * TINY.seeds * (1 + len(METHODS))
    tuned, trained = others[: TINY.seeds], others[TINY.seeds :]
    ways: list[list[list[bytes]]] = [[] for _ in range(TINY.seeds)]
    for group in METHOD_GROUPS:
        for seed in range(TINY.seeds):
            ways[seed] += trained[: len(group)]
            del trained[: len(group)]
    for copy, (first, *rest) in zip(tuned, ways, strict=True):
        assert all(way == first for way in rest)
        assert copy != first
    assert ways[0] != ways[1]


def test_what_is_counted_is_what_there_is(finished: Run) -> None:
    numbers = finished.results.parameters
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "base")
    assert numbers == sum(it.numel() for it in model.parameters())
    geometry = alps.geometry(finished.folder / "base")
    qkv = alps.HeadSet.from_pairs([], geometry).report.total_parameters
    heads = alps.HeadSet.load(finished.folder / "heads.json").report
    first = finished.results.trials[0].outcomes
    trainable = {way: outcome.trainable for way, outcome in first.items()}
    assert trainable["everything"] == numbers
    assert trainable["Q/K/V frozen"] == numbers - qkv
    assert trainable["selected heads"] == numbers - qkv + heads.trainable_parameters
    assert trainable["selected heads alone"] == heads.trainable_parameters
    assert trainable["LoRA on Q/K/V"] == 8 * TINY.layers * (3 * 32 + 32 + 16 + 16)
    counters = len(list(model.parameters())) * 4  # AdamW counts its steps for each tensor, in float32
    assert first["everything"].bytes == 4 * 4 * numbers + counters
    assert all(
        outcome.bytes < first["everything"].bytes for way, outcome in first.items() if way != "everything"
    )
    assert all(outcome.step_seconds > 0 for outcome in first.values())


def test_the_losses_are_those_of_the_checkpoints(finished: Run) -> None:
    general, task = docstrings(TINY.characters), repeated_numbers(TINY.characters)
    tokenizer = train_tokenizer(general, TINY.vocabulary, TINY.window)
    trial = finished.results.trials[0]
    for name, losses in (
        ("base", finished.results.base),
        ("tuned", trial.tuned),
        ("trained", trial.outcomes[SELECTED.name].losses),
    ):
        model = AutoModelForCausalLM.from_pretrained(finished.folder / name)
        for text, measured in ((task, losses.task), (general, losses.general)):
            windows = Text(text, tokenizer).held_out(TINY.measured, TINY.window)
            assert loss(model, windows) == pytest.approx(measured, rel=1e-5)


def test_the_table_shows_mean_and_spread_of_what_was_measured(finished: Run) -> None:
    told = finished.told.getvalue()
    assert max(map(len, told.splitlines())) <= 80
    for way in NAMES:
        each = [trial.outcomes[way].losses.task for trial in finished.results.trials]
        mean, spread = sum(each) / 2, abs(each[0] - each[1]) / math.sqrt(2)
        cell = f"{mean:.3f} ± {spread:.3f}"
        assert cell in told
        assert f"| {way} | {cell} |" in (finished.folder / "results.md").read_text(encoding="utf-8")
    assert f"{finished.results.trials[0].outcomes['everything'].trainable:,}" in told


def outcome(task: float, general: float = 4.0) -> Outcome:
    return Outcome(Losses(task, general), trainable=1_000_000, step_seconds=0.1234, bytes=16_000_000)


def results(*tasks: dict[str, float]) -> Results:
    trials = [
        Trial(
            seed,
            Losses(3, 4),
            [(0, seed), (1, 1)],
            [(0, 0)],
            {way: outcome(each.get(way, 3.0)) for way in NAMES},
        )
        for seed, each in enumerate(tasks)
    ]
    return Results(Losses(4, 3.5), 1_000_000, 80, trials)


def test_the_findings_follow_the_numbers() -> None:
    said = report.findings(
        results({"selected heads": 2.9, "random heads": 2.8}, {"selected heads": 2.5, "random heads": 2.7})
    )
    assert (
        "Selected heads against random heads: task loss -0.050 ± 0.212; lower, so better, with 1 of 2 seeds."
        in said
    )
    assert "Selected with every seed's tuned copy: 1 of 2 heads; the overlap" in said[-1]
    assert "0.33" in said[-1]
    worse = report.findings(results({"selected heads": 3.1}, {"selected heads": 3.1}))
    assert (
        "Selected heads against random heads: task loss +0.100 ± 0.000; lower, so better, with 0 of 2 seeds."
        in worse
    )


def test_a_single_seed_has_no_spread() -> None:
    single = results({})
    assert "±" not in report.markdown_table(single)
    assert "no spread" in report.explanation(single)
    assert len(report.findings(single)) == 5
    assert Sample([1.0]).text(2) == "1.00"


def test_a_wide_table_fits_eighty_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    trials = results({}, {"everything": 4.0})
    trials.trials[0].outcomes["everything"] = outcome(2.0, 11.5)
    console.print(report.terminal_table(trials))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_the_folder_must_not_exist(tmp_path: Path) -> None:
    with pytest.raises(alps.ArgumentError, match=r"expected a free name"):
        demo.run(tmp_path, TINY)
    assert not list(tmp_path.iterdir())


def test_a_library_without_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('"""Some docstring."""\nx = 1\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(alps.ArgumentError, match=r"expected 20,000 characters .* found 15$"):
        docstrings(20_000)


def test_each_line_has_a_number_twice() -> None:
    text = repeated_numbers(1_000)
    assert len(text) == 1_000
    assert text == repeated_numbers(2_000)[:1_000]
    *lines, _ = text.splitlines()
    first, second = zip(*(line.split("=") for line in lines), strict=True)
    assert first == second
    assert {len(number) for number in first} == {8}
    assert len(set(first)) == len(first)
    assert set("".join(first)) == set("0123456789")


def test_random_heads_have_as_many_parameters(finished: Run) -> None:
    ways = [finished.results.sample(name, "trainable").values for name in ("selected heads", "random heads")]
    assert ways[0] == ways[1]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("moment", ["prepare", "make_base", "losses", "tune", "train"])
def test_an_interrupt_leaves_nothing(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    torch.set_num_threads(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    monkeypatch.setattr(Experiment, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "demo", TINY, Console(quiet=True))
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupt_while_files_are_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "markdown_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "demo", replace(TINY, seeds=1), Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command, as a terminal starts it; other tests run while it imports what it needs."""
    folder = tmp_path_factory.mktemp("running")
    with subprocess.Popen(
        [sys.executable, "-m", "alps.cli", "demo", "demo"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as command:
        yield command, folder
        command.kill()


@pytest.mark.usefixtures("running")
def test_two_processes_come_to_the_same(finished: Run, tmp_path: Path) -> None:
    shared = Run(tmp_path, processes=2)
    assert 0 < len(shared.steps) < len(finished.steps)
    assert multiprocessing.active_children() == []

    def without_times(run: Run) -> Results:
        return replace(
            run.results,
            trials=[
                replace(
                    trial,
                    outcomes={name: replace(it, step_seconds=0) for name, it in trial.outcomes.items()},
                )
                for trial in run.results.trials
            ],
        )

    assert without_times(shared) == without_times(finished)
    assert list(shared.results.trials[0].outcomes) == NAMES
    for name in ("base", "tuned", "trained"):
        weights = Path(name) / "model.safetensors"
        assert (shared.folder / weights).read_bytes() == (finished.folder / weights).read_bytes()


def test_a_helper_that_was_killed_is_reported() -> None:
    class Killed:
        def submit(self, *arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool())
            return future

    experiment: Any = None
    workers: Any = Workers(TINY, processes=1)
    workers._pool = Killed()
    with pytest.raises(ChildProcessError, match=r"process that helped .*alps demo --seeds 1"):
        workers.share(experiment, Experiment.tune, [(), ()], TINY.steps)


def test_processes_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(alps.ArgumentError, match=r"processes: expected at least 1, found 0"):
        demo.run(tmp_path / "demo", TINY, processes=0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_ends_the_command(running: tuple[subprocess.Popen[bytes], Path]) -> None:
    command, folder = running
    while not any(folder.iterdir()):
        time.sleep(0.05)
        assert command.poll() is None
    os.killpg(command.pid, signal.SIGINT)
    _, complaint = command.communicate(
        timeout=60
    )  # until no process holds the pipe any more, helpers included
    assert (command.returncode, complaint) == (130, b"")
    assert not list(folder.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "Settings", lambda seeds: replace(TINY, seeds=seeds))
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["demo", "--seeds", "1", "--json"], prog_name="alps")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr == ""
    assert json.loads(ran.stdout)["trials"][0]["outcomes"].keys() == set(NAMES)
    assert (tmp_path / "alps-demo" / "report.html").exists()
    ran = CliRunner().invoke(app, ["demo"], prog_name="alps")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "alps-demo: expected a free name" in ran.stderr


@pytest.mark.parametrize(("cores", "seeds", "expected"), [(1, 3, 1), (2, 3, 2), (64, 3, 3), (64, 1, 1)])
def test_the_command_takes_a_process_for_each_core_and_no_more_than_seeds(
    cores: int, seeds: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def recorded(*arguments: Any, processes: int) -> Results:
        asked.append(processes)
        return results({})

    monkeypatch.setattr(demo, "cores", lambda: cores)
    monkeypatch.setattr(demo, "run", recorded)
    ran = CliRunner().invoke(app, ["demo", "--seeds", str(seeds)], prog_name="alps")
    assert (ran.exit_code, asked) == (0, [expected])


def test_the_command_speaks_before_it_imports_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['alps', 'demo', 'made']; from alps.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stdout == "The demo trains a tiny model on this machine. It imports torch first ...\n"
    assert "the demo needs more packages" in ran.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.002, "10 seconds"), (0.05, "50 seconds"), (0.4, "6 minutes"), (2.0, "30 minutes")],
)
def test_the_time_that_is_left_is_that_of_the_steps_measured(
    seconds: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("alps.demo.steps.time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=100)
    after_step = steps._forecast(console, Settings(), 2)
    for step in range(350):
        now += seconds if step >= 50 else 10 * seconds  # while other processes start
        after_step()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.split() == f"At the speed that this machine has now, it takes about {said} more.".split()
