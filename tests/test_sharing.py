"""Head sets and scores in folders and in repositories of the hub, with their model cards."""

from __future__ import annotations

import html
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import alps
from alps import markdown
from alps.escaping import escape
from support.scores import small_geometry, small_scores
from support.servers import COMMIT, Server, serve, use_hub

# huggingface_hub gives httpx a file as `data`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "owner/heads"
PNG = b"\x89PNG"
HOSTILE = {
    "a line": "base\n\n# You have been chosen",
    "metadata": "base\n---\nlicense: mit\n---\n",
    "a code span": "a`b``c```d",
    "a fence": "```\n<b>",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "the end of a section": "base <!-- /alps --> <!-- /alps:heads --> <!-- /alps:scores -->",
    "a cell": "a | b | c",
    "a link": "[click](https://example.org) https://example.org www.example.org <https://example.org>",
    "a picture": "![](https://example.org/x.png)",
    "a mention": "@everyone #1",
    "an escape sequence": "\x1b[31mred\x07",
    "the other direction": "\u202egnp.exe",
    "half a pair": "\ud800",
    "a mathematical sign": "$\\frac{$ x_1 ^ {",
    "nothing": "",
    "a long name": "x" * 100_000,
}


def chosen(**provenance: str) -> alps.HeadSet:
    heads = small_scores().select(0.3)
    return alps.HeadSet(heads.mask, heads.geometry, heads.provenance | provenance)


def card_of(page: str) -> Any:
    return ModelCard(page)


def rendered(page: str) -> str:
    """The page without its metadata as HTML."""
    html_of: str = MarkdownIt("commonmark", {"html": True}).enable("table").render(card_of(page).text)
    return html_of


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A stand-in for the hub, of which nothing is in the cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "hub").mkdir()
    with serve(tmp_path / "hub", hub=True, token="hf_secret") as server:
        use_hub(monkeypatch, server)
        yield server


def test_a_folder_has_the_file_a_map_and_a_card(tmp_path: Path) -> None:
    heads, scores = chosen(), small_scores()
    folder = tmp_path / "made" / "here"
    heads.save_pretrained(folder)
    assert {it.name for it in folder.iterdir()} == {"heads.json", "heads.png", "README.md"}
    scores.save_pretrained(folder)
    assert (folder / "scores.png").read_bytes().startswith(PNG)
    assert (
        alps.HeadSet.from_pretrained(folder) == heads == alps.HeadSet.from_pretrained(folder / "heads.json")
    )
    assert alps.HeadSet.from_pretrained(str(folder)).provenance == heads.provenance
    assert alps.HeadScores.from_pretrained(folder) == scores
    card = card_of((folder / "README.md").read_text())
    assert card.data.tags == ["alps", "attention-heads"]
    assert card.data.base_model is None  # a folder called "base" is no model on the hub
    for text in (
        "4 of 12 heads",
        "![A map of the selected heads by layer](heads.png)",
        "| 2 | 0, 3 |",
        "relative_delta",
    ):
        assert text in card.text
    assert 'alps.HeadScores.from_pretrained("' in card.text


def test_saving_again_replaces_the_section_and_nothing_else(tmp_path: Path) -> None:
    page = "---\nlicense: apache-2.0\nbase_model: owner/other\ntags:\n- mine\n---\n# Mine\n\nText.\n"
    (tmp_path / "README.md").write_text(page)
    chosen(rule="first").save_pretrained(tmp_path, base_model="owner/base")
    chosen(rule="second").save_pretrained(tmp_path, base_model="owner/base")
    card = card_of((tmp_path / "README.md").read_text())
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "owner/other"  # what somebody wrote is left
    assert card.data.tags == ["mine", "alps", "attention-heads"]
    assert card.text.count("## Attention heads") == card.text.count("# Mine\n\nText.") == 1
    assert "second" in card.text
    assert "first" not in card.text


def test_a_repository_is_made_and_read(hub: Server) -> None:
    heads = chosen(base="owner/base@main", base_commit=COMMIT)
    address = heads.push_to_hub(NAME, private=True, commit_message="My heads")
    assert hub.created == [
        {"name": "heads", "organization": "owner", "visibility": "private", "type": "model"}
    ]
    [commit] = hub.commits
    assert address == f"{hub.url}/{NAME}/commit/{commit.oid}"
    assert commit.header == {"summary": "My heads", "description": ""}
    assert commit.files.keys() == {"heads.json", "heads.png", "README.md"}
    assert commit.large == {"heads.png"}
    assert commit.files["heads.png"].startswith(PNG)
    card = card_of(commit.files["README.md"].decode())
    assert card.data.base_model == "owner/base"
    assert f'alps.HeadSet.from_pretrained("{NAME}")' in card.text
    assert alps.HeadSet.from_pretrained(NAME) == heads
    assert alps.HeadSet.from_pretrained(f"{NAME}@main").provenance == heads.provenance


def test_scores_join_heads_and_a_model_in_one_repository(hub: Server) -> None:
    folder = hub.folder / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    scores = small_scores()
    scores.push_to_hub(NAME)
    chosen().push_to_hub(NAME, base_model="owner/base")
    assert hub.commits[0].large == {"scores.png", "scores.safetensors"}
    assert alps.HeadScores.from_pretrained(NAME) == scores
    assert alps.HeadSet.from_pretrained(NAME) == chosen()
    card = card_of((folder / "README.md").read_text())
    assert (card.data.license, card.data.base_model) == ("mit", "owner/base")
    positions = [card.text.index(it) for it in ("# A model", "## Scores of attention", "## Attention heads")]
    assert positions == sorted(positions)
    assert (folder / "config.json").exists()


def test_branches_and_pull_requests(hub: Server) -> None:
    chosen().push_to_hub(NAME)
    other = chosen(rule="other")
    other.push_to_hub(NAME, revision="experiment")
    assert alps.HeadSet.from_pretrained(NAME, revision="experiment").provenance["rule"] == "other"
    assert alps.HeadSet.from_pretrained(NAME).provenance["rule"] == "global"
    address: Any = other.push_to_hub(NAME, create_pr=True, commit_description="Why")
    assert address.pr_url == f"{hub.url}/{NAME}/discussions/1"
    assert [it.is_pull_request for it in hub.commits] == [False, False, True]
    assert hub.commits[-1].header["description"] == "Why"
    assert alps.HeadSet.from_pretrained(NAME).provenance["rule"] == "global"


def test_what_is_in_the_cache_needs_no_network(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen().push_to_hub(NAME)
    with pytest.raises(
        FileNotFoundError, match=r"no heads\.json of such a model is in the hub's local cache"
    ):
        alps.HeadSet.from_pretrained(NAME, local_files_only=True)
    alps.HeadSet.from_pretrained(NAME)
    asked = hub.requests
    assert alps.HeadSet.from_pretrained(NAME, local_files_only=True) == chosen()
    assert hub.requests == asked
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(OSError, match="the hub cannot be asked"):
        alps.HeadScores.from_pretrained(NAME)
    with pytest.raises(OSError, match="the hub cannot be asked"):
        chosen().push_to_hub(NAME)


def test_refusals(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = chosen()
    with pytest.raises(FileNotFoundError, match="no such model on the hub"):
        alps.HeadSet.from_pretrained("owner/nothing")
    heads.push_to_hub(NAME)
    with pytest.raises(FileNotFoundError, match=r"the model has no scores\.safetensors"):
        alps.HeadScores.from_pretrained(NAME)
    with pytest.raises(alps.ArgumentError, match="expected it once"):
        alps.HeadSet.from_pretrained(f"{NAME}@main", revision="main")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        alps.HeadSet.from_pretrained("heads")
    with pytest.raises(FileNotFoundError):
        alps.HeadSet.from_pretrained(tmp_path)
    with pytest.raises(alps.ArgumentError, match="revision goes with a model on the hub"):
        alps.HeadSet.from_pretrained(tmp_path, revision="main")
    with pytest.raises(alps.ArgumentError, match="repo_id"):
        heads.push_to_hub("owner/name\nlicense: mit")
    with pytest.raises(alps.ArgumentError, match="base_model"):
        heads.save_pretrained(tmp_path, base_model="a/b/c")
    (hub.folder / NAME / "heads.json").write_text('{"format": "other"}')
    with pytest.raises(alps.CheckpointError, match="format"):
        alps.HeadSet.from_pretrained(NAME, force_download=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    before = len(hub.commits)
    with pytest.raises((PermissionError, FileNotFoundError), match="hub"):
        heads.push_to_hub(NAME)
    assert len(hub.commits) == before


@pytest.mark.parametrize(
    "page",
    [
        b"---\ntags: 5\n---\n",
        b"---\n- a list\n---\n",
        b"---\na: [\n---\n",
        b"---\nlicense: \x1b[0m\n---\n",
        b"\xff\xfe",
    ],
)
def test_a_card_that_cannot_be_read_is_left(page: bytes, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(page)
    with pytest.raises(alps.CheckpointError, match="README") as raised:
        chosen().save_pretrained(tmp_path)
    assert str(raised.value).isprintable()
    assert (tmp_path / "README.md").read_bytes() == page
    assert len(list(tmp_path.iterdir())) == 1


def hostile_page(text: str, folder: Path) -> str:
    """The card of scores and heads whose file holds a text wherever it can."""
    provenance = {"base": text, "tuned": text, "base_commit": COMMIT, f"name {text[:50]}": text}
    values = small_scores()["relative_delta"]
    name = text[:90].encode(errors="replace").decode() + "*"
    geometry = small_geometry(model_type=text[:200])
    scores = alps.HeadScores({"relative_delta": values, name: values}, geometry, provenance)
    scores.select(0.3).save_pretrained(folder)
    scores.save_pretrained(folder)
    first = (folder / "README.md").read_text()
    scores.select(0.3).save_pretrained(folder)
    assert (folder / "README.md").read_text() == first  # the section was found again
    return first


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hostile_page("base", tmp_path_factory.mktemp("harmless"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_text_from_files_has_no_meaning_in_a_card(text: str, harmless: str, tmp_path: Path) -> None:
    pages = hostile_page(text, tmp_path), harmless
    assert len(pages[0]) < 20_000
    assert "\x1b" not in pages[0]
    metadata = [yaml.safe_load(page.split("---\n")[1]) for page in pages]
    assert metadata[0] == metadata[1]
    parser = MarkdownIt("commonmark").enable("table")
    kinds = [[token.type for token in parser.parse(card_of(page).text)] for page in pages]
    assert kinds[0] == kinds[1]  # the same paragraphs, tables and cells
    shown = [rendered(page) for page in pages]
    elements = [re.findall(r"<(?:/?\w+|!--)", page) for page in shown]
    assert elements[0] == elements[1]


@given(st.text(max_size=150))
def test_inline_code_shows_the_text(text: str) -> None:
    shown = MarkdownIt("commonmark", {"html": True}).renderInline(markdown.code(text))
    assert shown.startswith("<code>")
    assert shown.endswith("</code>")
    line = escape(text)
    if len(line) <= 200:
        assert html.unescape(shown.removeprefix("<code>").removesuffix("</code>")) == line


def test_a_section_is_put_in_place_of_the_old_one() -> None:
    section = "<!-- a -->\nnew\n<!-- /a -->\n"
    for page, expected in {
        "": section,
        "text\n": f"text\n\n{section}",
        "<!-- a -->\nold\n<!-- /a -->\n": section,
        "x\n<!-- a -->old<!-- /a -->\ny\n": f"x\n{section}y\n",
        "<!-- /a --> <!-- a -->": f"<!-- /a --> <!-- a -->\n\n{section}",
        "<!-- b --><!-- /b -->": f"<!-- b --><!-- /b -->\n\n{section}",
    }.items():
        assert markdown.put_section(page, "a", "new") == expected
    started = time.process_time()
    markdown.put_section("<!-- a -->" * 100_000, "a", "new")
    assert time.process_time() - started < 2


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [it for it in sys.modules if it.split(".")[0] == "matplotlib" or it == "alps.visual.figures"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    chosen().save_pretrained(tmp_path)
    assert {it.name for it in tmp_path.iterdir()} == {"heads.json", "README.md"}
    assert "heads.png" not in (tmp_path / "README.md").read_text()


def test_without_the_library_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen().save(tmp_path / "heads.json")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert alps.HeadSet.from_pretrained(tmp_path) == chosen()
    for call in (
        lambda: chosen().save_pretrained(tmp_path / "new"),
        lambda: chosen().push_to_hub(NAME),
        lambda: alps.HeadSet.from_pretrained(NAME),
    ):
        with pytest.raises(alps.MissingPackageError, match=r"alps-heads\[remote\]"):
            call()
    assert not (tmp_path / "new").exists()
