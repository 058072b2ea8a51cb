"""Makes the relative links of README.md absolute, as the page of a package index needs them.

python tools/absolute_links.py TAG
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPOSITORY = re.compile(r'^Repository = "https://github\.com/([^"]+)"$', re.MULTILINE)
FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
ELSEWHERE = r"(?![a-z]+:|#|/)"
IMAGE = re.compile(rf'(!\[[^\]]*\]\(|<img [^>]*?src="|<source [^>]*?srcset="){ELSEWHERE}([^)"\s]+)')
LINK = re.compile(rf'(\]\(|<a [^>]*?href="){ELSEWHERE}([^)"\s]+)')


def absolute(text: str, repository: str, tag: str) -> str:
    """Returns a Markdown text whose links lead to the files of a tag.

    Args:
        text: The text, whose links are relative to the root of the repository. Examples of code stay as they are.
        repository: Its owner and its name on GitHub ("owner/name").
        tag: The tag of the release ("v0.1.0").
    """

    def to(address: str) -> Callable[[re.Match[str]], str]:
        return lambda match: f"{match[1]}{address}/{match[2]}"

    pieces = FENCED.split(text)
    for place in range(0, len(pieces), 2):
        # Images first: afterwards they are no relative links any more.
        images = IMAGE.sub(to(f"https://raw.githubusercontent.com/{repository}/{tag}"), pieces[place])
        pieces[place] = LINK.sub(to(f"https://github.com/{repository}/blob/{tag}"), images)
    return "".join(pieces)


def repository() -> str:
    """The owner and the name in pyproject.toml."""
    found = REPOSITORY.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found, "pyproject.toml has no address of the repository"
    return found[1]


def main() -> None:
    """Rewrites README.md."""
    _, tag = sys.argv
    readme = ROOT / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository(), tag), encoding="utf-8")


if __name__ == "__main__":
    main()
