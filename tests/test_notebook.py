"""What notebooks and pandas show of scores and head sets."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import alps
from alps import STATISTICS, Audit, HeadScores, HeadSet, Trial
from support.checkpoints import Shape, random_weights, write
from support.scores import small_geometry, small_scores

HOSTILE = "<b>$\\frac{$</b>&\"'{{1}}\x1b[1m\u202e"


def parsed(html: str) -> ElementTree.Element:
    """The HTML, which is XML as well."""
    return ElementTree.fromstring(html)


def cells(path: ElementTree.Element) -> set[tuple[int, int]]:
    """The (row, head) that the runs of a path cover."""
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", path.attrib["d"])
    return {(int(row), int(start) + step) for start, row, length in runs for step in range(int(length))}


def said(tree: ElementTree.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


def rows(tree: ElementTree.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]


def test_a_notebook_shows_the_map_and_the_best_heads() -> None:
    tree = parsed(small_scores()._repr_html_())
    assert "llama: 3 layers × 4 heads, 2 key/value groups" in said(tree)
    assert "base → tuned; form qkv, temperature 1" in said(tree)
    table = rows(tree)
    assert table[0] == ["layer", "head", "K/V group", "relative_delta", "kl", "wasserstein_z"]
    assert [row[:2] for row in table[1:]] == [
        [str(layer), str(head)] for layer, head, _ in small_scores().top(5)
    ]
    *shades, groups = tree.iter("path")
    shown = {cell: float(path.attrib["fill-opacity"]) for path in shades for cell in cells(path)}
    assert len(shown) == 12
    for (row, head), opacity in shown.items():
        assert opacity == pytest.approx(small_scores()["relative_delta"][row, head] / 0.9, abs=0.07)
    assert groups.attrib["d"] == "M2 0v3"


def test_a_map_numbers_layers_and_heads_and_says_every_number() -> None:
    scores = small_scores()
    tree = parsed(scores._repr_html_())
    texts = [text.text for text in tree.iter("text")]
    assert texts == ["0", "2", "3", "0", "1", "2", "3", "head", "layer"]
    says = [title.text for title in tree.iter("title")]
    assert says == [
        f"layer {layer}, head {head}: relative change {scores['relative_delta'][row, head]:.4g}"
        for row, layer in enumerate(scores.layers)
        for head in range(4)
    ]
    of_set = parsed(scores.select(0.25)._repr_html_())
    assert [title.text for title in of_set.iter("title")].count("layer 0, head 1: selected") == 1


def test_a_table_of_many_statistics_is_narrow_and_names_the_others() -> None:
    numbers = small_scores()["kl"]
    scores = HeadScores(dict.fromkeys(STATISTICS, numbers), small_geometry())
    tree = parsed(scores._repr_html_())
    assert rows(tree)[0] == ["layer", "head", "K/V group", "relative_delta", "wasserstein", "kl", "js"]
    assert "also: cosine, euclidean, delta_norm" in said(tree)


def test_a_notebook_shows_the_heads_of_a_set() -> None:
    heads = small_scores().select(0.25)
    tree = parsed(heads._repr_html_())
    _, selected, _ = tree.iter("path")
    assert cells(selected) == {(row, head) for row, head in np.argwhere(heads.mask)}
    assert "3 of 12 heads" in said(tree)


def test_a_head_without_a_number_has_no_cell() -> None:
    numbers = np.full((3, 4), np.nan)
    nothing = parsed(HeadScores({"kl": numbers}, small_geometry())._repr_html_())
    assert [path.attrib.get("d") for path in nothing.iter("path")] == ["M2 0v3"]
    numbers[1, 2] = np.inf
    numbers[0, 3] = -1.0
    shown = next(parsed(HeadScores({"kl": numbers}, small_geometry())._repr_html_()).iter("path"))
    assert cells(shown) == {(0, 3)}


def audit_of(heads: HeadSet) -> Audit:
    shares = np.array([0.1, 0.2, 0.3])
    one, other = (Trial(name, 0.25, shares, shares + 0.1) for name in ("sufficiency", "necessity"))
    return Audit(heads, 2.5, 1.5, 0.8, one, other, seed=0)


def test_results_have_tables() -> None:
    scores = small_scores()
    heads = scores.select(0.25)
    report = parsed(heads.report._repr_html_())
    assert rows(report)[1] == ["heads", "3", "12", "25.0 %"]
    comparison = parsed(alps.compare({"a": scores, "b": heads})._repr_html_())
    assert rows(comparison)[1] == ["a", "b", "2", "0.5", "0.667", ""]
    assert "layer 0, head 1: selected by 2 of 2 tasks" in said(comparison)
    audit = parsed(audit_of(heads)._repr_html_())
    assert rows(audit)[1] == ["sufficiency", "25.0 %", "20.0 %", "2 of 4", "0.5", "0.75"]
    assert "the Q/K/V rows of all heads carry 80.0 %" in said(audit)


def test_layouts_are_a_tuple_with_a_table() -> None:
    layouts = alps.layouts()
    assert isinstance(layouts, tuple)
    table = rows(parsed(layouts._repr_html_()))
    assert [row[0] for row in table[1:]] == [layout.name for layout in layouts]
    assert any("decoder: " in row[2] and "llama" in row[2] for row in table)


def test_an_inspection_has_a_table(tmp_path: Path) -> None:
    shape = Shape(layers=3, query_heads=4, key_value_heads=2, head_size=8, hidden_size=16)
    found = alps.inspect(write(tmp_path / "model", shape.config(), random_weights(shape, seed=0)))
    tree = parsed(found._repr_html_())
    assert rows(tree)[1] == ["0-2", "4", "2", "8 x 16", "8 x 16", "8 x 16"]
    assert "F64" in said(tree)


def test_names_are_escaped() -> None:
    geometry = small_geometry(model_type=HOSTILE)
    scores = HeadScores({HOSTILE: np.ones((3, 4))}, geometry, {"base": HOSTILE, "tuned": HOSTILE})
    comparison = alps.compare({HOSTILE: scores, "b" * 10_000: scores})
    shown_as = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    for shown in (scores, scores.select(), comparison):
        html = shown._repr_html_()
        tree = parsed(html)
        assert {element.tag for element in tree.iter()} <= {
            *("div", "b", "small", "svg", "path", "g", "rect", "title", "text"),
            *("table", "thead", "tbody", "tr", "th", "td"),
        }
        assert shown_as in "".join(tree.itertext())
        assert len(html) < 20_000


def test_a_large_model_has_a_small_page() -> None:
    geometry = small_geometry(layers=tuple(range(126)), query_heads=128, key_value_heads=8)
    numbers = np.random.default_rng(0).random(geometry.shape)
    assert len(HeadScores({"kl": numbers}, geometry)._repr_html_()) < 400_000
    heads = HeadSet.from_mask(numbers > 0.5, geometry)._repr_html_()
    assert len(heads) < 250_000
    assert "heads 0 to 15: " in heads


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
