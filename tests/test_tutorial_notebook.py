"""The notebook of the tutorial runs from top to bottom in a fresh kernel."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.documents import ROOT

NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
QUICK = "Settings(seeds=1, base_steps=2, steps=2, batch=2, measured=2)"


def outputs(cell: Any) -> list[str]:
    """The MIME types that a cell shows, and the names of the streams that it writes to."""
    shown = [list(output.get("data", {})) or [output.name] for output in cell.get("outputs", [])]
    return [kind for kinds in shown for kind in kinds]


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


# A kernel warns of the transport that jupyter_client chooses for it.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "install" in tags:
            assert re.fullmatch(r"%pip install -q 'alps-heads\[train,plot\]'", cell.source)
            cell.source = ""
        if "parameters" in tags:
            assert "Settings(seeds=1)" in cell.source
            cell.source = cell.source.replace("Settings(seeds=1)", QUICK)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    by_source = {cell.source.splitlines()[-1]: outputs(cell) for cell in notebook.cells if cell.source}
    assert "image/png" in by_source["scores.plot()"]
    assert "image/png" in by_source["audit.plot()"]
    for line in ("scores", "heads", "audit", 'alps.restrict(model, heads, others="freeze")'):
        assert "text/html" in by_source[line], line
    last = notebook.cells[-2]
    printed = "".join(output.text for output in last.outputs if output.get("name") == "stdout")
    assert printed.endswith("any other head: 0.0\n")
