"""Reports: their tables, pictures and text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alps
from alps import ArgumentError, Geometry, HeadScores, HeadSet, LayerSizes
from alps.visual.html_report import document
from support.scores import small_geometry, small_scores

HOSTILE = "</script><script>alert('x')</script>\"&{{ 7 * 7 }}$\\frac{$\x1b[31m\u202e"
SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.in_cell = self.in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        if tag == "script":
            self.scripts.append("")
            self.in_script = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")
        self.in_script = self.in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts[-1] += data
            return
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def pictures(self) -> int:
        """The number of maps and charts."""
        return sum(tag == "svg" and attributes.get("role") == "img" for tag, attributes in self.tags)

    def listed(self, columns: int) -> list[list[str]]:
        """The rows of numbers, of tables with so many columns."""
        return [row for row in self.rows if len(row) == columns and row[0].isdigit()]

    def maps(self) -> list[dict[str, Any]]:
        """What the script of the page knows of each map."""
        return [json.loads(script) for script in self.scripts[:-1]]


def hostile_scores() -> HeadScores:
    scores = small_scores()
    provenance = dict.fromkeys(("base", "tuned", "form", "temperature", HOSTILE), HOSTILE)
    geometry = small_geometry(model_type=HOSTILE, layout=HOSTILE)
    return HeadScores({HOSTILE: scores["relative_delta"], "kl": scores["kl"]}, geometry, provenance)


def all_documents(scores: HeadScores, statistic: str) -> list[str]:
    heads = scores.select(0.25, statistic=statistic)
    tasks: dict[str, HeadScores | HeadSet] = {HOSTILE: scores, "other": heads}
    return [
        document(scores, heads, statistic=statistic),
        document(scores, statistic=statistic),
        document(heads),
        document(alps.compare(tasks, statistic=statistic)),
    ]


def test_a_report_lists_every_selected_head() -> None:
    scores = small_scores()
    heads = scores.select(0.5)
    page = Page(document(scores, heads))
    listed = {(int(row[1]), int(row[2]), int(row[3])) for row in page.listed(5)}
    assert listed == {(layer, head, head // 2) for layer, head in heads}
    assert "6 of 12" in " ".join(page.text.split())
    assert page.pictures() == 3
    for value in scores.provenance.values():
        assert value in page.text
    of_set = Page(document(heads))
    assert {(int(row[0]), int(row[1])) for row in of_set.listed(3)} == set(heads)
    assert of_set.pictures() == 1


def test_a_report_without_a_selection_lists_the_best() -> None:
    page = Page(document(small_scores(), statistic="kl"))
    ranked = [(int(row[1]), int(row[2])) for row in page.listed(5)]
    assert ranked == [place[:2] for place in small_scores().top(12, "kl")]
    further = [(int(row[0]), int(row[1])) for row in page.listed(4)]
    assert further == ranked  # with the two other statistics
    assert "The 12 heads that moved most" in page.text


def test_a_report_summarises_the_statistics() -> None:
    page = Page(document(small_scores()))
    numbers = small_scores()["relative_delta"]
    (row,) = (row for row in page.rows if row[0] == "relative change")
    assert "relative_delta: norm of the change over the norm of the base's weights" in page.text
    assert [float(cell) for cell in row[1:4]] == pytest.approx(
        [numbers.min(), np.median(numbers), numbers.max()], rel=1e-3
    )


def test_a_report_of_a_comparison_has_every_pair_and_every_shared_head() -> None:
    scores = small_scores()
    tasks: dict[str, HeadScores | HeadSet] = {
        "one": scores,
        "two": scores.select(0.25),
        "three": HeadSet.from_pairs([(0, 1)], scores.geometry),
    }
    comparison = alps.compare(tasks, ratio=0.1)
    page = Page(document(comparison))
    pairs = [row[0] for row in page.rows if len(row) == 5 and not row[0].isdigit()]
    assert pairs == ["tasks", "one, two", "one, three", "two, three", "layer"]
    assert [len(it["numbers"]) for it in page.maps()] == [3, 0, 0, 3]
    assert page.listed(5) == [["0", "1", "0", "3", "one, two, three"], ["0", "2", "1", "2", "one, two"]]


def test_names_are_escaped_everywhere() -> None:
    script = files("alps.visual").joinpath("templates", "page.js").read_text(encoding="utf-8")
    harmless = {tag for text in all_documents(small_scores(), "relative_delta") for tag, _ in Page(text).tags}
    for text in all_documents(hostile_scores(), HOSTILE):
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= harmless
        assert len(page.scripts) == 1 + text.count('<figure class="map')
        assert page.scripts[-1] == script
        assert SHOWN in page.text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "alert" not in "".join(name for _, attributes in page.tags for name in attributes)


def test_a_report_refers_to_nothing_outside_itself() -> None:
    for text in all_documents(small_scores(), "relative_delta"):
        page = Page(text)
        named = [
            value
            for _, attributes in page.tags
            for name, value in attributes.items()
            if name in ("src", "href")
        ]
        assert all((value or "").startswith("data:") for value in named)
        assert re.findall(r"url\((?!#)", text) == []
        assert "@import" not in text
        (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        )


def test_charts_take_the_colours_of_the_page_and_share_no_names() -> None:
    text = document(small_scores(), small_scores().select())
    charts = re.findall(r'<figure class="picture">.*?</figure>', text, flags=re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert chart.count("var(--ink)") > 5
        assert "var(--accent)" in chart
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart)) == set()
        assert "<style" not in chart
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', chart))
        assert used <= set(re.findall(r'\bid="([^"]+)"', chart))
    names = [set(re.findall(r'\bid="([^"]+)"', chart)) for chart in charts]
    assert names[0].isdisjoint(names[1])


def test_a_map_says_the_number_of_every_head() -> None:
    scores = small_scores()
    heads = scores.select(0.25)
    text = document(scores, heads)
    says = re.findall(r"<title>(layer .*?)</title>", text)
    expected = []
    for row, layer in enumerate(scores.layers):
        for head, value in enumerate(scores["relative_delta"][row]):
            mark = ", selected" if (layer, head) in heads else ""
            expected.append(f"layer {layer}, head {head}: relative change {value:.4g}{mark}")
    assert says == expected
    (known,) = Page(text).maps()
    assert [list(map(float, row.split())) for row in known["numbers"]] == scores["relative_delta"].tolist()
    assert known["layers"] == [0, 2, 3]


def test_a_map_says_which_heads_have_no_number_and_draws_none_that_is_not_there() -> None:
    geometry = with_layers_of_two_sizes()
    numbers = np.array([[0.5, np.nan, 1.0, np.inf], [0.25, 0.75, np.nan, np.nan]])
    text = document(HeadScores({"kl": numbers}, geometry))
    assert "layer 0, head 3: Kullback-Leibler divergence inf" in text
    assert len(re.findall(r"<title>layer ", text)) == 6
    (blank,) = re.findall(r'<path class="blank" d="(M[^"]*)"/>(?!</svg>)', text)
    assert re.findall(r"M([0-9.]+) ([0-9.]+)", blank) == [("1.1", "0.9"), ("3.1", "0.9")]


def with_layers_of_two_sizes() -> Geometry:
    sizes = [LayerSizes(heads, 2, 2, 2, 3, 10, 10, 10) for heads in (4, 2)]
    return small_geometry(layers=(0, 1), per_layer=tuple(sizes))


def test_long_texts_are_shortened() -> None:
    scores = small_scores()
    long = "x" * 10_000
    named = HeadScores({long: scores["kl"]}, scores.geometry, {"base": long, "tuned": long, long: long})
    tasks: dict[str, HeadScores | HeadSet] = {long: named, "other": named}
    for text in (document(named, named.select()), document(alps.compare(tasks))):
        assert len(max(re.findall("x+", text), key=len)) < 300


def test_a_large_model_has_a_page_of_a_few_megabytes() -> None:
    geometry = small_geometry(layers=tuple(range(126)), query_heads=128, key_value_heads=8)
    random = np.random.default_rng(0)
    scores = HeadScores({name: random.random(geometry.shape) for name in alps.STATISTICS}, geometry)
    text = document(scores, scores.select(0.1))
    assert len(text) < 3_000_000
    assert text.count("<title>layer ") <= 4096


def test_a_model_without_attention_has_a_report() -> None:
    heads = HeadSet.from_pairs([], small_geometry(layers=()))
    assert "None." in Page(document(heads)).text
    empty = HeadScores({"kl": np.zeros((0, 4))}, small_geometry(layers=()))
    assert Page(document(empty, empty.select())).pictures() == 0
    assert Page(document(alps.compare({"a": heads, "b": heads}))).pictures() == 0


def test_a_report_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    scores = small_scores()
    one, two = tmp_path / "one.html", tmp_path / "two.HTM"
    for path in (one, two):
        alps.write_report(path, scores, scores.select(), statistic="relative_delta")
    assert one.read_bytes() == two.read_bytes()
    assert one.read_text(encoding="utf-8") == document(scores, scores.select())


def test_reports_refuse_unsuitable_arguments(tmp_path: Path) -> None:
    scores = small_scores()
    with pytest.raises(ArgumentError, match=r"report\.pdf: .*\.html or \.htm; found \.pdf"):
        alps.write_report(tmp_path / "report.pdf", scores)
    with pytest.raises(ArgumentError, match="'js'"):
        alps.write_report(tmp_path / "report.html", scores, statistic="js")
    with pytest.raises(ArgumentError, match="go with scores only"):
        alps.write_report(tmp_path / "report.html", scores.select(), statistic="kl")
    with pytest.raises(ArgumentError, match="head_size"):
        alps.write_report(
            tmp_path / "report.html", scores, HeadSet.from_pairs([], small_geometry(head_size=5))
        )
    assert list(tmp_path.iterdir()) == []


def test_the_templates_are_part_of_the_package() -> None:
    names = {file.name for file in files("alps.visual").joinpath("templates").iterdir()}
    pages = {"scores.html", "comparison.html", "audit.html", "demo.html"}
    assert names == pages | {"page.html", "page.css", "page.js", "pieces.html"}
