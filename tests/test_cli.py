"""The command `alps`: what it prints, what it writes, and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import alps
from alps import ArgumentError, HeadScores, HeadSet, cli
from alps.cli import tables
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
    assert re.search(r"1 +0 +1 +0 +0\.9000 +nan +█", result.stdout)
    assert "    0 ░░████··" in result.stdout or "    0 ··████··" in result.stdout
    assert result.stdout.endswith(
        "3 of 12 heads, 3 of 6 key/value groups, 38.9 % of Q/K/V parameters\nread base and tuned\n"
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
        (
            ["select", "scores", "--heads", "heads.txt"],
            r"heads\.txt: a head set's name ends in \.json; found \.txt",
        ),
        (
            ["scan", "/no/base", "tuned", "-o", "scores"],
            r"a score file's name ends in \.safetensors; found no suffix",
        ),
        (
            ["scan", "/no/base", "tuned", "--resume", "kept"],
            r"kept: .* ends in \.safetensors; found no suffix",
        ),
        (
            ["scan", "/no/base", "tuned", "--statistic", "wd"],
            r"no statistic 'wd'; it has wasserstein, kl, .*",
        ),
        (["select", "scores", "--statistic", "wd"], r"no statistic 'wd'; they hold relative_delta, kl, .*"),
        (["show", "heads.json", "--statistic", "kl"], "heads.json: a set of heads holds no statistic"),
        (
            ["measure", "/no/model", "--statistic", "wd"],
            "no statistic 'wd'; there are fisher, gradient, .*lift",
        ),
        (["layouts", "nonsense*"], r"no model type matches 'nonsense\*'; `alps layouts` lists all"),
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
    small_scores().select().save("heads.json")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(f"alps: error: .*{said}.*\n", result.stderr), result.stderr


def test_a_message_of_many_lines_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alps, "scan", FakeScan(ArgumentError("one\n  two")))
    assert invoke("scan", "base", "tuned").stderr == "alps: error: one two\n"


def wrapped(interrupt: KeyboardInterrupt) -> RuntimeError:
    """What Python 3.11 makes of Ctrl-C while it makes a class."""
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = interrupt
    return error


@pytest.mark.parametrize("refusal", [KeyboardInterrupt(), wrapped(KeyboardInterrupt())])
def test_ctrl_c_is_exit_code_130(refusal: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alps, "scan", FakeScan(refusal))
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
        ["select", "scores", "--rule", "random", "--top", "3"],
        ["scan", "base", "tuned", "--top", "-1"],
        ["scan", "base", "tuned", "--output", "scores.safetensors"],
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
    size = Path("base/model.safetensors").stat().st_size / 1000
    assert shown.endswith(
        "scores written to scores.safetensors\nheads written to heads.json\n"
        f"read base/model.safetensors ({size:.1f} kB) and tuned/model.safetensors ({size:.1f} kB)\n"
    )
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
        assert f"picture written to {plot}\nreport written to {report}\n" in result.stdout
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
    copy = tmp_path / "copy.json"
    copy.write_bytes(heads.read_bytes())
    shown = invoke("compare", scores_file, heads, "--ratio", "0.5")
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"^ scores +heads +3 +1\.5 +0\.500 *$", shown.stdout, re.MULTILINE)
    assert "    0 ··████··" in shown.stdout
    document = json.loads(invoke("compare", scores_file, heads, "--ratio", "0.5", "--json").stdout)
    assert "of scores, the best 50 % of the heads by relative_delta" in shown.stdout
    assert shown.stdout.endswith("A scores   B heads   █ both   · none\n")
    assert (document["statistic"], document["ratio"]) == ("relative_delta", 0.5)
    assert json.loads(invoke("compare", heads, copy, "--json").stdout)["ratio"] is None
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


def test_layouts_lists_the_model_types_one_a_line() -> None:
    *lines, count = invoke("layouts").stdout.splitlines()
    assert ["gpt2", "decoder", "transposed"] in [line.split() for line in lines]
    assert lines == sorted(lines)
    assert all(len(line.split()) == 3 for line in lines)
    types = {line.split()[0] for line in lines}
    assert count == f"{len(types)} of {len(types)} model types"


def test_layouts_are_filtered_by_a_text_or_a_pattern() -> None:
    *lines, count = invoke("layouts", "GPT2").stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"gpt2"}
    assert all("gpt2" in line.split()[0] for line in lines)
    assert count.startswith(f"{len({line.split()[0] for line in lines})} of ")
    *exact, _ = invoke("layouts", "gpt?").stdout.splitlines()
    assert {"gpt2", "gptj"} <= {line.split()[0] for line in exact}
    assert all(re.fullmatch("gpt.", line.split()[0]) for line in exact)
    layouts = json.loads(invoke("layouts", "gpt2", "--json").stdout)["layouts"]
    assert {"gpt2"} <= {of for layout in layouts for of in layout["model_types"].get("decoder", [])}
    assert all("gpt2" in of for layout in layouts for types in layout["model_types"].values() for of in types)


def test_the_short_form_writes_the_main_output(scan: FakeScan, scores_file: Path, tmp_path: Path) -> None:
    scores, heads = tmp_path / "a.safetensors", tmp_path / "a.json"
    assert invoke("scan", "base", "tuned", "-o", scores).exit_code == 0
    assert HeadScores.load(scores) == small_scores()
    assert invoke("select", scores_file, "-o", heads).exit_code == 0
    assert HeadSet.load(heads) == small_scores().select()


def test_quiet_prints_nothing_but_what_is_asked_for(
    scan: FakeScan, scores_file: Path, tmp_path: Path
) -> None:
    heads, picture = tmp_path / "heads.json", tmp_path / "heads.svg"
    for arguments in (
        ["scan", "base", "tuned"],
        ["select", scores_file, "--heads", heads],
        ["show", scores_file, "--plot", picture],
        ["compare", scores_file, heads],
    ):
        result = invoke(*arguments, "-q")
        assert (result.exit_code, result.output) == (0, "")
    assert heads.exists()
    assert picture.exists()
    assert scan.asked[0][2]["progress"] is None
    assert json.loads(invoke("select", scores_file, "-q", "--json").stdout)["format"] == "alps-heads"


@pytest.mark.filterwarnings("always")
def test_quiet_prints_warnings_all_the_same(scores_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: Any, **__: Any) -> HeadScores:
        warnings.warn("look here", alps.AlpsWarning, stacklevel=1)
        return small_scores()

    monkeypatch.setattr(alps, "scan", warn)
    result = invoke("scan", "base", "tuned", "-q")
    assert (result.stdout, result.stderr) == ("", "alps: warning: look here\n")


@pytest.mark.parametrize("command", ["scan", "select", "show"])
def test_top_is_the_number_of_rows(scan: FakeScan, scores_file: Path, command: str) -> None:
    arguments = [command, *(("base", "tuned") if command == "scan" else (scores_file,))]
    for option, rows in (("--top", 0), ("--top", 3), ("-n", 12), ("--top", 100)):
        shown = invoke(*arguments, option, str(rows)).stdout
        assert ("Top heads" in shown) == (rows > 0)
        ranked = re.findall(r"^ +(\d+) +\d+ +\d+ +\d+ +-?\d", shown, re.MULTILINE)
        assert ranked == [str(rank) for rank in range(1, min(rows, 12) + 1)]
        assert "layer 0" in shown  # the map


def test_show_lists_the_heads_layer_by_layer(tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    geometry = small_geometry(query_heads=12, key_value_heads=1)
    HeadSet.from_pairs([(0, 0), (0, 1), (0, 2), (0, 7), (3, 11)], geometry).save(heads)
    shown = invoke("show", heads).stdout
    assert re.search(r"^layer 0: +0-2, 7 *\nlayer 3: +11 *\n\n5 of 36 heads", shown, re.MULTILINE), shown
    refused = invoke("show", heads, "--top", "3")
    assert refused.exit_code == 2
    assert "ranks no heads" in refused.stderr


def test_show_takes_a_statistic(scores_file: Path) -> None:
    assert "Top heads by kl" in invoke("show", scores_file, "--statistic", "kl").stdout


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.9, 0.8, 0.25], ["0.9000", "0.8000", "0.2500"]),
        ([12.5, 0.5, float("nan")], ["12.50", "0.50", "nan"]),
        ([1234567.0, 3.0], ["1.235e+06", "3.000e+00"]),
        ([3.1e-5, -2.25e-7, 0.0], ["3.100e-05", "-2.250e-07", "0.000e+00"]),
        ([0.0, 0.0], ["0.000", "0.000"]),
        ([4000.0, 12.0], ["4000", "12"]),
        ([], []),
        ([float("inf")], ["inf"]),
    ],
)
def test_a_column_has_one_notation(numbers: list[float], expected: list[str]) -> None:
    assert tables.aligned(numbers) == expected


def test_json_has_numbers_as_numbers(pair: Path) -> None:
    ran = invoke("scan", "base", "tuned", "--heads", "heads.json", "--json")
    document = json.loads(ran.stdout)
    for what in document["scores"], document["heads"]:
        found = what["provenance"]
        assert (found["temperature"], found["base_file_count"]) == (1.0, 1)
        assert found["base_bytes"] == Path("base/model.safetensors").stat().st_size
        assert found["tuned_bytes"] == Path("tuned/model.safetensors").stat().st_size
    assert document["heads"]["provenance"]["ratio"] == 0.1
    invoke("scan", "base", "tuned", "--scores", "scores.safetensors")
    random = json.loads(
        invoke("select", "scores.safetensors", "--rule", "random", "--seed", "7", "--json").stdout
    )
    assert random["provenance"]["seed"] == 7
    assert numbers_as_text(document) | numbers_as_text(random) <= {"alps"}


def numbers_as_text(value: Any, name: str = "") -> set[str]:
    """The names of fields whose text is a number; the version, which may look like one, is no number."""
    if isinstance(value, dict):
        return {found for key, one in value.items() for found in numbers_as_text(one, key)}
    if isinstance(value, list):
        return {found for one in value for found in numbers_as_text(one, name)}
    return {name} if isinstance(value, str) and re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", value) else set()


def test_a_strange_number_in_a_file_stays_text(tmp_path: Path) -> None:
    heads = tmp_path / "heads.json"
    chosen = small_scores().select()
    HeadSet(chosen.mask, chosen.geometry, {"seed": "9" * 5000, "ratio": "nan", "temperature": "hot"}).save(
        heads
    )
    shown = invoke("show", heads, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["provenance"]
    assert (found["ratio"], found["temperature"]) == (None, "hot")


def test_the_last_line_says_what_was_read(pair: Path) -> None:
    folder, weights = pair / "shards", load_file(pair / "base" / "model.safetensors")
    folder.mkdir()
    (folder / "config.json").write_bytes((pair / "base" / "config.json").read_bytes())
    places = {key: f"model-{number % 3}.safetensors" for number, key in enumerate(weights)}
    for file in set(places.values()):
        save_file({key: weights[key] for key in weights if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    ran = invoke("scan", "shards", "tuned/model.safetensors")
    assert ran.exit_code == 0, ran.output
    last = ran.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"read shards \(3 files, [\d.]+ kB\) and tuned/model\.safetensors \([\d.]+ kB\)", last
    ), last
