"""The files of a release agree with each other, and the page of the package index shows what README.md shows."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from support.documents import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.append(str(ROOT / "tools"))

from absolute_links import absolute, repository

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CRATE: dict[str, Any] = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").iterdir()}
PYTHONS = [
    name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)
]


def test_the_versions_agree() -> None:
    headings = re.findall(
        r"^## \[([^\]]+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    version, date = next(heading for heading in headings if heading[0] != "Unreleased")
    assert version == CRATE["version"]
    assert f"\nversion: {version}\n" in CITATION
    assert f'\ndate-released: "{date}"\n' in CITATION


def test_every_address_of_the_repository_is_that_of_the_project() -> None:
    owner, _, name = repository().partition("/")
    files = [CITATION, *(path.read_text(encoding="utf-8") for path in (ROOT / ".github").rglob("*.yml"))]
    found = {
        address
        for text in [*files, *PROJECT["urls"].values()]
        for address in re.findall(rf"https://github\.com/([^/\s]+/{name})\b", text)
    }
    assert found == {f"{owner}/{name}"}


def test_the_workflows_use_every_version_of_python() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    listed = ", ".join(f'"{version}"' for version in PYTHONS)
    assert f"python: [{listed}]" in WORKFLOWS["tests.yml"]
    assert WORKFLOWS["release.yml"].count(f"for version in {' '.join(PYTHONS)}; do") == 2


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actions_are_pinned_to_commits(workflow: str) -> None:
    for action in re.findall(r"uses: (.*)", WORKFLOWS[workflow]):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), action


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    for name, text in WORKFLOWS.items():
        assert "\npermissions: {}\n" in text
        asked = re.findall(r"^ +([\w-]+): write", text, re.MULTILINE)
        assert asked == (["id-token"] if name == "release.yml" else []), name


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("![map](docs/a.png)", "![map](https://raw.githubusercontent.com/o/n/v1/docs/a.png)"),
        ("[page](docs/a.md#part)", "[page](https://github.com/o/n/blob/v1/docs/a.md#part)"),
        (
            "[![map](a.png)](b.md)",
            "[![map](https://raw.githubusercontent.com/o/n/v1/a.png)](https://github.com/o/n/blob/v1/b.md)",
        ),
        (
            '<img alt="map" src="a.png">',
            '<img alt="map" src="https://raw.githubusercontent.com/o/n/v1/a.png">',
        ),
        ("[paper](https://arxiv.org)", "[paper](https://arxiv.org)"),
        ("[below](#part)", "[below](#part)"),
        (
            "```text\n[code](a.md)\n```\n[x](y)",
            "```text\n[code](a.md)\n```\n[x](https://github.com/o/n/blob/v1/y)",
        ),
    ],
)
def test_relative_links_become_absolute(relative: str, expected: str) -> None:
    assert absolute(relative, "o/n", "v1") == expected


def test_the_page_of_the_index_has_no_relative_link() -> None:
    text = absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository(), "v1")
    written = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(
        r'\]\(([^)\s]+)|(?:src|srcset|href)="([^"]+)"|^\[[^\]]+\]: (\S+)', written, re.MULTILINE
    )
    assert targets
    for target in map("".join, targets):
        assert target.startswith(("https://", "#")), target


def test_the_files_of_the_links_exist() -> None:
    prefix = rf"https://(?:raw\.githubusercontent\.com/{repository()}|github\.com/{repository()}/blob)/v1/"
    text = absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository(), "v1")
    for path in re.findall(rf"{prefix}([^)#\s\"]+)", text):
        assert Path(ROOT / path).exists(), path
