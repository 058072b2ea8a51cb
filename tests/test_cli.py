"""The command `alps`: what it prints, what it writes, and its exit codes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import alps
from alps import ArgumentError, HeadScores, HeadSet, cli
from alps.visual.terminal_map import count_map, head_map
from support.checkpoints import Shape, name, random_weights, write, write_long_pair
from support.scores import small_geometry, small_scores


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="alps")


COMMAND = (sys.executable, "-m", "alps.cli")


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )


class FakeScan:
    """Stands in for `alps.scan`."""

    def __init__(self, refusal: BaseException | None = None) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal = refusal

    def __call__(self, base: str, tuned: str, **arguments: Any) -> HeadScores:
        self.asked.append((base, tuned, arguments))
        if self.refusal is not None:
            raise self.refusal
        if arguments["progress"] is not None:
            arguments["progress"](1, 2)
        return small_scores()


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> FakeScan:
    fake = FakeScan()
    monkeypatch.setattr(alps, "scan", fake)
    return fake


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"alps {alps.__version__}\n")


def test_scan_shows_table_map_and_summary(scan: FakeScan) -> None:
    result = invoke("scan", "base", "tuned", "--ratio", "0.25")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "llama, 3 layers x 4 heads, 2 key/value groups" in result.stdout
    assert re.search(r"1 +0 +1 +0 +0\.9 +nan +█", result.stdout)
    assert "    0 ░░████··" in result.stdout or "    0 ··████··" in result.stdout
    assert result.stdout.endswith(
        "3 of 12 heads, 3 of 6 key/value groups, 38.9 % of Q/K/V parameters\n"
        "base read from model.safetensors, tuned from model.safetensors\n"
    )
    assert scan.asked[0][:2] == ("base", "tuned")
    assert scan.asked[0][2]["statistics"] == alps.statistics.resolve(None, "qkv")
    assert scan.asked[0][2]["progress"] is None


def test_scan_passes_its_options_on_and_writes_files(scan: FakeScan, tmp_path: Path) -> None:
    output, heads = tmp_path / "scores.safetensors", tmp_path / "heads.json"
    options = ["--form", "product", "--temperature", "0.5", "--threads", "3", "--statistic", "kl"]
    result = invoke("scan", "base", "tuned", *options, "--scores", output, "--heads", heads)
    assert result.exit_code == 0, result.stderr
    arguments = scan.asked[0][2]
    assert (arguments["form"], arguments["temperature"], arguments["threads"]) == ("product", 0.5, 3)
    assert "changed" not in arguments["statistics"]
    assert HeadScores.load(output) == small_scores()
    assert HeadSet.load(heads) == small_scores().select(0.1, statistic="kl")
    assert f"heads written to {heads}" in result.stdout


def test_scan_sorts_only_when_asked(scan: FakeScan) -> None:
    invoke("scan", "base", "tuned", "--statistic", "sorted_wasserstein")
    assert scan.asked[0][2]["statistics"][-1] == "sorted_wasserstein"


def test_json_is_one_document_and_nothing_else(scan: FakeScan, scores_file: Path, tmp_path: Path) -> None:
    heads_file = tmp_path / "heads.json"
    result = invoke("scan", "base", "tuned", "--json", "--heads", heads_file)
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["scores"]["statistics"]["relative_delta"] == small_scores()["relative_delta"].tolist()
    assert document["scores"]["statistics"]["wasserstein_z"][0][1] is None
    assert document["heads"]["report"]["heads"] == 2
    assert document["heads"]["report"]["share"] == small_scores().select(0.1).report.share
    assert json.loads(invoke("select", scores_file, "--json").stdout) == document["heads"]
    assert json.loads(invoke("show", scores_file, "--json").stdout) == document["scores"]
    assert json.loads(invoke("show", heads_file, "--json").stdout) == document["heads"]


def test_select_honours_its_options(scores_file: Path, tmp_path: Path) -> None:
    scores, output = small_scores(), tmp_path / "heads.json"
    for options, expected in (
        ([], scores.select()),
        (["--ratio", "0.5", "--rule", "per_layer", "--statistic", "kl"], None),
        (["--budget", "200"], scores.select(budget=200)),
        (["--rule", "random", "--seed", "7"], scores.select(rule="random", seed=7)),
    ):
        expected = expected or scores.select(0.5, rule="per_layer", statistic="kl")
        result = invoke("select", scores_file, *options, "--heads", output)
        assert result.exit_code == 0, result.stderr
        assert HeadSet.load(output) == expected
        assert f"{len(expected)} of 12 heads" in result.stdout


def test_show_recognises_scores_and_heads_by_content(scores_file: Path, tmp_path: Path) -> None:
    heads = tmp_path / "scores-in-name-only.safetensors"
    small_scores().select(0.25).save(heads)
    shown = invoke("show", scores_file).stdout
    assert "tuned: tuned" in shown
    assert "Top heads by relative_delta" in shown
    assert "selected" not in shown
    shown = invoke("show", heads).stdout
    assert "rule: global" in shown
    assert "    0 ··████··" in shown
    assert "3 of 12 heads" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "missing"], "missing: No such file or directory"),
        (["show", "."], r"\.: Is a directory"),
        (["show", "text"], "text: expected scores or heads"),
        (["show", "empty"], "empty: expected scores or heads"),
        (["show", "json"], "json: format: expected 'alps-heads'"),
        (["select", "scores", "--seed", "1"], "rule 'global' draws nothing at random, found seed 1"),
        (["select", "scores", "--ratio", "0.1", "--budget", "3"], "a budget takes the place of a ratio"),
        (["select", "scores", "--heads", "missing/heads.json"], "missing: there is no such folder"),
        (
            ["scan", "base", "tuned", "--scores", "missing/scores.safetensors"],
            "missing: there is no such folder",
        ),
        (["scan", "base", "tuned", "--statistic", "changed", "--form", "product"], "no statistic 'changed'"),
        (["scan", "/no/base", "tuned"], "/no/base: there is no such file or folder"),
        (
            ["scan", "/no/base", "tuned", "--plot", "map.gif"],
            r"map\.gif: .*\.png, \.svg or \.pdf; found \.gif",
        ),
        (["scan", "/no/base", "tuned", "--plot", "map"], "map: .*found no suffix"),
        (["scan", "/no/base", "tuned", "--plot", "missing/map.png"], "missing: there is no such folder"),
        (["scan", "/no/base", "tuned", "--report", "report.txt"], r"report\.txt: .*\.html or \.htm"),
        (["scan", "/no/base", "tuned", "--report", "missing/a.html"], "missing: there is no such folder"),
        (["compare", "scores"], "two tasks or more, found 1"),
        (["compare", "scores", "scores"], "scores: given twice"),
        (["compare", "scores", "text"], "text: expected scores or heads"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(
    scores_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    scores_file.rename("scores")
    Path("text").write_text("some text")
    Path("empty").touch()
    Path("json").write_text("{}")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(f"alps: error: .*{said}.*\n", result.stderr), result.stderr


def test_a_message_of_many_lines_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alps, "scan", FakeScan(ArgumentError("one\n  two")))
    assert invoke("scan", "base", "tuned").stderr == "alps: error: one two\n"


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alps, "scan", FakeScan(KeyboardInterrupt()))
    result = invoke("scan", "base", "tuned")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["scan", "base"],
        ["scan", "base", "tuned", "--ratio", "2"],
        ["scan", "base", "tuned", "--ratio", "nan"],
        ["scan", "base", "tuned", "--form", "sum"],
        ["scan", "base", "tuned", "--threads", "0"],
        ["select", "scores", "--rule", "best"],
        ["select", "scores", "--budget", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_the_real_command(scores_file: Path) -> None:
    shown = command("show", scores_file, PYTHONIOENCODING="utf-8")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert "·".encode() in shown.stdout
    assert b"\x1b" not in shown.stdout
    refused = command("show", "missing")
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert refused.stderr.splitlines() == [b"alps: error: missing: No such file or directory"]


def test_output_is_ascii_if_the_encoding_is(scores_file: Path) -> None:
    shown = command("select", scores_file, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"# selected" in shown.stdout


def wide(heads: int, layers: tuple[int, ...] = (0, 1), width: int = 80) -> list[str]:
    geometry = small_geometry(query_heads=heads, key_value_heads=1, layers=layers)
    numbers = np.arange(geometry.heads, dtype=np.float64).reshape(geometry.shape)
    console = Console(width=width)
    selection = HeadSet.from_pairs([(layers[-1], heads - 1)], geometry)
    return head_map(console, geometry, numbers, selection).plain.splitlines()


@pytest.mark.parametrize("heads", [1, 4, 32, 37, 38, 64, 71, 74, 75, 96, 97, 128, 149, 256, 1000])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_map_fits_the_terminal(heads: int, width: int) -> None:
    ruler, first, last, *legend = wide(heads, width=width)
    assert max(map(len, (ruler, first, last, *legend))) <= width
    assert len(first) == len(last)
    assert first.startswith("    0 ·")
    assert last.endswith("█")
    assert "█ selected" in "   ".join(legend)


def test_a_wide_map_merges_heads_evenly() -> None:
    ruler, first, *_, legend = wide(128)
    assert len(first) == len("    0 ") + 64
    assert ruler.split() == ["layer", "0", "16", "32", "48", "64", "80", "96", "112"]
    assert "a cell is 2 heads" in legend


def test_a_merged_cell_shows_the_highest_score() -> None:
    geometry = small_geometry(query_heads=100, key_value_heads=1, layers=(0,))
    numbers = np.zeros((1, 100))
    numbers[0, 1] = 1.0
    numbers[0, 2:4] = np.nan
    row = head_map(Console(width=80), geometry, numbers, None).plain.splitlines()[1]
    assert row[6:9] == "▓ ·"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with checkpoints "base" and "tuned" that differ in head (1, 3) alone."""
    shape = Shape(layers=2)
    weights = random_weights(shape, seed=0)
    write(tmp_path / "base", shape.config(), weights)
    query = name(1, "q")
    moved = weights[query].clone()
    moved[3 * shape.head_size :] *= 1.5
    write(tmp_path / "tuned", shape.config(), weights | {query: moved})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_real_scan(pair: Path) -> None:
    ran = command(
        *("scan", "base", "tuned", "--scores", "scores.safetensors", "--heads", "heads.json"),
        PYTHONIOENCODING="utf-8",
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    shown = ran.stdout.decode()
    assert "llama, 2 layers x 4 heads, 2 key/value groups" in shown
    assert re.search(r"^ *1 +1 +3 +1 .* █ *$", shown, re.MULTILINE)
    assert "1 of 8 heads, 1 of 4 key/value groups, 18.8 % of Q/K/V parameters\n" in shown
    assert shown.endswith("scores written to scores.safetensors\nheads written to heads.json\n")
    assert HeadSet.load("heads.json").pairs() == [(1, 3)]
    scores = HeadScores.load("scores.safetensors")
    assert scores == alps.scan("base", "tuned")
    assert sorted(path.name for path in pair.iterdir()) == [
        "base",
        "heads.json",
        "scores.safetensors",
        "tuned",
    ]

    ran = command("scan", "base", "tuned", "--json")
    document = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert document["scores"]["statistics"]["relative_delta"] == scores["relative_delta"].tolist()
    assert document["heads"]["heads"] == {"0": [], "1": [3]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base", "missing"], "missing: there is no such file or folder"),
        (["base", "truncated"], r"truncated/model\.safetensors: .*truncated"),
        (["base", "unknown"], "unknown: the model type `nonsense` is in no known layout.*CONTRIBUTING"),
        (["base", "other"], "query heads"),
        (["base", "tuned", "--temperature", "0"], "temperature"),
        (["pickled", "tuned"], "pickle"),
        (["gguf", "tuned"], "is a GGUF file, which is not read"),
        (["base", "gguf/model-Q4_K_M.gguf"], "is a GGUF file, which is not read"),
    ],
)
def test_a_refusal_of_a_real_scan_is_one_line_and_exit_code_1(
    pair: Path, arguments: list[str], said: str
) -> None:
    for folder in ("truncated", "unknown"):
        write(pair / folder, Shape().config(), random_weights(Shape(), seed=0))
    with Path("truncated/model.safetensors").open("r+b") as file:
        file.truncate(1000)
    Path("unknown/config.json").write_text(json.dumps({"model_type": "nonsense"}))
    other = Shape(layers=2, query_heads=2)
    write(pair / "other", other.config(), random_weights(other, seed=0))
    Path("gguf").mkdir()
    Path("gguf/model-Q4_K_M.gguf").write_bytes(b"GGUF\3\0\0\0")
    Path("pickled").mkdir()
    Path("pickled/config.json").write_bytes(Path("base/config.json").read_bytes())
    Path("pickled/pytorch_model.bin").write_bytes(b"PK\3\4")
    ran = command("scan", *arguments, "--scores", "scores.safetensors")
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert re.fullmatch(f"alps: error: .*{said}.*\n", ran.stderr.decode())
    assert not Path("scores.safetensors").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of its own")
def test_a_scan_in_a_terminal_shows_a_bar_and_ends_soon_after_ctrl_c(tmp_path: Path) -> None:
    base, tuned = write_long_pair(tmp_path)
    terminal_end, scan_end = os.openpty()
    scanning = subprocess.Popen(
        [*COMMAND, "scan", base, tuned, "--scores", tmp_path / "scores.safetensors"],
        stdout=subprocess.PIPE,
        stderr=scan_end,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(scan_end)
    shown = b""
    with scanning:
        try:
            while b"GiB" not in shown:  # of so many GiB read, so it is at work
                shown += os.read(terminal_end, 4096)
            assert b"reading" in shown
            scanning.send_signal(signal.SIGINT)
            sent = time.monotonic()
            output, _ = scanning.communicate(timeout=30)
            seconds = time.monotonic() - sent
        finally:
            scanning.kill()
    os.close(terminal_end)
    assert (scanning.returncode, output) == (130, b"")
    assert seconds < 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


PICTURES = {"map.png": b"\x89PNG\r\n", "map.SVG": b"<?xml", "map.pdf": b"%PDF-"}


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_and_reports_are_written(
    scan: FakeScan, scores_file: Path, tmp_path: Path, picture: str
) -> None:
    heads = tmp_path / "heads.json"
    small_scores().select().save(heads)
    plot, report = tmp_path / picture, tmp_path / "report.html"
    for arguments in (
        ["scan", "base", "tuned"],
        ["select", scores_file],
        ["select", scores_file, "--rule", "random"],
        ["show", scores_file],
        ["show", heads],
        ["compare", scores_file, heads],
    ):
        result = invoke(*arguments, "--plot", plot, "--report", report)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.endswith(f"picture written to {plot}\nreport written to {report}\n")
        assert plot.read_bytes().startswith(PICTURES[picture])
        assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        plot.unlink()
        report.unlink()


@pytest.mark.parametrize(
    ("package", "option", "file"), [("matplotlib", "--plot", "a.png"), ("jinja2", "--report", "a.html")]
)
def test_without_the_packages_a_picture_is_refused_before_any_work(
    tmp_path: Path, package: str, option: str, file: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from alps.cli import main; main()"
    arguments = ["scan", "/no/base", "/no/tuned", option, str(tmp_path / file)]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(
        r"alps: error: a \w+ needs more packages: pip install 'alps-heads\[plot\]' .*\n", ran.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_an_old_picture_stays_when_a_new_one_fails(
    scores_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot, report = tmp_path / "map.png", tmp_path / "report.html"
    plot.write_bytes(b"old")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    for option, file in (("--plot", plot), ("--report", report)):
        assert invoke("select", scores_file, option, file).exit_code == 130
    assert plot.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", scores_file.name}


def test_compare_shows_the_numbers_and_the_map(scores_file: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    small_scores().select(0.25).save(heads)
    shown = invoke("compare", scores_file, heads, "--ratio", "0.5")
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"^ scores +heads +3 +1\.5 +0\.500 *$", shown.stdout, re.MULTILINE)
    assert "    0 ··████··" in shown.stdout
    document = json.loads(invoke("compare", scores_file, heads, "--ratio", "0.5", "--json").stdout)
    assert document["statistic"] == "relative_delta"
    assert document["pairs"] == [
        {
            "first": "scores",
            "second": "heads",
            "shared": 3,
            "by_chance": 1.5,
            "jaccard": 0.5,
            "rank_correlation": None,
        }
    ]
    assert document["heads"]["heads"]["report"]["heads"] == 3


def test_files_of_the_same_name_are_labelled_by_their_folders(tmp_path: Path) -> None:
    files = [tmp_path / folder / "scores" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        small_scores().save(file)
    document = json.loads(invoke("compare", *files, "--json").stdout)
    assert list(document["heads"]) == list(map(str, files))
    assert document["pairs"][0]["rank_correlation"] == 1


def in_colour(heads: int, width: int = 80, **options: Any) -> Console:
    """A terminal that shows colours, with a map on it whose head 2 has no number and whose last is selected."""
    geometry = small_geometry(query_heads=heads, key_value_heads=1)
    numbers = np.arange(geometry.heads, dtype=np.float64).reshape(geometry.shape)
    numbers[0, 2] = np.nan
    settings: dict[str, Any] = {
        "force_terminal": True,
        "color_system": "truecolor",
        "file": io.StringIO(),
        "record": True,
    }
    console = Console(width=width, **settings | options)
    selection = HeadSet.from_pairs([(3, heads - 1)], geometry)
    console.print(head_map(console, geometry, numbers, selection))
    return console


ORANGE = "255;144;32"


@pytest.mark.parametrize(
    ("heads", "cell"), [(4, "  "), (37, "  "), (38, " "), (74, " "), (75, "half"), (148, "half")]
)
def test_a_map_in_colour_has_a_cell_for_every_head_as_long_as_it_fits(heads: int, cell: str) -> None:
    lines = in_colour(heads).export_text(styles=True).splitlines()
    plain = in_colour(heads).export_text().splitlines()
    assert max(map(len, plain)) <= 80
    assert "a cell is" not in "".join(plain)
    last = lines[3]
    characters = re.findall(r"\x1b\[([\d;]*)m([ ▌▐]+)\x1b\[0m", last)
    if cell == "half":
        assert len(characters) == -(-heads // 2)
        assert last.count(ORANGE) == 1
        assert "▐" in lines[1]  # the head without a number leaves its half as it is
    else:
        assert [text for _, text in characters] == [cell] * heads
        assert [style for style, _ in characters].count(f"48;2;{ORANGE}") == 1
        assert characters[-1][0] == f"48;2;{ORANGE}"
    assert "selected" in plain[-1]


def test_a_map_in_colour_gets_lighter_with_the_score() -> None:
    last = in_colour(8).export_text(styles=True).splitlines()[3]
    colours = [tuple(map(int, match)) for match in re.findall(r"48;2;(\d+);(\d+);(\d+)m", last)][:-1]
    assert len(set(colours)) == 7
    for lower, higher in pairwise(colours):
        assert all(one <= other for one, other in zip(lower, higher, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"no_color": True},
        {"color_system": None},
        {"color_system": "standard"},
        {"_environ": {"NO_COLOR": "1"}},
    ],
)
def test_a_map_without_colours_uses_characters(options: dict[str, Any]) -> None:
    shown = in_colour(4, **options).export_text()
    assert "    0 ····  ░░" in shown
    assert "    3 ▒▒▓▓▓▓██" in shown
    assert "blank: no number" in shown


def test_a_count_map_is_filled_where_all_agree() -> None:
    geometry = small_geometry(layers=(0,))
    shown = count_map(Console(width=80), geometry, np.array([[0, 1, 2, 3]]), 3).plain
    assert shown.splitlines()[1:] == ["    0 ··▒▒▓▓██", "·░▒▓ selected by 0 to 2 of 3 tasks   █ all"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shape = Shape(layers=2)
    return write(tmp_path / "model", shape.config(), random_weights(shape, seed=0))


def test_inspect_shows_what_a_scan_reads(checkpoint: Path) -> None:
    printed = invoke("inspect", checkpoint).stdout
    for said in (
        "llama, 2 layers x 4 heads",
        "layout separate, F64, 6 tensors, 12,288 of 12,896 bytes",
        "0-1",
        "4 x 24",
    ):
        assert said in printed
    document = json.loads(invoke("inspect", checkpoint, "--json").stdout)
    assert document["bytes"] == 12288
    assert document["modules"][0]["name"] == name(0, "q").removesuffix(".weight")


def test_a_missing_component_is_refused(checkpoint: Path) -> None:
    for arguments in (("inspect", checkpoint), ("scan", checkpoint, checkpoint)):
        result = invoke(*arguments, "--component", "vision")
        assert result.exit_code == 1
        assert "no attention stack `vision`; there is decoder" in result.stderr


def test_layouts_lists_the_model_types() -> None:
    assert "transposed: GPT-2" in invoke("layouts").stdout
    layouts = json.loads(invoke("layouts", "--json").stdout)["layouts"]
    assert {"gpt2"} <= {of for layout in layouts for of in layout["model_types"].get("decoder", [])}
