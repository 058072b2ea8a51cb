"""The plugin for axolotl, with a stand-in for axolotl; with axolotl itself where ALPS_AXOLOTL names its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from alps.training.projection import restricted_projections
from support import axolotl_interface, text_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "axolotl.yaml"
PAIR = {"alps_heads": None, "alps_base": "base", "alps_tuned": "tuned", "alps_ratio": 0.16}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("axolotl")
    text_model.make(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what the example names."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    axolotl_interface.install(monkeypatch)
    return tmp_path


def example(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    return {name: value for name, value in (document | changes).items() if value is not None}


@pytest.mark.parametrize("others", ["train", "freeze"])
@pytest.mark.parametrize("source", [{}, PAIR], ids=["heads", "pair"])
def test_the_example_trains_the_chosen_heads(source: Any, others: str, folder: Path) -> None:
    model = axolotl_interface.train(example(alps_others=others, **source), folder)
    assert not restricted_projections(model)
    text_model.check_trained(folder, folder / "out", others)
    assert (folder / "out" / "heads.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alps_heads": None}, "expected alps_heads, or alps_base and alps_tuned"),
        ({"alps_heads": None, "alps_tuned": "tuned"}, "expected alps_heads, or alps_base and alps_tuned"),
        ({"alps_ratio": 0.1}, "found alps_ratio too"),
        ({"alps_others": "thaw"}, "alps_others"),
        ({"adapter": "lora"}, "adapter: expected none, found 'lora'"),
        ({"load_in_4bit": True}, "packed weights"),
    ],
)
def test_keys_that_are_refused_before_a_model_is_loaded(changes: Any, message: str, folder: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        axolotl_interface.train(example(base_model="no such model", **changes), folder)


def test_the_keys_of_another_configuration_are_left(folder: Path) -> None:
    from alps.integrations.axolotl import AlpsArguments

    AlpsArguments.model_validate({"plugins": ["other.Plugin"], "adapter": "lora"})
    AlpsArguments.model_validate({"plugins": None, "load_in_8bit": True})


@pytest.mark.skipif("ALPS_AXOLOTL" not in os.environ, reason="ALPS_AXOLOTL names no command of axolotl")
def test_axolotl_itself(folder: Path) -> None:
    (folder / "axolotl.yaml").write_text(yaml.safe_dump(example()))
    changes = {
        "ACCELERATE_USE_CPU": "true",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "PYTHONPATH": str(Path(sys.modules["alps"].__path__[0]).parent),
    }
    command = [os.environ["ALPS_AXOLOTL"], "train", "axolotl.yaml", "--launcher", "python"]
    run = subprocess.run(command, env=os.environ | changes, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    text_model.check_trained(folder, folder / "out")
