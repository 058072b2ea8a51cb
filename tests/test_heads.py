"""Head sets: their operations, and their files."""

import copy
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alps import ArgumentError, CheckpointError, Geometry, HeadSet
from alps.files import write_whole
from support.scores import head_sets, small_geometry

PAIRS = [(0, 1), (2, 0), (2, 3), (3, 2)]


def small_set() -> HeadSet:
    return HeadSet.from_pairs(PAIRS, small_geometry())


def test_pairs_and_masks_agree() -> None:
    heads = HeadSet.from_pairs(reversed(PAIRS), small_geometry())
    mask = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=bool)
    assert heads == HeadSet.from_mask(mask, small_geometry())
    assert heads.pairs() == list(heads) == PAIRS
    assert len(heads) == 4
    assert (2, 3) in heads
    assert (2, 2) not in heads
    assert (1, 0) not in heads
    assert "head" not in heads
    assert np.array_equal(heads.key_value_groups, [[True, False], [True, True], [False, True]])


def test_a_head_set_cannot_change() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    heads = HeadSet.from_mask(mask, small_geometry())
    mask[0, 0] = True
    assert len(heads) == 0
    for same in (heads, copy.deepcopy(heads), pickle.loads(pickle.dumps(heads))):
        assert same == heads
        assert hash(same) == hash(heads)
        with pytest.raises(ValueError, match="read-only"):
            same.mask[0, 0] = True


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ((1, 0), "layer 1.*0, 2-3"),
        ((-1, 0), "layer -1"),
        ((0, 4), "head 4.*0 to 3"),
        ((0, -1), "head -1"),
        ((0, 1.5), "1.5"),
        ((0,), "found"),
        (3, "found 3"),
    ],
)
def test_a_pair_out_of_range_is_named(pair: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        HeadSet.from_pairs([pair], small_geometry())


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\(3, 4\).*\(4, 3\)"):
        HeadSet.from_mask(np.zeros((4, 3), dtype=bool), small_geometry())
    with pytest.raises(ArgumentError, match="int64"):
        HeadSet.from_mask(np.zeros((3, 4), dtype=np.int64), small_geometry())


def test_a_model_without_attention_has_an_empty_set() -> None:
    heads = HeadSet.from_pairs([], small_geometry(layers=()))
    assert heads.pairs() == []
    assert heads.key_value_groups.shape == (0, 2)
    assert heads.report.share == 0


def test_the_report_counts_each_group_once() -> None:
    report = small_set().report
    assert (report.heads, report.total_heads) == (4, 12)
    assert (report.key_value_groups, report.total_key_value_groups) == (4, 6)
    assert (report.trainable_parameters, report.total_parameters) == (4 * 20 + 4 * 50, 12 * 20 + 6 * 50)
    assert report.share == 280 / 540
    assert str(report) == ("4 of 12 heads, 4 of 6 key/value groups, 280 of 540 Q/K/V parameters (51.9 %)")


@given(st.data())
def test_operations_are_those_of_sets(data: st.DataObject) -> None:
    pairs = st.sets(st.sampled_from([(layer, head) for layer in (0, 2, 3) for head in range(4)]))
    one, other = data.draw(pairs), data.draw(pairs)
    left, right = (HeadSet.from_pairs(pairs, small_geometry()) for pairs in (one, other))
    assert set(left | right) == set(left.union(right)) == one | other
    assert set(left & right) == set(left.intersection(right)) == one & other
    assert set(left - right) == set(left.difference(right)) == one - other
    assert set(left ^ right) == set(left.symmetric_difference(right)) == one ^ other
    assert left.jaccard(right) == (len(one & other) / len(one | other) if one | other else 1.0)
    assert (left == right) == (one == other)


def test_sets_of_two_geometries_are_refused_with_what_differs() -> None:
    other = HeadSet.from_pairs(PAIRS, small_geometry(layers=(0, 1, 2, 3), head_size=8))
    assert small_set() != other
    for combine in (HeadSet.union, HeadSet.intersection, HeadSet.difference, HeadSet.jaccard):
        with pytest.raises(ArgumentError, match="layers 0, 2-3 and 0-3, head_size 2 and 8"):
            combine(small_set(), other)
    with pytest.raises(TypeError):
        small_set() | set(PAIRS)  # type: ignore[arg-type]


@given(heads=head_sets())
def test_a_saved_set_loads_unchanged(tmp_path_factory: pytest.TempPathFactory, heads: HeadSet) -> None:
    path = tmp_path_factory.mktemp("heads") / "heads.json"
    heads.save(path)
    loaded = HeadSet.load(path)
    assert loaded == heads
    assert loaded.provenance == heads.provenance
    assert loaded.to_json() == heads.to_json()


def test_the_file_has_a_line_for_each_layer() -> None:
    lines = small_set().to_json().splitlines()
    assert lines[-6:-1] == ['  "heads": {', '    "0": [1],', '    "2": [0, 3],', '    "3": [2]', "  }"]


def spoiled(path: Path, **changes: Any) -> Path:
    """Writes a head set with some fields changed, or removed where the change is None."""
    document = json.loads(small_set().to_json())
    for dotted, value in changes.items():
        *parents, name = dotted.split("__")
        parent = document
        for step in parents:
            parent = parent[step]
        if value is None:
            del parent[name]
        else:
            parent[name] = value
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "format: .*'other'"),
        ({"version": 2}, "version: .*2"),
        ({"geometry": None}, "geometry: missing"),
        ({"note": "x"}, "note: unknown"),
        ({"geometry": 3}, "geometry: expected an object"),
        ({"provenance": {"ratio": 0.1}}, "provenance.ratio: .*0.1"),
        ({"geometry__head_size": None}, "geometry.head_size: missing"),
        ({"geometry__head_size": 0}, "geometry.head_size: .*0"),
        ({"geometry__head_size": True}, "geometry.head_size: .*True"),
        ({"geometry__head_size": 2**70}, "geometry.head_size: "),
        ({"geometry__key_value_heads": 3}, "geometry.key_value_heads: .*3"),
        ({"geometry__model_type": 3}, "geometry.model_type: .*3"),
        ({"geometry__layers": [0, 2, 3]}, "geometry.layers: unknown"),
        ({"heads__3": "x"}, "heads.3: .*'x'"),
        ({"heads__3": [4]}, "heads.3: .*0 to 3.*4"),
        ({"heads__3": [-1]}, "heads.3: .*-1"),
        ({"heads__3": [True]}, "heads.3: .*True"),
        ({"heads__3": [1, 1]}, "heads.3: head 1 stands twice"),
        ({"heads__03": []}, "heads: .*'03'"),
        ({"heads__x": []}, "heads: .*'x'"),
        ({"heads__1": []}, "geometry.layers: .*ascending"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = spoiled(tmp_path / "heads.json", **changes)
    with pytest.raises(CheckpointError, match=said) as refusal:
        HeadSet.load(path)
    assert str(path) in str(refusal.value)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    small_set().save(path)
    path.write_text(path.read_text().replace('"layout": "separate"', '"family": "separate"'))
    assert '"layout"' not in path.read_text()
    assert HeadSet.load(path) == small_set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"3",
    ],
)
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heads.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"heads\.json"):
        HeadSet.load(path)


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeadSet.load(tmp_path / "heads.json")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=str(2**40)):
        HeadSet.load(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heads.json"
    write_whole(path, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left.*heads\.json"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "other").touch()
    ours, other = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "other"))
    assert ours == other


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_whole(tmp_path / "pipe", b"")
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, b"")
    with pytest.raises(FileNotFoundError, match="missing"):
        write_whole(tmp_path / "missing" / "file", b"")


def test_geometry_knows_rows_and_groups() -> None:
    geometry = small_geometry()
    assert geometry.shape == (3, 4)
    assert geometry.heads == 12
    assert [geometry.group_of(head) for head in range(4)] == [0, 0, 1, 1]
    assert [sizes.heads_per_group for sizes in geometry.sizes] == [2, 2, 2]
    assert [geometry.row_of(layer) for layer in geometry.layers] == [0, 1, 2]
    assert str(geometry) == "llama, 3 layers x 4 heads, 2 key/value groups"
    assert Geometry.from_fields(geometry.to_fields()) == geometry
    with pytest.raises(ArgumentError, match="4 query heads cannot share 3"):
        small_geometry(key_value_heads=3)
