"""What a fresh kernel shows, of pictures, tables and progress."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.checkpoints import Shape, random_weights, write

CELLS = {
    "scores": "import alps\nscores = alps.scan('base', 'tuned', progress=True)\nscores",
    "picture": "scores.plot()",
    "set": "heads = scores.select(0.25)\nheads",
    "report": "heads.report",
    "set picture": "heads.plot()",
    "comparison": "alps.compare({'one': scores, 'two': heads})",
    "inspection": "alps.inspect('base')",
    "layouts": "alps.layouts()",
    "graft": "_ = alps.graft('base', 'tuned', heads, 'grafted', progress=True)",
    "pyplot": "import sys\n'matplotlib.pyplot' in sys.modules",
}


@pytest.fixture(scope="module")
# A kernel warns of the transport that jupyter_client chooses for it.
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outputs of each cell."""
    folder = tmp_path_factory.mktemp("notebook")
    shape = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=8, hidden_size=64)
    for seed, name in enumerate(("base", "tuned")):
        write(folder / name, shape.config(), random_weights(shape, seed))
    return run(folder)


def run(folder: Path) -> dict[str, list[Any]]:
    notebook: Any = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.mark.parametrize("cell", ["scores", "set", "report", "comparison", "inspection", "layouts"])
def test_a_result_is_a_table(shown: dict[str, list[Any]], cell: str) -> None:
    data = shown[cell][-1].data
    assert set(data) == {"text/html", "text/plain"}
    assert "<div>" in data["text/html"]


@pytest.mark.parametrize("cell", ["picture", "set picture"])
def test_a_figure_is_a_picture_for_fine_screens(shown: dict[str, list[Any]], cell: str) -> None:
    (output,) = shown[cell]
    assert set(output.data) == {"image/png", "text/plain"}
    assert set(output.metadata["image/png"]) == {"width", "height"}


@pytest.mark.parametrize("cell", ["scores", "graft"])
def test_a_bar_is_at_its_end(shown: dict[str, list[Any]], cell: str) -> None:
    bar = shown[cell][0]
    assert bar.output_type == "display_data"
    value, most = (bar.data["text/html"].split(f'{name}="')[1].split('"')[0] for name in ("value", "max"))
    assert 0 < int(value) == int(most)
    assert {"scores": "reading: ", "graft": "copying: "}[cell] in bar.data["text/plain"]


def test_nothing_else_is_written(shown: dict[str, list[Any]]) -> None:
    assert [name for name, outputs in shown.items() for it in outputs if it.output_type == "stream"] == []
    assert shown["pyplot"][0].data["text/plain"] == "False"
