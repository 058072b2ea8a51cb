"""Reports: their tables, pictures and text."""

import base64
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import alps
from alps import ArgumentError, HeadScores, HeadSet
from alps.visual.html_report import document
from support.scores import small_geometry, small_scores

HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}$\u202e"


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def pictures(self) -> list[str]:
        start = "data:image/svg+xml;base64,"
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith(start) for source in sources)
        return [base64.b64decode(source.removeprefix(start)).decode() for source in sources]


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
    listed = {
        (int(row[1]), int(row[2]), int(row[3])) for row in page.rows if len(row) == 7 and row[0].isdigit()
    }
    assert listed == {(layer, head, head // 2) for layer, head in heads}
    assert "6 of 12" in " ".join(page.text.split())
    assert len(page.pictures()) == 3
    for value in scores.provenance.values():
        assert value in page.text
    of_set = Page(document(heads))
    assert {(int(row[0]), int(row[1])) for row in of_set.rows if len(row) == 3 and row[0].isdigit()} == set(
        heads
    )
    assert len(of_set.pictures()) == 1


def test_a_report_without_a_selection_lists_the_best() -> None:
    page = Page(document(small_scores(), statistic="kl"))
    ranked = [row for row in page.rows if len(row) == 7 and row[0].isdigit()]
    assert [(int(row[1]), int(row[2])) for row in ranked] == [
        place[:2] for place in small_scores().top(12, "kl")
    ]
    assert "The 12 heads that moved most" in page.text


def test_a_report_summarises_the_statistics() -> None:
    page = Page(document(small_scores()))
    numbers = small_scores()["relative_delta"]
    (row,) = (row for row in page.rows if row[0] == "relative_delta")
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
    assert [row[:2] for row in page.rows if len(row) == 6][1:] == [
        ["one", "two"],
        ["one", "three"],
        ["two", "three"],
    ]
    shared = [row for row in page.rows if len(row) == 5 and row[0].isdigit()]
    assert shared == [["0", "1", "0", "3", "one, two, three"], ["0", "2", "1", "2", "one, two"]]


def test_names_are_escaped_everywhere() -> None:
    harmless = {tag for text in all_documents(small_scores(), "relative_delta") for tag, _ in Page(text).tags}
    for text in all_documents(hostile_scores(), HOSTILE):
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= harmless
        assert "script" not in harmless
        assert "<script>alert('x')</script>" in page.text
        assert "{{ 7 * 7 }}" in page.text
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
        assert "url(" not in text
        assert "@import" not in text
        (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_pictures_take_the_colour_of_the_page() -> None:
    for text in all_documents(small_scores(), "relative_delta"):
        assert "prefers-color-scheme: dark" in text
        for picture in Page(text).pictures():
            assert "prefers-color-scheme:dark" in picture
            assert picture.count("currentColor") > 5
            assert picture.count("#1b1f24") == 1  # the page's own colour, where it is light
            assert not re.search(r'id="patch_1">\s*<path [^>]*fill: #ffffff', picture)  # no ground of its own


def test_a_model_without_attention_has_a_report() -> None:
    heads = HeadSet.from_pairs([], small_geometry(layers=()))
    assert "None." in Page(document(heads)).text
    empty = HeadScores({"kl": np.zeros((0, 4))}, small_geometry(layers=()))
    assert Page(document(empty, empty.select())).pictures() == []
    assert Page(document(alps.compare({"a": heads, "b": heads}))).pictures() == []


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
    assert names == pages | {"page.html", "pieces.html"}
