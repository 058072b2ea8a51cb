"""Figures: their cells, outlines and labels."""

import io
import struct
import subprocess
import sys
import warnings
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import alps
from alps import ArgumentError, Geometry, HeadScores, HeadSet, statistics
from alps.visual import image_file
from alps.visual.head_grid import group_borders, have_uniform_groups
from support.scores import geometries, small_geometry, small_scores

HOSTILE = "long/" * 60 + "$\\frac{}$ <b>&amp;\x00\x1b[31m\n\u202e中文"


def make(layers: int, heads: int, groups: int, **provenance: str) -> HeadScores:
    geometry = small_geometry(layers=tuple(range(layers)), query_heads=heads, key_value_heads=groups)
    numbers = np.random.default_rng(0).gamma(3, 1e-5, size=geometry.shape)
    known = {"base": "base", "tuned": "tuned", "form": "qkv", "temperature": "1.0"}
    return HeadScores({"relative_delta": numbers, "kl": -numbers}, geometry, known | provenance)


def artists(figure: Figure, gid: str) -> list[Any]:
    return [artist for artist in figure.findobj() if artist.get_gid() == gid]


def artist(figure: Figure, gid: str) -> Any:
    (found,) = artists(figure, gid)
    return found


def visible_texts(figure: Figure) -> list[Text]:
    texts = [artist for artist in figure.findobj() if isinstance(artist, Text)]
    return [text for text in texts if text.get_visible() and text.get_text()]


def said(figure: Figure) -> str:
    return " ".join(text.get_text() for text in visible_texts(figure))


def drawn(figure: Figure) -> Any:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return canvas.get_renderer()  # type: ignore[no-untyped-call]


def boxes(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that is drawn, and where; ticks beyond the ends of an axis are not."""
    renderer = drawn(figure)
    hidden = set()
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= {
                id(tick.label1)
                for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                if not low <= tick.get_loc() <= high
            }
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in visible_texts(figure)
        if id(text) not in hidden
    ]


def assert_legible(figure: Figure) -> None:
    texts = boxes(figure)
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text
    for (text, box), (other, other_box) in combinations(texts, 2):
        assert not box.shrunk(0.98, 0.9).overlaps(other_box.shrunk(0.98, 0.9)), (text, other)


SIZES = [(1, 1, 1), (4, 4, 2), (4, 4, 4), (24, 128, 1), (28, 12, 2), (32, 32, 8), (80, 64, 8), (126, 128, 8)]


@pytest.mark.parametrize(
    ("kind", "layers", "heads", "groups"),
    [
        *(("overview", *size) for size in SIZES),
        *((kind, *size) for kind in ("map", "layers", "ranks") for size in ((1, 1, 1), (32, 32, 8))),
    ],
)
def test_nothing_is_cut_and_no_labels_overlap(kind: Any, layers: int, heads: int, groups: int) -> None:
    scores = make(
        layers, heads, groups, base="/a/rather/long/path/to/a/base-model", tuned="/and/another/one" * 3
    )
    assert_legible(scores.plot(scores.select(0.1), kind=kind))


@pytest.mark.parametrize(("layers", "heads", "groups"), [(4, 4, 2), (32, 32, 8), (126, 128, 8)])
def test_maps_of_sets_and_of_several_tasks_are_legible(layers: int, heads: int, groups: int) -> None:
    scores = make(layers, heads, groups)
    chosen = scores.select(0.1)
    assert_legible(chosen.plot())
    tasks: dict[str, HeadScores | HeadSet] = {
        "code": scores,
        "a name that is much too long for its place in the picture" * 2: chosen,
    }
    assert_legible(alps.compare(tasks).plot())
    assert_legible(alps.compare(tasks | {str(number): chosen for number in range(3)}).plot())


def test_the_map_has_a_cell_for_every_head_and_an_outline_for_every_selected_one() -> None:
    scores = small_scores()
    heads = scores.select(0.25)
    figure = scores.plot(heads, kind="map", statistic="wasserstein_z")
    image = artist(figure, "scores")
    assert np.array_equal(image.get_array().filled(np.nan), scores["wasserstein_z"], equal_nan=True)
    assert list(image.get_extent()) == [-0.5, 3.5, 2.5, -0.5]
    outlines = artist(figure, "selected").get_paths()
    centres = [path.vertices[:4].mean(axis=0) for path in outlines]
    assert np.allclose(centres, [(head, row) for row, head in np.argwhere(heads.mask)])
    assert all(np.ptp(path.vertices, axis=0).max() <= 1 for path in outlines)
    borders = artist(figure, "groups").get_segments()
    assert [segment[0][0] for segment in borders] == [1.5]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["0", "2", "3"]  # the layers' own numbers


def test_heads_that_share_nothing_have_no_borders() -> None:
    figure = make(4, 4, 4).plot(kind="map")
    assert artists(figure, "groups") == []
    assert "K/V" not in said(figure)
    assert "K/V group" in said(make(4, 4, 1).plot(kind="map"))


@given(geometry=geometries())
def test_a_border_separates_each_two_groups(geometry: Geometry) -> None:
    layers, heads = geometry.shape
    shared = geometry.heads_per_group > 1
    expected = {
        (row, head)
        for row in range(layers)
        for head in range(1, heads)
        if shared and geometry.group_of(head) != geometry.group_of(head - 1)
    }
    found = [(first + step, head) for head, first, rows in group_borders(geometry) for step in range(rows)]
    assert sorted(found) == sorted(expected)
    assert have_uniform_groups(geometry) == shared


def test_colours_begin_at_0_and_never_decrease_in_darkness() -> None:
    figure = make(8, 8, 2).plot(kind="map")
    image = artist(figure, "scores")
    assert image.norm.vmin == 0
    assert image.norm.vmax == image.get_array().max()
    lightness = [np.dot(image.cmap(share)[:3], (0.2126, 0.7152, 0.0722)) for share in np.linspace(0, 1, 50)]
    assert all(one > other for one, other in pairwise(lightness))
    below = artist(small_scores().plot(kind="map", statistic="kl"), "scores")
    assert (below.norm.vmin, below.norm.vmax) == (-0.9, 0)


def test_a_head_without_a_number_is_hatched() -> None:
    figure = small_scores().plot(statistic="wasserstein_z")
    assert figure.axes[0].patch.get_hatch()
    assert artist(figure, "scores").get_array().mask.sum() == 1
    assert "Hatched: 1 without a number" in said(figure)
    assert "Hatched" not in said(small_scores().plot())


def test_the_cut_is_after_the_last_selected_head() -> None:
    scores = make(10, 10, 5)
    figure = scores.plot(scores.select(0.17), kind="ranks")
    assert list(artist(figure, "cut").get_xdata()) == [17.5, 17.5]
    assert "the 17 best of 100 heads" in said(figure)
    every = artist(figure, "heads").get_offsets()
    assert np.array_equal(every[:, 1], np.sort(scores["relative_delta"].ravel())[::-1])
    assert np.array_equal(artist(figure, "selected").get_offsets(), every[:17])


def test_a_selection_by_other_means_has_no_cut() -> None:
    scores = make(10, 10, 5)
    drawn_by_lot = scores.select(rule="random")
    figure = scores.plot(drawn_by_lot, kind="ranks")
    assert artists(figure, "cut") == []
    assert len(artist(figure, "selected").get_offsets()) == len(drawn_by_lot)
    for heads in (None, scores.select(0), scores.select(1.0)):
        assert artists(scores.plot(heads, kind="ranks"), "cut") == []


def test_the_profile_shows_every_head_and_the_means() -> None:
    scores = small_scores()
    figure = scores.plot(scores.select(0.25), kind="layers")
    assert len(artist(figure, "heads").get_offsets()) == 12
    assert np.allclose(artist(figure, "mean").get_ydata(), scores["relative_delta"].mean(axis=1))
    assert sorted(artist(figure, "selected").get_offsets()[:, 1]) == [0.7, 0.8, 0.9]


def test_the_titles_say_what_is_shown() -> None:
    scores = make(4, 4, 2)
    text = said(scores.plot(scores.select(0.1), statistic=None))
    for part in (
        "by relative_delta",
        "base → tuned",
        "form qkv, temperature 1",
        "2 of 16 heads",
        "rule global, statistic relative_delta, ratio 0.1",
        "10⁻⁵",
    ):
        assert part in text
    assert "nats" in said(scores.plot(kind="map", statistic="kl"))
    published = HeadScores({"wasserstein": scores["relative_delta"]}, scores.geometry)
    assert "of the vector's length" in said(published.plot(kind="map"))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_heads_without_a_finite_score_can_be_drawn(number: float) -> None:
    scores = make(2, 4, 2)
    without = HeadScores({"kl": np.full(scores.geometry.shape, number)}, scores.geometry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(without.plot())


def test_every_statistic_has_a_description() -> None:
    assert set(statistics.MEANINGS) == set(alps.STATISTICS)
    assert set(statistics.NAMES) == set(alps.STATISTICS)
    assert set(statistics.UNITS) <= set(alps.STATISTICS)


def test_a_comparison_has_a_map_for_each_task_and_one_of_all() -> None:
    scores = make(6, 8, 2)
    heads = scores.select(0.2)
    comparison = alps.compare({"one": scores, "two": heads, "three": scores.select(0.4)})
    figure = comparison.plot()
    assert np.array_equal(artist(figure, "counts").get_array(), comparison.counts)
    assert np.array_equal(artist(figure, "scores").get_array(), scores["relative_delta"])
    outlines, *masks = artists(figure, "selected")
    assert len(outlines.get_paths()) == len(scores.select(0.1))
    assert [int(mask.get_array().sum()) for mask in masks] == [len(heads), len(scores.select(0.4))]
    assert {"one", "two", "three"} <= {text.get_text() for text in visible_texts(figure)}


@st.composite
def drawable(draw: st.DrawFn) -> HeadScores:
    geometry = draw(geometries())
    size = st.floats(1e-100, 1e100)
    number = st.one_of(size, size.map(lambda value: -value), st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    return HeadScores({"kl": draw(arrays.arrays(np.float64, geometry.shape, elements=number))}, geometry)


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's font has not every letter that a name may have
@settings(max_examples=10, deadline=None)
@given(scores=drawable(), ratio=st.floats(0, 1))
def test_any_scores_can_be_drawn(scores: HeadScores, ratio: float) -> None:
    drawn(scores.plot(scores.select(ratio)))


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_names_with_special_characters_are_drawn_as_they_are_or_escaped(form: str) -> None:
    scores = make(4, 4, 2, base=HOSTILE, tuned=HOSTILE, temperature=HOSTILE)
    named = HeadScores({HOSTILE: scores["kl"]}, scores.geometry, scores.provenance)
    for figure in (
        named.plot(named.select()),
        named.select().plot(),
        alps.compare({HOSTILE: named, "b": named}).plot(),
    ):
        assert image_file.encode(figure, form)
        shown = said(figure)
        assert "\\x00\\x1b[31m\\n\\u202e中文" in shown
        assert not set("\x00\x1b\u202e") & set(shown)
        assert max(map(len, (text.get_text() for text in visible_texts(figure)))) < 200


def test_the_same_scores_give_the_same_bytes() -> None:
    scores = small_scores()
    for form in ("png", "svg", "pdf"):
        one, other = (image_file.encode(scores.plot(scores.select(), kind="map"), form) for _ in range(2))
        assert one == other


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda scores: scores.plot(kind="pie"), "'pie'; there are overview, map, layers, ranks"),
        (lambda scores: scores.plot(statistic="js"), "'js'"),
        (
            lambda scores: scores.plot(HeadSet.from_pairs([], small_geometry(head_size=5))),
            "head_size 2 and 5",
        ),
        (
            lambda scores: HeadSet.from_pairs([], small_geometry(layers=())).plot(),
            "no attention",
        ),
    ],
)
def test_figures_refuse_unsuitable_arguments(call: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        call(small_scores())


def test_the_settings_of_matplotlib_stay_unchanged() -> None:
    plain = image_file.encode(small_scores().plot(), "png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "image.cmap": "jet"}):
        before = dict(mpl.rcParams)
        figure = small_scores().plot()
        assert dict(mpl.rcParams) == before
        assert image_file.encode(figure, "png") == plain
    code = (
        "import sys; sys.path.insert(0, 'tests'); from support.scores import small_scores; import io;"
        "small_scores().plot(small_scores().select()).savefig(io.BytesIO());"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_notebook_shows_a_picture_of_twice_the_density() -> None:
    heads = small_scores().select()
    for figure in (small_scores().plot(), heads.plot(), alps.compare({"a": heads, "b": heads}).plot()):
        picture, size = figure._repr_png_()  # type: ignore[attr-defined]
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)


def test_a_figure_can_be_saved_with_savefig() -> None:
    content = io.BytesIO()
    small_scores().plot().savefig(content, format="png")
    assert content.getvalue().startswith(b"\x89PNG")
