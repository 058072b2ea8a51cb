"""Scores: their files, and the arguments that a scan passes on."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

import alps
from alps import ArgumentError, CheckpointError, HeadScores, _alps, sources
from support.scores import scores, small_geometry, small_scores


def test_scores_are_a_mapping_of_read_only_arrays() -> None:
    scores = small_scores()
    assert scores.statistics == tuple(scores) == ("relative_delta", "kl", "wasserstein_z")
    assert scores.layers == (0, 2, 3)
    assert "kl" in scores
    assert "js" not in scores
    assert scores["kl"].dtype == np.float64
    with pytest.raises(KeyError, match="there are relative_delta, kl"):
        scores["js"]
    for same in (scores, copy.deepcopy(scores)):
        with pytest.raises(ValueError, match="read-only"):
            same["kl"][0, 0] = 1
    assert repr(scores) == (
        "HeadScores(llama, 3 layers x 4 heads, 2 key/value groups: relative_delta, kl, wasserstein_z)"
    )


def test_not_a_number_equals_itself() -> None:
    assert small_scores() == small_scores()
    assert small_scores() != HeadScores({"kl": small_scores()["kl"]}, small_geometry())
    assert small_scores() != HeadScores(dict(small_scores()), small_geometry(head_size=7))
    assert small_scores() != 3


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"kl: .*\(3, 4\).*\(4, 3\)"):
        HeadScores({"kl": np.zeros((4, 3))}, small_geometry())
    with pytest.raises(ArgumentError, match="at least one"):
        HeadScores({}, small_geometry())


def test_top_heads_are_ranked_as_they_are_selected() -> None:
    scores = small_scores()
    assert scores.top(3) == [(0, 1, 0.9), (0, 2, 0.8), (2, 0, 0.7)]
    assert scores.top(1, "kl") == [(2, 2, 0.0)]
    assert scores.top(0) == []
    layer, head, score = scores.top(100, "wasserstein_z")[-1]
    assert (layer, head) == (0, 1)
    assert math.isnan(score)
    with pytest.raises(ArgumentError, match="-1"):
        scores.top(-1)
    with pytest.raises(ArgumentError, match="js"):
        scores.top(1, "js")


def test_the_only_statistic_is_the_default() -> None:
    geometry = small_geometry()
    numbers = np.arange(12.0).reshape(3, 4)
    assert HeadScores({"kl": numbers}, geometry).select(0.01).pairs() == [(3, 3)]
    with pytest.raises(ArgumentError, match="'relative_delta'; they hold kl, js; name the one"):
        HeadScores({"kl": numbers, "js": numbers}, geometry).select()


@given(scores=scores())
def test_saved_scores_load_unchanged(tmp_path_factory: pytest.TempPathFactory, scores: HeadScores) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    scores.save(path)
    assert HeadScores.load(path) == scores


def test_a_file_keeps_order_and_provenance_and_is_reproducible(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    small_scores().save(one)
    loaded = HeadScores.load(one)
    assert loaded.statistics == small_scores().statistics
    assert loaded.provenance == small_scores().provenance
    loaded.save(two)
    assert one.read_bytes() == two.read_bytes()


def document(**changes: Any) -> dict[str, str]:
    fields = {
        "format": "alps-scores",
        "version": 1,
        "statistics": ["kl"],
        "geometry": small_geometry().to_fields(),
        "provenance": {},
    }
    return {"alps": json.dumps(fields | changes)}


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "expected scores of alps"),
        ({"alps": "x"}, "not a JSON document"),
        (document(format="alps-heads"), "format"),
        (document(version=9), "version"),
        (document(statistics=["js"]), "statistics: .*kl.*js"),
        (document(statistics=[3]), "statistics"),
        (document(geometry={}), "geometry.component: missing"),
        (document(geometry=small_geometry(layers=(0,)).to_fields()), r"\(1, 4\)"),
        (document(provenance={"base": 1}), "provenance.base"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, metadata: dict[str, str], said: str
) -> None:
    path = tmp_path / "scores.safetensors"
    save_file({"kl": np.zeros((3, 4))}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=said) as refusal:
        HeadScores.load(path)
    assert str(path) in str(refusal.value)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    fields = small_geometry().to_fields()
    fields["family"] = fields.pop("layout")
    save_file({"kl": np.zeros((3, 4))}, tmp_path / "scores", metadata=document(geometry=fields))
    assert HeadScores.load(tmp_path / "scores").geometry == small_geometry()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save_file({"kl": np.zeros((3, 4), dtype=np.float32)}, path, metadata=document())
    with pytest.raises(CheckpointError, match="kl: expected F64, found F32"):
        HeadScores.load(path)
    for content in (b"", b"{}", b"\0" * 8, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            HeadScores.load(path)
    with pytest.raises(FileNotFoundError):
        HeadScores.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        HeadScores.load(tmp_path)


def arguments_of(geometry: alps.Geometry) -> dict[str, Any]:
    """What the extension gives to `Geometry.of_layers`."""
    fields = geometry.to_fields()
    names = ("model_type", "layout", "component", "layers")
    return {name: fields[name] for name in names} | {"sizes": [sizes._asdict() for sizes in geometry.sizes]}


class FakePair:
    """What `_alps.Pair` was asked, and answers of the right shape."""

    def __init__(self) -> None:
        self.opened: tuple[Any, ...] = ()
        self.asked: list[Any] = []

    def __call__(self, *arguments: Any) -> "FakePair":
        self.opened = arguments
        return self

    def geometry(self) -> dict[str, Any]:
        return arguments_of(small_geometry())

    def files(self) -> tuple[list[tuple[str, int, str]], list[tuple[str, int, str]]]:
        return [("model.safetensors", 8, "1")], [("model.safetensors", 8, "2")]

    def layer_bytes(self) -> list[int]:
        return [1, 1, 1]

    def scan(self, *arguments: Any) -> dict[str, Any]:
        *self.asked, finished, _ = arguments
        names = [*alps.statistics.resolve(None, arguments[0])]
        if arguments[2]:
            names.append("sorted_wasserstein")
        for place in arguments[6]:
            finished(place, {name: np.ones(4) for name in names})
        return {
            "base": {"files": "model.safetensors", "adapter": None, "quantisation": None, "note": None},
            "tuned": {
                "files": "adapter_model.safetensors over model.safetensors",
                "adapter": "LORA",
                "quantisation": "NVFP4",
                "note": None,
            },
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePair:
    fake = FakePair()
    monkeypatch.setattr(_alps, "Pair", fake)
    monkeypatch.setattr(_alps, "geometry", lambda path, component: arguments_of(small_geometry()))
    return fake


def test_scan_returns_every_one_pass_statistic(fake: FakePair, tmp_path: Path) -> None:
    scores = alps.scan(tmp_path, tmp_path)
    paths = ((str(tmp_path), None), None), ((str(tmp_path), None), None)
    assert fake.opened == (*paths, None)
    assert fake.asked == ["qkv", 1.0, False, None, True, None, [0, 1, 2]]
    assert scores.statistics == alps.statistics.resolve(None, "qkv")
    assert scores.provenance == {
        "base": str(tmp_path),
        "base_files": "model.safetensors",
        "base_file_count": "1",
        "base_bytes": "8",
        "tuned": str(tmp_path),
        "tuned_files": "adapter_model.safetensors over model.safetensors",
        "tuned_adapter": "LORA",
        "tuned_quantisation": "NVFP4",
        "tuned_file_count": "1",
        "tuned_bytes": "8",
        "form": "qkv",
        "temperature": "1.0",
        "alps": alps.__version__,
    }
    assert "changed" not in alps.scan(tmp_path, tmp_path, form="product")


def test_scan_returns_the_statistics_named(fake: FakePair, tmp_path: Path) -> None:
    scores = alps.scan(tmp_path, tmp_path, statistics=["sorted_wasserstein", "kl"], temperature=2, threads=3)
    assert scores.statistics == ("sorted_wasserstein", "kl")
    assert fake.asked == ["qkv", 2, True, 3, True, None, [0, 1, 2]]
    assert scores.provenance["temperature"] == "2.0"
    assert alps.geometry(tmp_path) == small_geometry()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"form": "sum"}, "'sum'; the forms are qkv, product"),
        ({"statistics": ["nope"]}, "'nope'; it has wasserstein, kl"),
        ({"statistics": ["changed"], "form": "product"}, "'product' has no statistic 'changed'"),
        ({"statistics": []}, "no statistic"),
        ({"statistics": "kl"}, r"\['kl'\]"),
        ({"threads": 0}, "0"),
    ],
)
def test_scan_refuses_arguments_before_it_reads(
    fake: FakePair, tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        alps.scan(tmp_path, tmp_path, **arguments)
    assert fake.opened == ()


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_scan_refuses_a_temperature_before_it_reads(tmp_path: Path, temperature: float) -> None:
    with pytest.raises(ArgumentError, match=f"(?i)temperature is {temperature}"):
        alps.scan(tmp_path, tmp_path, temperature=temperature)  # an empty folder, which reading would refuse


class FakeHub:
    """A cache that holds one model."""

    @staticmethod
    def try_to_load_from_cache(name: str, file: str, *, revision: str | None) -> object:
        if name == "bad--/name":
            raise ValueError("the name is\nnot valid")
        if (name, revision) not in {("owner/model", None), ("owner/model", "main")}:
            return None
        return f"/cache/snapshots/abc123/{file}" if file == "params.json" else object()

    class constants:  # noqa: N801
        HF_HUB_OFFLINE = True


def test_hub_names_are_looked_up_in_the_cache(monkeypatch: pytest.MonkeyPatch, fake: FakePair) -> None:
    monkeypatch.setattr("alps.sources.importlib.import_module", lambda name: FakeHub)
    scores = alps.scan("owner/model", "owner/model@main")
    assert fake.opened[:2] == ((("/cache/snapshots/abc123", None), None),) * 2
    assert scores.provenance["tuned"] == "owner/model@main"
    assert scores.provenance["tuned_commit"] == "abc123"
    with pytest.raises(FileNotFoundError, match="hf download owner/other --revision v1"):
        sources.find("owner/other@v1")
    with pytest.raises(ArgumentError, match="bad--/name"):
        sources.find("bad--/name")


def test_without_the_hub_a_missing_path_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("alps.sources.importlib.import_module", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install 'alps-heads\[remote\]'"):
        sources.find("owner/model")


@pytest.mark.parametrize("name", ["/no/such/folder", "nothing", "a/b/c", Path("owner/model"), "../x"])
def test_a_name_that_is_no_hub_name_is_a_missing_path(name: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        sources.find(name)
