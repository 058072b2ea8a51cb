"""The command `alps` before it works: its help, what the shell completes, how fast it starts, and Ctrl-C at any moment."""

import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from alps.arguments import Component, Measure, Rule
from alps.cli import app
from alps.statistics import STATISTICS, Form
from support.checkpoints import Shape, random_weights, write_pair

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def help_of(*command: str, columns: int = 80) -> str:
    ran = CliRunner().invoke(app, [*command, "--help"], prog_name="alps", env={"COLUMNS": str(columns)})
    assert ran.exit_code == 0
    return ran.stdout


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_fits_80_columns_and_says_the_same_by_its_short_form(command: tuple[str, ...]) -> None:
    shown = help_of(*command)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    short = CliRunner().invoke(app, [*command, "-h"], prog_name="alps", env={"COLUMNS": "80"})
    assert short.stdout == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_the_command_takes(name: str) -> None:
    shown = help_of(name)
    assert "Examples:" in shown
    examples = re.findall(r"^ \$ (.*?) *$", shown, re.MULTILINE)
    assert len(examples) >= 2
    command = COMMANDS[name]
    for example in examples:
        program, called, *arguments = example.replace("'", "").split()
        assert (program, called) == ("alps", name)
        context = command.make_context(name, arguments)
        assert not context.args


@pytest.mark.parametrize("name", COMMANDS)
def test_help_texts_are_sentences(name: str) -> None:
    command = COMMANDS[name]
    assert re.match(r"[A-Z].*\.$", command.help.split("\n")[0])
    for parameter in command.params:
        assert re.fullmatch(r"[A-Z].*\.", parameter.help), (name, parameter.name, parameter.help)


def test_the_same_option_means_the_same_everywhere() -> None:
    meanings: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    meanings.setdefault(option, set()).add(name)
    assert meanings["--scores"] == {"scan", "merge", "measure"}
    assert meanings["--heads"] == {"scan", "merge", "select", "measure", "graft", "audit"}
    assert meanings["--output"] == {"graft", "audit"}
    assert meanings["--top"] == {"scan", "merge", "select", "show", "measure"}
    main = {
        name: next((parameter.opts[0] for parameter in command.params if "-o" in parameter.opts), None)
        for name, command in COMMANDS.items()
    }
    assert {name: option for name, option in main.items() if option} == {
        "scan": "--scores",
        "merge": "--scores",
        "measure": "--scores",
        "select": "--heads",
        "graft": "--output",
        "audit": "--output",
    }


def test_the_help_lists_the_statistics() -> None:
    for command, names in (("scan", STATISTICS), ("select", STATISTICS), ("measure", get_args(Measure))):
        shown = set(re.findall(r"\w+", help_of(command, columns=200)))
        assert set(names) <= shown


def complete(words: str) -> list[str]:
    """What the shell offers for the last of these words."""
    environment = {
        "_ALPS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    ran = CliRunner().invoke(app, [], prog_name="alps", env=environment)
    return ran.stdout.split()


def test_the_shell_completes_what_options_take() -> None:
    assert complete("alps scan --statistic wass") == ["wasserstein", "wasserstein_z"]
    assert complete("alps select --statistic ") == list(STATISTICS)
    assert complete("alps measure --statistic ") == list(get_args(Measure))
    assert complete("alps select --rule ") == list(get_args(Rule))
    assert complete("alps scan --form ") == list(get_args(Form))
    assert complete("alps scan --component ") == list(get_args(Component))
    assert "--heads" in complete("alps scan --h")
    assert complete("alps sc") == ["scan"]
    assert complete("alps show ") == []  # then the shell completes files


def test_help_needs_no_numpy_and_little_time() -> None:
    code = "import sys; from alps.cli import main; main()"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime)
    assert min(seconds) < 0.4
    code = (
        "import atexit, sys; atexit.register(lambda: print(*{'numpy', 'torch'} & set(sys.modules), file=sys.stderr)); "
        + code
    )
    for arguments in (["--help"], ["scan", "--help"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
        assert ran.stderr.split() == []


START = "import os, alps.cli; os.write(1, b'!'); alps.cli.main()"
"""Says that the command begins. Before that it is Python that Ctrl-C interrupts."""


def started(*arguments: str) -> subprocess.Popen[bytes]:
    command = subprocess.Popen(
        [sys.executable, "-c", START, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stdout.read(1) == b"!"
    return command


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    shape = Shape(layers=2)
    write_pair(folder, shape.config(), random_weights(shape, seed=0), random_weights(shape, seed=1))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("what", ["help", "scan"])
def test_ctrl_c_is_quiet_at_any_moment_and_leaves_nothing(what: str, pair: Path, tmp_path: Path) -> None:
    scores, heads = str(tmp_path / "scores.safetensors"), str(tmp_path / "heads.json")
    scan = ["scan", str(pair / "base"), str(pair / "tuned"), "--scores", scores, "--heads", heads]
    arguments = ["--help"] if what == "help" else scan
    began = time.monotonic()
    started(*arguments).communicate()
    whole = time.monotonic() - began
    moments = random.Random(0)
    codes = set()
    for _ in range(12):
        for left in tmp_path.iterdir():
            left.unlink()
        with started(*arguments) as command:
            time.sleep(0.002 + whole * moments.random())
            command.send_signal(signal.SIGINT)
            _, errors = command.communicate(timeout=60)
        codes.add(command.returncode)
        assert errors == b""
        assert {path.name for path in tmp_path.iterdir()} <= {"scores.safetensors", "heads.json"}
    assert codes <= {0, 130}
    assert 130 in codes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_in_a_destructor_is_not_lost() -> None:
    code = """
import os, signal, time
from alps.cli import interrupts

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

try:
    with interrupts.raising():
        dropped = Dropped()
        del dropped
        time.sleep(30)
except KeyboardInterrupt:
    print("heard")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert (ran.stdout.split(), ran.stderr) == ([b"heard"], b"")


def test_interrupts_are_as_before_after_a_command() -> None:
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    assert CliRunner().invoke(app, ["layouts", "gpt2"]).exit_code == 0
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before
