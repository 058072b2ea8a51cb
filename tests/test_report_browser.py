"""Reports in a browser: their width, colours, script, and what is printed."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pypdf import PdfReader

import alps
from alps import HeadScores, HeadSet
from alps.audits import Audit, Trial
from alps.demo import report as demo_report
from alps.demo.experiment import METHODS
from alps.demo.results import Losses, Outcome, Results
from alps.demo.results import Trial as DemoTrial
from support import browser
from support.browser import Browser
from support.scores import small_geometry, small_scores

pytestmark = pytest.mark.skipif(browser.program() is None, reason=f"no browser: none of {browser.PROGRAMS}")

WIDTHS = (390, 1038, 1600)
SCHEMES = ("light", "dark")
HOSTILE = "</script><script>alert('x')</script>\"&{{ 7 * 7 }}$\\frac{$\x1b[31m\u202e"

# A small window that is too narrow for a page shows all of it at a smaller scale, so that `innerWidth` says nothing.
TOO_WIDE = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"

STICKING_OUT = """[...document.querySelectorAll("body *")].filter((it) => {
  const box = it.getBoundingClientRect();
  return box.width > 0 && !it.closest("svg") && (box.left < -0.5 || box.right > document.documentElement.clientWidth + 0.5);
}).map((it) => it.outerHTML.slice(0, 100))"""

SCROLLING = """[...document.querySelectorAll("body *")].filter((it) =>
  ["auto", "scroll"].includes(getComputedStyle(it).overflowX) || ["auto", "scroll"].includes(getComputedStyle(it).overflowY)
).map((it) => it.tagName)"""

ORDER = """((table, column) => [...document.querySelectorAll("table.sortable")[table].tBodies[0].rows]
  .map((row) => row.cells[column].textContent.trim()))"""


def scores_of(layers: int, heads: int, groups: int, seed: int = 0) -> HeadScores:
    geometry = small_geometry(layers=tuple(range(layers)), query_heads=heads, key_value_heads=groups)
    random = np.random.default_rng(seed)
    numbers = {name: random.gamma(3, 1e-5, size=geometry.shape) for name in alps.STATISTICS}
    return HeadScores(numbers, geometry, {"base": "a/base", "tuned": "a/tuned", "form": "qkv"})


def hostile_scores() -> HeadScores:
    long = "long" * 2500 + HOSTILE
    geometry = small_geometry(model_type=HOSTILE, layout=HOSTILE)
    names = dict.fromkeys(("base", "tuned", "form", "temperature", "w" * 10_000, long), long)
    numbers = small_scores()["relative_delta"]
    return HeadScores({long: numbers, "w" * 10_000: numbers, "kl": numbers}, geometry, names)


def audit_of(heads: HeadSet) -> Audit:
    random = np.random.default_rng(0)
    one, other = (
        Trial(name, 0.4, random.normal(0.1, 0.05, 50), random.normal(0.2, 0.05, 50))
        for name in ("sufficiency", "necessity")
    )
    return Audit(heads, 2.5, 1.9, 0.8, one, other, seed=0)


def write_demo(path: Path) -> None:
    outcome = Outcome(Losses(1.234, 4.321), 123_456, 0.0123, 4_560_000)
    trial = DemoTrial(0, Losses(1.0, 4.5), [(0, 0)], [(0, 1)], {method.name: outcome for method in METHODS})
    results = Results(Losses(5.0, 4.0), 1_000_000, 200, [trial, trial])
    scores = small_scores()
    folder = path.with_suffix("")
    folder.mkdir()
    demo_report.write(folder, scores, scores.select(0.25), results, "text")
    (folder / "report.html").rename(path)


def write(folder: Path) -> None:
    scores, small, hostile = scores_of(32, 32, 8), small_scores(), hostile_scores()
    heads, statistic = scores.select(0.1), next(iter(hostile))
    contents: dict[str, tuple[Any, ...]] = {
        "scores": (scores, heads),
        "best": (small, None, "wasserstein_z"),
        "heads": (heads,),
        "large": (large := scores_of(126, 128, 8), large.select(0.01)),
        "comparison": (
            alps.compare({"code": scores, "mathematics": scores_of(32, 32, 8, 1), "hand": heads}),
        ),
        "audit": (audit_of(heads),),
        "hostile": (hostile, hostile.select(0.5, statistic=statistic), statistic),
        "hostile comparison": (
            alps.compare({"long" * 99 + HOSTILE: hostile, "b": hostile}, statistic=statistic),
        ),
    }
    for name, (content, *rest) in contents.items():
        chosen, ranked_by = (*rest, None, None)[:2]
        alps.write_report(folder / f"{name}.html", content, chosen, statistic=ranked_by)
    write_demo(folder / "demo.html")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.running(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


NAMES = ("scores", "best", "heads", "large", "comparison", "audit", "hostile", "hostile comparison", "demo")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_the_window(page: Browser, reports: Path, name: str) -> None:
    for width in WIDTHS:
        page.open(reports / f"{name}.html", width)
        assert page.run("document.documentElement.clientWidth") == width
        for opened in (False, True):
            if opened:
                page.run("""for (const it of document.querySelectorAll("details")) it.open = true;
                            for (const it of document.querySelectorAll(".all input")) it.click();""")
            assert page.run(TOO_WIDE) <= 0, (width, opened)
            assert page.run(STICKING_OUT) == [], (width, opened)
        assert page.run(SCROLLING) == []
        assert page.complaints == []


def luminance(colour: str) -> float:
    """Of a colour that the page computed, "rgb(1, 2, 3)", as WCAG defines it."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_has_colours_of_its_own(page: Browser, reports: Path, scheme: str) -> None:
    page.open(reports / "scores.html", scheme=scheme)
    style = "getComputedStyle(document.querySelector({!r})).{}"
    ground, ink, quiet = (
        page.run(style.format(*it))
        for it in (("body", "backgroundColor"), ("body", "color"), (".quiet", "color"))
    )
    assert (luminance(ground) > 0.5) == (scheme == "light")
    assert contrast(ground, ink) > 12
    assert contrast(ground, quiet) > 4.5
    shades = [page.run(style.format(f".ramp .s{shade}", "fill")) for shade in range(13)]
    contrasts = [contrast(ground, shade) for shade in shades]
    assert contrasts == sorted(contrasts)  # a higher score is farther from the ground
    assert contrasts[0] < 1.3
    assert contrasts[-1] > 10
    assert contrast(page.run(style.format(".outline", "stroke")), shades[0]) > 3
    assert page.run(style.format(".picture [style*='stroke: var(--ink)']", "stroke")) == ink
    assert page.complaints == []


def test_columns_sort(page: Browser, reports: Path) -> None:
    page.open(reports / "scores.html")
    click = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells[{}].querySelector('button').click()"
    states = (
        "[...document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells].map((it) => it.ariaSort)"
    )
    assert page.run(states) == ["ascending", None, None, None, None]
    before = page.run(f"{ORDER}(0, 1)")
    page.run(click.format(1))
    assert page.run(states) == [None, "ascending", None, None, None]
    assert page.run(f"{ORDER}(0, 1)") == sorted(before, key=int)
    page.run(click.format(1))
    assert page.run(f"{ORDER}(0, 1)") == sorted(before, key=int, reverse=True)
    page.run(click.format(4))
    values = list(map(float, page.run(f"{ORDER}(0, 4)")))
    assert values == sorted(values)
    page.run(click.format(0))
    assert page.run(f"{ORDER}(0, 1)") == before
    page.open(reports / "comparison.html")
    page.run(click.format(4))
    correlations = page.run(f"{ORDER}(0, 4)")
    assert correlations[1:] == ["", ""]  # what has no number comes last
    assert math.isfinite(float(correlations[0]))
    assert page.complaints == []


def test_a_long_table_shows_its_beginning_until_it_is_asked_for_all(page: Browser, reports: Path) -> None:
    page.open(reports / "scores.html")
    shown = (
        "[...document.querySelector('.list tbody').rows].filter((it) => it.getClientRects().length).length"
    )
    assert page.run(shown) == 25
    page.run("document.querySelector('.list input').click()")
    assert page.run(shown) == len(scores_of(32, 32, 8).select(0.1))


def test_the_pointer_and_the_keys_say_the_number_of_a_head(page: Browser, reports: Path) -> None:
    scores = scores_of(32, 32, 8)
    heads = scores.select(0.1)

    def said(layer: int, head: int) -> str:
        mark = ", selected" if (layer, head) in heads else ""
        value = scores["relative_delta"][layer, head]
        return f"layer {layer}, head {head}, key/value group {head // 4}: relative change {value:.4g}{mark}"

    readout = "document.querySelector('.readout').textContent"
    page.open(reports / "scores.html")
    box = page.run(
        "(() => { const it = document.querySelector('.cells').getBoundingClientRect();"
        "return [it.left, it.top, it.width, it.height]; })()"
    )
    for layer, head in ((0, 0), (3, 17), (20, 31), *heads.pairs()[:2]):
        page.point(box[0] + (head + 0.5) / 32 * box[2], box[1] + (layer + 0.5) / 32 * box[3])
        assert page.run(readout) == said(layer, head)
    page.open(reports / "scores.html")
    page.press("Tab")
    assert page.run("document.activeElement.className") == "cells"
    assert page.run(readout) == said(0, 0)
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowRight"):
        page.press(key)
    assert page.run(readout) == said(1, 1)
    page.press("Tab")
    assert page.run("document.activeElement.closest('.map') === null")  # a map is one stop
    assert page.complaints == []


def test_a_map_of_a_set_and_of_counts_says_what_a_head_is(page: Browser, reports: Path) -> None:
    readout = "document.querySelector('.readout').textContent"
    page.open(reports / "heads.html")
    page.press("Tab")
    assert page.run(readout).removeprefix("layer 0, head 0, key/value group 0: ") in (
        "selected",
        "not selected",
    )
    page.open(reports / "comparison.html")
    page.run("[...document.querySelectorAll('.cells')].at(-1).dispatchEvent(new PointerEvent('pointerdown'))")
    assert page.run(readout).startswith("all tasks, layer 0, head 0, key/value group 0: selected by ")
    assert page.run(readout).endswith(" of 3 tasks")


@pytest.mark.parametrize("name", ["hostile", "hostile comparison"])
def test_text_from_files_runs_nothing(page: Browser, reports: Path, name: str) -> None:
    page.open(reports / f"{name}.html")
    page.press("Tab")
    assert page.run("document.body.textContent.includes(\"<script>alert('x')</script>\")")
    assert "\\x1b[31m\\u202e" in page.run("document.body.textContent")
    assert not set("\x1b\u202e") & set(page.run("document.documentElement.outerHTML"))
    assert page.complaints == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_paper_is_light_and_has_every_row(page: Browser, reports: Path, scheme: str) -> None:
    heads = scores_of(32, 32, 8).select(0.1)
    page.open(reports / "scores.html", 794, scheme, "print")
    assert luminance(page.run("getComputedStyle(document.body).color")) < 0.1
    assert page.run(STICKING_OUT) == []
    printed = PdfReader(io.BytesIO(page.print()))
    texts = [sheet.extract_text() for sheet in printed.pages]
    rows = {tuple(line.split()[1:3]) for text in texts for line in text.splitlines() if line[:1].isdigit()}
    assert {(str(layer), str(head)) for layer, head in heads} <= rows
    assert "Where this comes from" in texts[-1]
    assert "a/tuned" in texts[-1]
    of_table = [text for text in texts if len(text.splitlines()) > 40]
    assert all("layer" in text for text in of_table)  # the headings stand on every page
    assert len(texts) < 10


def test_without_a_script_a_page_shows_the_same(page: Browser, reports: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(reports / "scores.html", 390)
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.querySelectorAll('.spots title').length") == 1024
    assert page.run("document.querySelectorAll('th button').length") == 0
    assert page.run("document.querySelector('.readout').textContent") == ""
    assert page.run(TOO_WIDE) <= 0
    assert page.complaints == []
