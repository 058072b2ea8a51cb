"""Maps of layers x heads in a terminal: what a cell shows, in which colours, and that no line is too long."""

import io
import re
from typing import Any

import numpy as np
import pytest
from rich.color import Color
from rich.console import Console

from alps import HeadSet
from alps.visual import terminal_colours
from alps.visual.terminal_map import count_map, head_map, set_map, task_map
from support.scores import small_geometry


def wide(heads: int, layers: tuple[int, ...] = (0, 1), width: int = 80) -> list[str]:
    geometry = small_geometry(query_heads=heads, key_value_heads=1, layers=layers)
    numbers = np.arange(geometry.heads, dtype=np.float64).reshape(geometry.shape)
    console = Console(width=width)
    selection = HeadSet.from_pairs([(layers[-1], heads - 1)], geometry)
    return head_map(console, geometry, numbers, selection).plain.splitlines()


@pytest.mark.parametrize("heads", [1, 4, 32, 37, 38, 64, 71, 74, 75, 96, 97, 128, 149, 256, 1000])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_map_fits_the_terminal(heads: int, width: int) -> None:
    ruler, first, last, *legend = wide(heads, width=width)
    assert max(map(len, (ruler, first, last, *legend))) <= width
    assert len(first) == len(last)
    assert first.startswith("    0 ·")
    assert last.endswith("█")
    assert "█ selected" in "   ".join(legend)


def test_a_wide_map_merges_heads_evenly() -> None:
    ruler, first, *_, legend = wide(128)
    assert len(first) == len("    0 ") + 64
    assert ruler.split() == ["layer", "0", "16", "32", "48", "64", "80", "96", "112"]
    assert "a cell is 2 heads" in legend


def test_a_merged_cell_shows_the_highest_score() -> None:
    geometry = small_geometry(query_heads=100, key_value_heads=1, layers=(0,))
    numbers = np.zeros((1, 100))
    numbers[0, 1] = 1.0
    numbers[0, 2:4] = np.nan
    row = head_map(Console(width=80), geometry, numbers, None).plain.splitlines()[1]
    assert row[6:9] == "▓ ·"


def in_colour(heads: int, width: int = 80, **options: Any) -> Console:
    """A terminal that shows colours, with a map on it whose head 2 has no number and whose last is selected."""
    geometry = small_geometry(query_heads=heads, key_value_heads=1)
    numbers = np.arange(geometry.heads, dtype=np.float64).reshape(geometry.shape)
    numbers[0, 2] = np.nan
    settings: dict[str, Any] = {
        "force_terminal": True,
        "color_system": "truecolor",
        "file": io.StringIO(),
        "record": True,
    }
    console = Console(width=width, **settings | options)
    selection = HeadSet.from_pairs([(3, heads - 1)], geometry)
    console.print(head_map(console, geometry, numbers, selection))
    return console


def oranges(console: Console) -> set[str]:
    """The colours of selected heads, as an escape sequence has them."""
    of = (terminal_colours.SELECTED["unknown"].colour(shade / 10_000, console) for shade in range(10_001))
    return {";".join(map(str, Color.parse(colour).get_truecolor())) for colour in of}


@pytest.mark.parametrize(
    ("heads", "cell"), [(4, "  "), (37, "  "), (38, " "), (74, " "), (75, "half"), (148, "half")]
)
def test_a_map_in_colour_has_a_cell_for_every_head_as_long_as_it_fits(heads: int, cell: str) -> None:
    lines = in_colour(heads).export_text(styles=True).splitlines()
    console = in_colour(heads)
    plain = console.export_text().splitlines()
    assert max(map(len, plain)) <= 80
    assert "a cell is" not in "".join(plain)
    marked = "255;150;40"  # the highest score, which the selected head has
    assert marked in oranges(console)
    last = lines[3]
    characters = re.findall(r"\x1b\[([\d;]*)m([ ▌▐]+)\x1b\[0m", last)
    if cell == "half":
        assert len(characters) == -(-heads // 2)
        assert last.count(marked) == 1
        assert "▐" in lines[1]  # the head without a number leaves its half as it is
    else:
        assert [text for _, text in characters] == [cell] * heads
        assert [style for style, _ in characters].count(f"48;2;{marked}") == 1
        assert characters[-1][0] == f"48;2;{marked}"
    assert "selected" in plain[-1]


def test_the_colour_of_a_selected_head_says_how_high_it_scores() -> None:
    geometry = small_geometry(query_heads=8, key_value_heads=1, layers=(0,))
    numbers = np.arange(8, dtype=np.float64)[None]
    console = Console(
        color_system="truecolor", force_terminal=True, file=io.StringIO(), record=True, width=80
    )
    console.print(head_map(console, geometry, numbers, HeadSet.from_mask(numbers > 3, geometry)))
    row = console.export_text(styles=True).splitlines()[1]
    colours = re.findall(r"48;2;(\d+;\d+;\d+)m", row)
    assert len(set(colours)) == 8
    assert [colour in oranges(console) for colour in colours] == [False] * 4 + [True] * 4


def lightness(colour: str) -> float:
    """The relative luminance of a colour."""
    channels = (channel / 255 for channel in Color.parse(colour).get_truecolor())
    linear = (
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels
    )
    return float(np.dot([0.2126, 0.7152, 0.0722], list(linear)))


@pytest.mark.parametrize("system", ["truecolor", "256"])
@pytest.mark.parametrize(("background", "sign"), [("dark", 1), ("light", -1), ("unknown", 1)])
def test_ramps_keep_their_order_in_lightness(
    system: Any, background: terminal_colours.Background, sign: int
) -> None:
    console = Console(color_system=system, force_terminal=True)
    for ramps in (terminal_colours.SCORES, terminal_colours.SELECTED):
        colours = [ramps[background].colour(shade, console) for shade in np.linspace(0, 1, 40).tolist()]
        distinct = list(dict.fromkeys(colours))
        assert len(distinct) >= 5
        lights = [sign * lightness(colour) for colour in distinct]
        assert lights == sorted(lights)
        if background == "unknown":  # seen on black and on white
            assert all(0.01 < lightness(colour) < 0.85 for colour in distinct)
    if system == "256":
        assert all(re.fullmatch(r"color\(\d+\)", colour) for colour in colours)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("15;0", "dark"),
        ("0;15", "light"),
        ("0;default;7", "light"),
        ("12;8", "dark"),
        ("", "unknown"),
        ("x", "unknown"),
    ],
)
def test_a_terminal_says_whether_its_background_is_light(
    said: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORFGBG", said)
    assert terminal_colours.background() == expected


@pytest.mark.parametrize(
    "options",
    [
        {"no_color": True},
        {"color_system": None},
        {"color_system": "standard"},
        {"_environ": {"NO_COLOR": "1"}},
    ],
)
def test_a_map_without_colours_uses_characters(options: dict[str, Any]) -> None:
    shown = in_colour(4, **options).export_text()
    assert "    0 ····  ░░" in shown
    assert "    3 ▒▒▓▓▓▓██" in shown
    assert "blank: no number" in shown


def test_a_count_map_is_filled_where_all_agree() -> None:
    geometry = small_geometry(layers=(0,))
    shown = count_map(Console(width=80), geometry, np.array([[0, 1, 2, 3]]), 3).plain
    assert shown.splitlines()[1:] == ["    0 ··▒▒▓▓██", "·░▒▓ selected by 0 to 2 of 3 tasks   █ all"]


def test_two_values_have_a_swatch_each_instead_of_a_scale() -> None:
    geometry = small_geometry(layers=(0,))
    console = Console(width=80)
    shown = head_map(console, geometry, np.array([[0.0, 2.5, 0.0, 2.5]]), None).plain
    assert shown.splitlines()[1:] == ["    0 ··▓▓··▓▓", "· score 0   ▓ score 2.5"]
    shown = head_map(console, geometry, np.full((1, 4), 1.5), None).plain
    assert shown.splitlines()[-1] == "· score 1.5"
    shown = set_map(console, HeadSet.from_pairs([(0, 2)], geometry)).plain
    assert shown.splitlines()[1:] == ["    0 ····██··", "· not selected   █ selected"]


def sets(*heads: list[int], count: int = 8, layers: tuple[int, ...] = (0,)) -> dict[str, HeadSet]:
    """A task for each list of heads of the first layer."""
    geometry = small_geometry(query_heads=count, key_value_heads=1, layers=layers)
    return {
        f"task{n}": HeadSet.from_pairs([(0, head) for head in of], geometry) for n, of in enumerate(heads)
    }


def test_a_map_of_tasks_says_whose_each_head_is() -> None:
    shown = task_map(Console(width=80), sets([0, 1], [1, 2])).plain
    assert shown.splitlines()[1:] == [
        "    0 AA██BB··········",
        "A task0   B task1   █ both   · none",
    ]
    shown = task_map(Console(width=80), sets([0, 1, 3], [1, 2, 3], [3, 4])).plain
    assert shown.splitlines()[1:] == [
        "    0 AA22BB██CC······",
        "A task0   B task1   C task2   2 2 of 3   █ all   · none",
    ]


def test_a_map_of_many_tasks_shows_how_many_select_each_head() -> None:
    tasks = len(terminal_colours.TASKS) + 1
    shown = task_map(Console(width=80), sets(*[[0]] * tasks)).plain
    assert shown.splitlines()[-1].startswith(f"·░▒▓ selected by 0 to {tasks - 1} of {tasks} tasks   █ all")


@pytest.mark.parametrize(("heads", "width"), [(4, 40), (32, 80), (128, 80), (128, 40), (1000, 80)])
@pytest.mark.parametrize("colour", [None, "256"])
def test_a_map_of_tasks_fits_the_terminal(heads: int, width: int, colour: Any) -> None:
    console = Console(width=width, color_system=colour, force_terminal=True, file=io.StringIO(), record=True)
    console.print(task_map(console, sets([0], [heads - 1], count=heads)))
    lines = console.export_text(clear=False).splitlines()
    assert max(map(len, lines)) <= width
    assert re.match(r"    0 A", lines[1])
    assert lines[1].rstrip().endswith("B" if colour else ("B", "BB"))
    if colour:
        styled = console.export_text(styles=True)
        assert f"48;5;{terminal_colours.TASKS[0]}m" in styled
        assert f"48;5;{terminal_colours.TASKS[1]}m" in styled
