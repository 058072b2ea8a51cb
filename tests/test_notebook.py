"""What notebooks and pandas show of scores and head sets."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from alps import HeadScores, HeadSet
from support.scores import small_geometry, small_scores

HOSTILE = "<script>alert('x')</script>&\""


def parsed(html: str) -> ElementTree.Element:
    """The HTML, which is XML as well."""
    return ElementTree.fromstring(html)


def cells(path: ElementTree.Element) -> set[tuple[int, int]]:
    """The (row, head) that the runs of a path cover."""
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", path.attrib["d"])
    return {(int(row), int(start) + step) for start, row, length in runs for step in range(int(length))}


def test_a_notebook_shows_the_map_and_the_best_heads() -> None:
    tree = parsed(small_scores()._repr_html_())
    text = " ".join("".join(tree.itertext()).split())
    assert "llama: 3 layers × 4 heads, 2 key/value groups" in text
    assert "base → tuned; form qkv, temperature 1" in text
    rows = [[cell.text for cell in row] for row in tree.iter("tr")]
    assert rows[0] == ["layer", "head", "K/V group", "relative_delta", "kl", "wasserstein_z"]
    assert [row[:2] for row in rows[1:]] == [
        [str(layer), str(head)] for layer, head, _ in small_scores().top(5)
    ]
    ground, *shades, groups = tree.iter("path")
    assert len(cells(ground)) == 12
    shown = {cell: float(path.attrib["fill-opacity"]) for path in shades for cell in cells(path)}
    for (row, head), opacity in shown.items():
        assert opacity == pytest.approx(small_scores()["relative_delta"][row, head] / 0.9, abs=1 / 20)
    assert groups.attrib["d"] == "M2 0v3"


def test_a_notebook_shows_the_heads_of_a_set() -> None:
    heads = small_scores().select(0.25)
    tree = parsed(heads._repr_html_())
    _, selected, _ = tree.iter("path")
    assert cells(selected) == {(row, head) for row, head in np.argwhere(heads.mask)}
    assert "3 of 12 heads" in "".join(tree.itertext())


def test_a_head_without_a_number_has_no_cell() -> None:
    numbers = np.full((3, 4), np.nan)
    nothing = parsed(HeadScores({"kl": numbers}, small_geometry())._repr_html_())
    assert [path.attrib.get("d") for path in nothing.iter("path")] == ["M2 0v3"]
    numbers[1, 2] = np.inf
    numbers[0, 3] = -1.0
    ground = next(parsed(HeadScores({"kl": numbers}, small_geometry())._repr_html_()).iter("path"))
    assert cells(ground) == {(0, 3)}


def test_names_are_escaped() -> None:
    geometry = small_geometry(model_type=HOSTILE)
    scores = HeadScores({HOSTILE: np.ones((3, 4))}, geometry, {"base": HOSTILE, "tuned": HOSTILE})
    for shown in (scores, scores.select()):
        tree = parsed(shown._repr_html_())
        assert {element.tag for element in tree.iter()} <= {
            *("div", "b", "small", "svg", "path", "table", "thead", "tbody", "tr", "th", "td")
        }
        assert HOSTILE in "".join(tree.itertext())


def test_a_large_model_has_a_small_page() -> None:
    geometry = small_geometry(layers=tuple(range(126)), query_heads=128, key_value_heads=8)
    numbers = np.random.default_rng(0).random(geometry.shape)
    assert len(HeadScores({"kl": numbers}, geometry)._repr_html_()) < 400_000
    assert len(HeadSet.from_mask(numbers > 0.5, geometry)._repr_html_()) < 200_000


def test_pandas_gets_a_row_for_every_head() -> None:
    scores = small_scores()
    frame = scores.to_pandas()
    assert frame.index.names == ["layer", "head"]
    assert list(frame.columns) == list(scores)
    assert frame.loc[(2, 3), "relative_delta"] == scores["relative_delta"][1, 3]
    heads = scores.select(0.25)
    both = frame.join(heads.to_pandas())
    assert list(both.index[both["selected"]]) == heads.pairs()
    assert isinstance(both, pd.DataFrame)


def test_without_pandas_a_table_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None; import numpy as np; from alps import HeadScores, Geometry;"
        "HeadScores({'kl': np.zeros((1, 1))}, Geometry('', '', (0,), 1, 1, 1, 1, 1)).to_pandas()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingPackageError: a table of pandas needs more packages: pip install pandas" in ran.stderr
